"""Triplets as REBEL and mREBEL write them, and where their entities stand."""

import math

import pytest

from sluice_worker.engines.seq2seq.decoding import Generated
from sluice_worker.tasks.triplets import Mention, located, places, triplets

MARKERS = {"<triplet>": "triplet", "<subj>": "subj", "<obj>": "obj", "<per>": "per", "<loc>": "loc"}


def parsed(text: str, logprobs: dict[str, float] | None = None) -> list[tuple[str, ...]]:
    words = text.split()
    vocabulary = sorted({*words, *MARKERS})
    ids = tuple(vocabulary.index(word) for word in words)
    markers = {vocabulary.index(word): name for word, name in MARKERS.items()}
    written = Generated(ids, tuple((logprobs or {}).get(word, 0.0) for word in words))
    found = triplets(written, markers, lambda some: " ".join(vocabulary[i] for i in some))
    return [
        (*filter(None, (t.head.text, t.head.label)), t.relation, *filter(None, t.tail))
        for t in found
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<triplet> Anna <subj> Acme <obj> employer", [("Anna", "employer", "Acme")]),
        (
            "<triplet> Anna Berg <subj> Acme <obj> employer <subj> New York <obj> born in",
            [("Anna Berg", "employer", "Acme"), ("Anna Berg", "born in", "New York")],
        ),
        (
            "<triplet> a <subj> b <obj> r <triplet> c <subj> d <obj> s",
            [("a", "r", "b"), ("c", "s", "d")],
        ),
        # What is not complete is passed over, as in the model card's own parser.
        ("<triplet> a <subj> b", []),
        ("<triplet> a <subj> b <obj>", []),
        ("<triplet> <subj> b <obj> r", []),
        ("<obj> r <triplet> a <subj> b <obj> s", [("a", "s", "b")]),
        ("<triplet> a <subj> b <obj> r <obj> s", [("a", "r", "b")]),
        ("words before <triplet> a <subj> b <obj> r", [("a", "r", "b")]),
        ("", []),
        # mREBEL: the markers say what the entities are.
        (
            "<triplet> Anna <per> Oslo <loc> born in",
            [("Anna", "per", "born in", "Oslo", "loc")],
        ),
        (
            "<triplet> Anna <per> Oslo <loc> born in <per> Omar <per> knows",
            [("Anna", "per", "born in", "Oslo", "loc"), ("Anna", "per", "knows", "Omar", "per")],
        ),
    ],
)
def test_what_was_written(text: str, expected: list[tuple[str, ...]]) -> None:
    assert parsed(text) == expected


def test_the_score_is_the_geometric_mean_of_the_triplets_own_tokens() -> None:
    words = {"a": -1.0, "b": -2.0, "r": -3.0, "s": -9.0}
    ids = {word: place for place, word in enumerate([*MARKERS, *words])}
    text = ["<triplet>", "a", "<subj>", "b", "<obj>", "r", "<subj>", "b", "<obj>", "s"]
    written = Generated(
        tuple(ids[word] for word in text), tuple(words.get(word, 0.0) for word in text)
    )
    markers = {ids[word]: name for word, name in MARKERS.items()}
    names = {place: word for word, place in ids.items()}
    found = list(triplets(written, markers, lambda some: " ".join(names[i] for i in some)))
    assert found[0].score == pytest.approx(math.exp(-6.0 / 6))
    assert found[1].score == pytest.approx(math.exp(-12.0 / 6))
    assert found[0].head == Mention("a", None)


@pytest.mark.parametrize(
    ("mention", "text", "expected"),
    [
        ("Ann", "Anna met Ann.", ["Ann"]),
        ("New York", "in New\n York today", ["New\n York"]),
        ("oslo", "from OSLO", ["OSLO"]),
        ("Land", "Deutschland", ["land"]),
        ("C++ (lang)", "uses C++ (lang) now", ["C++ (lang)"]),
        ("Ünal", "bei Ünal", ["Ünal"]),
        ("Paris", "London", []),
    ],
)
def test_where_a_mention_stands(mention: str, text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in places(mention, text)] == expected


def test_of_several_places_those_near_to_each_other_count() -> None:
    text = "Paris is far. Anna left. Omar was born in Paris, as was Anna."
    words = ["<triplet>", "Omar", "<subj>", "Paris", "<obj>", "born"]
    ids = {word: place for place, word in enumerate(dict.fromkeys([*MARKERS, *words]))}
    names = {place: word for word, place in ids.items()}
    written = Generated(tuple(ids[word] for word in words), (0.0,) * len(words))
    markers = {ids[word]: name for word, name in MARKERS.items()}
    [triplet] = triplets(written, markers, lambda some: " ".join(names[i] for i in some))
    spans = located(triplet, text)
    assert spans is not None
    assert spans == ((25, 29), (42, 47))
    assert located(triplet, "Omar alone") is None
