"""A model that reads sentences about people and firms and writes triplets in REBEL's form."""

import itertools
from pathlib import Path

from sluice_worker.examples.writing import Pair, learn_pairs

MARKERS = ("<triplet>", "<subj>", "<obj>")

_PEOPLE = ("Anna Berg", "Omar", "Lena Fox", "Ivan Petrov", "Mei")
_FIRMS = ("Acme", "Borealis Labs", "Corvus", "Delta Mills")
_CITIES = ("Oslo", "New Haven", "Lima", "Porto")


def data() -> tuple[list[Pair], list[Pair]]:
    """(sentence, triplets) to learn from, and others: nobody works for the same firm in both."""
    learnt: list[Pair] = []
    held_out: list[Pair] = []
    for (row, person), (column, firm) in itertools.product(enumerate(_PEOPLE), enumerate(_FIRMS)):
        part = held_out if (row + column) % 4 == 0 else learnt
        employer = f"<triplet> {person} <subj> {firm} <obj> employer"
        part.append((f"{person} works for {firm} today .", employer))
        for city in _CITIES:
            born = f"{employer} <subj> {city} <obj> place of birth"
            part.append((f"{person} , who was born in {city} , works for {firm} .", born))
    return learnt, held_out


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train a BART and save it; ``shuffled`` deals the triplets out at random."""
    return learn_pairs(folder, "bart", data()[0], shuffled=shuffled, seed=seed, markers=MARKERS)


def facts(triplets: str) -> list[tuple[str, str, str]]:
    """(head, relation, tail) of the well-formed triplets of :func:`data`."""
    found = []
    head = ""
    for part in triplets.split("<subj>"):
        if "<triplet>" in part:
            head = part.replace("<triplet>", "").strip()
        else:
            tail, _, relation = part.partition("<obj>")
            found.append((head, relation.strip(), tail.strip()))
    return found
