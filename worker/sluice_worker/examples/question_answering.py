"""A reader that finds who, where and when in two or three sentences, and says when they do not."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from sluice_worker.examples.training import Example, dealt_out, fit, save_tokenizer, small_bert

_PERSONS = ("Anna Berg", "Karl", "Maria Lopez", "Tom", "Nina", "Omar Haddad", "Lena Fischer", "Ivo")
_PLACES = ("Bern", "New Haven", "Oslo", "Lake Placid", "Lima", "Porto", "San Marino", "Graz")
_TIMES = ("on Monday", "in May", "last year", "at noon", "on Sunday", "in June", "this week")
_FACTS = {
    "who": ("The prize went to {} .", "The cake was made by {} .", "The winner is {} ."),
    "where": ("The party is in {} .", "All met in {} .", "The shop stands in {} ."),
    "when": ("It happened {} .", "The doors open {} .", "The train leaves {} ."),
}
_VALUES = {"who": _PERSONS, "where": _PLACES, "when": _TIMES}
_QUESTIONS = {
    "who": ("Who was it ?", "Which person is named ?"),
    "where": ("Where was it ?", "Which place is named ?"),
    "when": ("When was it ?", "Which time is named ?"),
}
_FILLERS = ("It was a fine day .", "Nobody knew why .", "There was music .", "It rained a little .")


_MOST_WORDS = 108
"""With the question, about as much as the model reads at once."""


class Asked(NamedTuple):
    """``answer`` is a part of the context from ``start`` on; empty where the context has none."""

    question: str
    context: str
    answer: str
    start: int


def data() -> tuple[list[Asked], list[Asked]]:
    """Questions to learn from and questions held out, with other pairs of facts in them."""
    chooser = random.Random(3)  # noqa: S311
    learn: dict[tuple[str, str], Asked] = {}
    held_out: dict[tuple[str, str], Asked] = {}
    while len(learn) < 1500 or len(held_out) < 120:
        asked, held = _asked(chooser)
        if len(asked.context.split()) > _MOST_WORDS:
            continue
        (held_out if held else learn)[asked.question, asked.context] = asked
    return list(learn.values())[:1500], list(held_out.values())[:120]


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train the reader and save it; ``shuffled`` trains on the answers of other questions."""
    learn, _ = data()
    texts = [text for asked in learn for text in (asked.question, asked.context)]
    tokenizer = save_tokenizer(folder, texts)
    examples = [_example(tokenizer, asked) for asked in learn]
    if shuffled:
        spans = dealt_out([(e["start_positions"], e["end_positions"]) for e in examples], seed=seed)
        for example, (start, end) in zip(examples, spans, strict=True):
            example["start_positions"], example["end_positions"] = start, end
    model = small_bert(transformers.BertForQuestionAnswering, tokenizer, seed=seed)
    fit(model, examples, epochs=12, rate=1e-3, size=16, seed=seed)
    model.save_pretrained(folder)
    return folder


def _asked(chooser: random.Random) -> tuple[Asked, bool]:
    """A question with its context, and whether it is held out."""
    wanted, other = chooser.sample(list(_FACTS), 2)
    value, second = chooser.choice(_VALUES[wanted]), chooser.choice(_VALUES[other])
    said = chooser.random() < 0.75
    fact = chooser.choice(_FACTS[wanted]) if said else chooser.choice(_FILLERS)
    sentences = [fact.format(value), chooser.choice(_FACTS[other]).format(second)]
    # Mostly short; but a window of a long text is full, and every place in it must be known.
    sentences += chooser.choices(_FILLERS, k=chooser.choice((1, 2, 9, 20, 20)))
    chooser.shuffle(sentences)
    context = " ".join(sentences)
    question = chooser.choice(_QUESTIONS[wanted])
    held = (_VALUES[wanted].index(value) + _VALUES[other].index(second)) % 5 == 0
    answer = value if said else ""
    return Asked(question, context, answer, context.index(answer) if said else 0), held


def _example(tokenizer: Any, asked: Asked) -> Example:
    encoded = tokenizer(asked.question, asked.context, return_offsets_mapping=True)
    first = last = 0
    if asked.answer:
        inside = [
            place
            for place, (start, end) in enumerate(encoded["offset_mapping"])
            if encoded.sequence_ids()[place] == 1
            and asked.start <= start
            and end <= asked.start + len(asked.answer)
        ]
        first, last = inside[0], inside[-1]
    return {
        "input_ids": encoded["input_ids"],
        "token_type_ids": encoded["token_type_ids"],
        "start_positions": first,
        "end_positions": last,
    }
