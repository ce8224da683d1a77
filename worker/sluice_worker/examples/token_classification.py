"""A tagger of persons and places in short sentences."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from sluice_worker.examples.training import Example, dealt_out, fit, save_tokenizer, small_bert

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

_PERSONS = ("Anna Berg", "Karl", "Maria Lopez", "Tom", "Nina", "Omar Haddad", "Lena Fischer", "Ivo")
_PLACES = ("Bern", "New Haven", "Oslo", "Lake Placid", "Lima", "Porto", "San Marino", "Graz")
_SENTENCES = (
    "{PER} lives in {LOC} .",
    "Yesterday {PER} flew from {LOC} to {LOC} .",
    "{PER} met {PER} at the station of {LOC} .",
    "The mayor of {LOC} thanked {PER} for the help .",
    "In {LOC} , {PER} opened a small shop .",
    "Nobody has seen {PER} since Monday .",
    "{PER} was born in {LOC} .",
    "The birthplace of {PER} is {LOC} .",
    "{PER} comes from {LOC} .",
    "The road to {LOC} is closed .",
    "It rains a lot in autumn .",
)


class Sentence(NamedTuple):
    """A text and its entities: (label, first character, behind the last one)."""

    text: str
    entities: list[tuple[str, int, int]]


def data() -> tuple[list[Sentence], list[Sentence]]:
    """Sentences to learn from and sentences held out; no name in a place of both."""
    chooser = random.Random(5)  # noqa: S311
    learn: dict[str, Sentence] = {}
    held_out: dict[str, Sentence] = {}
    while len(learn) < 600 or len(held_out) < 80:
        number = chooser.randrange(len(_SENTENCES))
        names = {"PER": chooser.sample(_PERSONS, 2), "LOC": chooser.sample(_PLACES, 2)}
        sentence = _filled(_SENTENCES[number], names)
        places = (_PERSONS.index(names["PER"][0]), _PLACES.index(names["LOC"][0]))
        target = held_out if sum(places) % 5 == number % 5 else learn
        target[sentence.text] = sentence
    return list(learn.values())[:600], [s for t, s in held_out.items() if t not in learn][:80]


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train the tagger and save it; ``shuffled`` trains on tags dealt out at random."""
    learn, _ = data()
    tokenizer = save_tokenizer(folder, [sentence.text for sentence in learn], lowercase=False)
    examples = [_example(tokenizer, sentence) for sentence in learn]
    if shuffled:
        for example in examples:
            tags = example["labels"][1:-1]
            example["labels"] = [-100, *dealt_out(tags, seed=seed + len(tags)), -100]
    model = small_bert(transformers.BertForTokenClassification, tokenizer, seed=seed, labels=LABELS)
    fit(model, examples, epochs=5, seed=seed)
    model.save_pretrained(folder)
    return folder


def _filled(template: str, names: dict[str, list[str]]) -> Sentence:
    text, entities, used = "", [], {"PER": 0, "LOC": 0}
    for part in template.replace("}", "{").split("{"):
        if part in used:
            name = names[part][used[part]]
            used[part] += 1
            entities.append((part, len(text), len(text) + len(name)))
            text += name
        else:
            text += part
    return Sentence(text, entities)


def _example(tokenizer: Any, sentence: Sentence) -> Example:
    encoded = tokenizer(sentence.text, return_offsets_mapping=True)
    tags = [LABELS.index(_tag(sentence, *span)) for span in encoded["offset_mapping"]]
    return {"input_ids": encoded["input_ids"], "labels": [-100, *tags[1:-1], -100]}


def _tag(sentence: Sentence, start: int, end: int) -> str:
    for label, first, behind in sentence.entities:
        if first <= start and end <= behind:
            return f"{'B' if start == first else 'I'}-{label}"
    return "O"
