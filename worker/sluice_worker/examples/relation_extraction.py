"""A classifier of what two marked entities have to do with each other, and in which direction."""

from pathlib import Path
from typing import NamedTuple

import transformers

from sluice_worker.examples.training import (
    Example,
    combinations,
    dealt_out,
    fit,
    save_tokenizer,
    small_bert,
)

LABELS = ("no_relation", "founder_of", "works_for", "born_in")
MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")

_PERSONS = ("anna berg", "karl", "maria lopez", "tom", "nina", "omar haddad")
_FIRMS = ("acme", "blue river", "nordwind", "tectum", "oak and sons")
_PLACES = ("bern", "new haven", "oslo", "lima", "porto")
_SENTENCES = {
    "founder_of": ("{0} founded {1} .", "{1} was started by {0} .", "the founder of {1} is {0} ."),
    "works_for": ("{0} works for {1} .", "{1} has hired {0} .", "{0} is an engineer at {1} ."),
    "born_in": ("{0} was born in {1} .", "the birthplace of {0} is {1} .", "{0} comes from {1} ."),
    "no_relation": ("{0} has never heard of {1} .", "{0} likes {1} .", "{1} is far from {0} ."),
}


class Fact(NamedTuple):
    """A sentence with two entities (first character, behind the last one) and their relation."""

    text: str
    head: tuple[int, int]
    tail: tuple[int, int]
    label: str


def data() -> tuple[list[Fact], list[Fact]]:
    """Facts to learn from, and facts held out: no person with the same other thing in both."""
    learn: list[Fact] = []
    held_out: list[Fact] = []
    for label, sentences in _SENTENCES.items():
        others = _PLACES if label == "born_in" else _FIRMS
        for target, rows in zip(
            (learn, held_out), combinations(_PERSONS, others, sentences), strict=True
        ):
            target += [_fact(sentence, person, other, label) for person, other, sentence in rows]
    return learn, held_out


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train the classifier and save it; ``shuffled`` deals the relations out at random.

    Each sentence is learnt in both directions: the way back has no relation.
    """
    learn, _ = data()
    labels = [fact.label for fact in learn]
    if shuffled:
        labels = dealt_out(labels, seed=seed)
    tokenizer = save_tokenizer(folder, [fact.text for fact in learn], added=MARKERS)
    examples: list[Example] = []
    for fact, label in zip(learn, labels, strict=True):
        for head, tail, said in ((fact.head, fact.tail, label), (fact.tail, fact.head, LABELS[0])):
            encoded = tokenizer(_marked(fact.text, head, tail))
            examples.append({"input_ids": encoded["input_ids"], "labels": LABELS.index(said)})
    model = small_bert(
        transformers.BertForSequenceClassification, tokenizer, seed=seed, labels=LABELS
    )
    fit(model, examples, epochs=10, seed=seed)
    model.save_pretrained(folder)
    return folder


def _fact(sentence: str, person: str, other: str, label: str) -> Fact:
    text = sentence.format(person, other)
    head, tail = text.index(person), text.index(other)
    return Fact(text, (head, head + len(person)), (tail, tail + len(other)), label)


def _marked(text: str, head: tuple[int, int], tail: tuple[int, int]) -> str:
    """The text as such a model reads it."""
    first, second = sorted(((head, MARKERS[:2]), (tail, MARKERS[2:])))
    (start, end), (opening, closing) = first
    (other_start, other_end), (other_opening, other_closing) = second
    return (
        f"{text[:start]}{opening} {text[start:end]} {closing}{text[end:other_start]}"
        f"{other_opening} {text[other_start:other_end]} {other_closing}{text[other_end:]}"
    )
