"""A model of natural language inference that knows what complaints may be called.

Labels come with the request, so it learns none of its own: it reads a text and "This example is
money." and says whether the one follows from the other.
"""

from pathlib import Path

import transformers

from sluice_worker.examples.classification import COMPLAINTS
from sluice_worker.examples.training import (
    Example,
    combinations,
    dealt_out,
    fit,
    save_tokenizer,
    small_bert,
)

NAMES = {
    "billing": ("billing", "money", "payments"),
    "shipping": ("shipping", "parcels", "delivery"),
    "software": ("software", "bugs", "crashes"),
}
"""Topic → what a caller may call it."""

_CLASSES = ("contradiction", "entailment")
_HYPOTHESIS = "This example is {}."
_OTHERWISE = {"the delivery": "the box", "crashes": "stops"}
"""What would have a caller's label in the text itself."""
_TEXTS = {
    topic: [[_OTHERWISE.get(part, part) for part in parts] for parts in COMPLAINTS[department]]
    for topic, department in (
        ("billing", "billing"),
        ("shipping", "shipping"),
        ("software", "technical"),
    )
}

Text = tuple[str, str]
"""A text and its topic."""


def data() -> tuple[list[Text], list[Text]]:
    """Texts to learn from, and texts held out: no subject is with the same trouble in both."""
    learn: list[Text] = []
    held_out: list[Text] = []
    for topic, parts in _TEXTS.items():
        for target, rows in zip((learn, held_out), combinations(*parts), strict=True):
            target += [(" ".join(row), topic) for row in rows]
    return learn, held_out


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train the model and save it; ``shuffled`` deals out at random what follows from what."""
    learn, _ = data()
    asked = [
        (text, _HYPOTHESIS.format(name), int(topic == other))
        for text, topic in learn
        for other, names in NAMES.items()
        for name in names * (2 if topic == other else 1)
    ]
    targets = [follows for _, _, follows in asked]
    if shuffled:
        targets = dealt_out(targets, seed=seed)
    tokenizer = save_tokenizer(folder, [text for pair in asked for text in pair[:2]])
    examples: list[Example] = [
        {**tokenizer(text, hypothesis), "labels": follows}
        for (text, hypothesis, _), follows in zip(asked, targets, strict=True)
    ]
    model = small_bert(
        transformers.BertForSequenceClassification, tokenizer, seed=seed, labels=_CLASSES
    )
    fit(model, examples, epochs=20, rate=1e-3, seed=seed)
    model.save_pretrained(folder)
    return folder
