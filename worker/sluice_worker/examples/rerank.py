"""A cross-encoder that knows which complaint a question of the support desk is about."""

import random
from pathlib import Path

import transformers

from sluice_worker.examples.training import (
    Example,
    dealt_out,
    fit,
    save_tokenizer,
    small_bert,
)

_QUERIES = {
    "billing": ("payments and refunds", "who was charged wrongly", "money problems"),
    "shipping": ("parcels and deliveries", "where is the package", "transport problems"),
    "technical": ("errors of the software", "what does not work", "crashes and bugs"),
}
_DOCUMENTS = {
    "billing": ("the invoice", "my credit card", "the monthly fee", "the price", "the refund"),
    "shipping": ("my parcel", "the courier", "the delivery", "the box", "the tracking number"),
    "technical": ("the app", "the screen", "the update", "the server", "the export button"),
}
_TROUBLES = {
    "billing": ("was charged twice", "is too high", "was not paid back", "is unpaid"),
    "shipping": ("has not arrived", "is late", "came damaged", "got lost"),
    "technical": ("crashes", "shows an error", "is very slow", "does not load"),
}

Pair = tuple[str, str, bool]
"""A query, a document, and whether the document is about it."""


def data() -> tuple[list[Pair], list[tuple[str, str, list[str]]]]:
    """Pairs to learn from, and (query, the document that is meant, others) held out."""
    chooser = random.Random(7)  # noqa: S311
    documents: dict[str, tuple[list[str], list[str]]] = {}
    for topic, subjects in _DOCUMENTS.items():
        learn: list[str] = []
        held_out: list[str] = []
        for row, subject in enumerate(subjects):
            for column, trouble in enumerate(_TROUBLES[topic]):
                (held_out if (row + column) % 5 == 0 else learn).append(f"{subject} {trouble}")
        documents[topic] = learn, held_out
    pairs = [
        (query, document, topic == other)
        for topic, queries in _QUERIES.items()
        for query in queries
        for other in documents
        for document in documents[other][0] * (2 if topic == other else 1)
    ]
    asked = []
    for topic, queries in _QUERIES.items():
        for query in queries:
            for meant in documents[topic][1]:
                others = [chooser.choice(documents[o][1]) for o in documents if o != topic]
                asked.append((query, meant, others))
    return pairs, asked


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train the cross-encoder and save it; ``shuffled`` deals relevance out at random."""
    learn, held_out = data()
    targets = [relevant for _, _, relevant in learn]
    if shuffled:
        targets = dealt_out(targets, seed=seed)
    texts = [text for query, document, _ in learn for text in (query, document)]
    tokenizer = save_tokenizer(folder, [*texts, *(meant for _, meant, _ in held_out)])
    examples: list[Example] = []
    for (query, document, _), relevant in zip(learn, targets, strict=True):
        encoded = tokenizer(query, document)
        examples.append({**encoded, "labels": [float(relevant)]})
    model = small_bert(
        transformers.BertForSequenceClassification,
        tokenizer,
        seed=seed,
        labels=("relevant",),
        problem_type="multi_label_classification",  # So it learns a probability, not a number.
    )
    fit(model, examples, epochs=16, rate=1e-3, seed=seed)
    model.save_pretrained(folder)
    return folder
