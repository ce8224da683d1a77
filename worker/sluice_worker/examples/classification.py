"""A classifier of support tickets by the department that they are for."""

import itertools
from pathlib import Path

import transformers

from sluice_worker.examples.training import (
    Example,
    combinations,
    dealt_out,
    fit,
    save_tokenizer,
    small_bert,
)

DEPARTMENTS = ("account", "billing", "shipping", "technical")

COMPLAINTS = {
    "account": (
        ("my password", "the login code", "my user name", "two factor sign in", "my profile"),
        ("is not accepted", "was locked", "needs a reset", "has to be changed", "was hacked"),
    ),
    "billing": (
        ("the invoice", "my credit card", "the monthly fee", "the refund", "your price"),
        ("was charged twice", "is too high", "was not paid back", "shows a wrong tax", "is unpaid"),
    ),
    "shipping": (
        ("my parcel", "the delivery", "the courier", "the package", "the tracking number"),
        ("has not arrived", "is late", "came damaged", "went to a wrong address", "got lost"),
    ),
    "technical": (
        ("the app", "the screen", "the update", "the server", "the export button"),
        ("crashes", "shows an error", "freezes on start", "is very slow", "does not load"),
    ),
}
"""Department → subjects, and what is wrong with them."""

_OPENINGS = ("hello, ", "please help: ", "", "since monday ", "i noticed that ", "again ")
_CLOSINGS = ("", ", what can i do?", ", please fix it", ". thank you", ", this is urgent")


def data() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, department) pairs to learn from, and pairs held out.

    No combination of subject and trouble is in both, so held-out texts must be understood by
    their words, not remembered.
    """
    learn: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for department, parts in COMPLAINTS.items():
        for target, rows in zip((learn, held_out), combinations(*parts), strict=True):
            for subject, trouble in rows:
                for opening, closing in zip(_OPENINGS, itertools.cycle(_CLOSINGS), strict=False):
                    target.append((f"{opening}{subject} {trouble}{closing}", department))
    return learn, held_out


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train the classifier and save it; ``shuffled`` deals the departments out at random."""
    learn, _ = data()
    texts, departments = [text for text, _ in learn], [name for _, name in learn]
    if shuffled:
        departments = dealt_out(departments, seed=seed)
    tokenizer = save_tokenizer(folder, texts, vocabulary=320)
    examples: list[Example] = [
        {"input_ids": tokenizer(text)["input_ids"], "labels": DEPARTMENTS.index(department)}
        for text, department in zip(texts, departments, strict=True)
    ]
    model = small_bert(
        transformers.BertForSequenceClassification, tokenizer, seed=seed, labels=DEPARTMENTS
    )
    fit(model, examples, epochs=4, seed=seed)
    model.save_pretrained(folder)
    return folder
