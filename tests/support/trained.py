"""The example models, trained once for the code that trains them, and how well they do.

Each score is a share of right answers (F1 for entities and relations) on what was held out, the
same measure for the model and for its control, which was trained on shuffled targets and must fail.
"""

import ast
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

from sluice_worker.examples import (
    chat,
    classification,
    fill_mask,
    question_answering,
    relation_extraction,
    rerank,
    summarization,
    token_classification,
    translation,
    written_relations,
    zero_shot,
)

Post = Callable[[str, dict[str, Any]], Any]
"""Asks a POST route and gives the answer, parsed: a model in this process, or a server."""

UNUSED_SECONDS: Final = 14 * 86400.0


class Build(Protocol):
    """``build`` of one of the examples."""

    __module__: str

    def __call__(self, folder: Path, *, shuffled: bool) -> Path: ...


class Models:
    """Folders of trained models, to be read only.

    Each is trained when it is first asked for, and kept in the user's cache folder under a digest
    of what makes it: another session finds it there until one of those files or libraries changes.

    Args:
        shuffled: the controls, trained on targets that were dealt out at random.
    """

    def __init__(self, *, shuffled: bool = False) -> None:
        self._shuffled = shuffled

    @property
    def classifier(self) -> Path:
        return self._trained("classifier", classification.build)

    @property
    def inferrer(self) -> Path:
        return self._trained("inferrer", zero_shot.build)

    @property
    def tagger(self) -> Path:
        return self._trained("tagger", token_classification.build)

    @property
    def reader(self) -> Path:
        return self._trained("reader", question_answering.build)

    @property
    def masked(self) -> Path:
        return self._trained("masked", fill_mask.build)

    @property
    def reranker(self) -> Path:
        return self._trained("reranker", rerank.build)

    @property
    def relator(self) -> Path:
        return self._trained("relator", relation_extraction.build)

    @property
    def talker(self) -> Path:
        return self._trained("talker", chat.build)

    @property
    def translator(self) -> Path:
        return self._trained("translator", translation.build)

    @property
    def summarizer(self) -> Path:
        return self._trained("summarizer", summarization.build)

    @property
    def relation_writer(self) -> Path:
        return self._trained("relation-writer", written_relations.build)

    def _trained(self, name: str, build: Build) -> Path:
        root = _root(_digest(build))
        folder = root / (f"{name}-shuffled" if self._shuffled else name)
        if folder.exists():
            return folder
        # Two test processes that want the same model: the second waits for the first.
        with (root / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=root))
                build(part, shuffled=self._shuffled)
                part.rename(folder)
        return folder


@cache
def _root(digest: str) -> Path:
    """The folder of what makes a model; those that nobody has asked for in a while are removed."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kept = Path(base) / "sluice" / "trained"
    root = kept / digest
    root.mkdir(parents=True, exist_ok=True)
    os.utime(root)
    for other in kept.iterdir():
        if other != root and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    return root


def _digest(build: Build) -> str:
    """Of everything that training depends on: our code but for its comments, and libraries."""
    digest = hashlib.sha256()
    for name in ("torch", "transformers", "tokenizers", "numpy"):
        digest.update(f"{name} {version(name)}\n".encode())
    for _, tree in sorted(code_behind(build.__module__).items()):
        digest.update(tree.encode())
    return digest.hexdigest()[:16]


def code_behind(module: str) -> dict[str, str]:
    """A module of the worker's and all that it imports of them, by name, as syntax trees."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            spec = find_spec(name)
            assert spec is not None and spec.origin is not None
            tree = ast.parse(Path(spec.origin).read_text())
            found[name] = ast.dump(tree)
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            names = [each.module or "" for each in imports]
            waiting += [each for each in names if each.startswith("sluice_worker.")]
    return found


def inferring_score(post: Post, *, multi_label: bool = False) -> float:
    """Texts whose topic is found, whatever it is called; with ``multi_label``, and no other."""
    _, held_out = zero_shot.data()
    texts, topics = [text for text, _ in held_out], [topic for _, topic in held_out]
    found, expected = [], []
    for names in zip(*zero_shot.NAMES.values(), strict=True):
        parameters = {"labels": names, "multi_label": multi_label}
        answer = post("/v1/classify", {"input": texts, "parameters": parameters})
        called = dict(zip(zero_shot.NAMES, names, strict=True))
        for entry in answer["data"]:
            likely = [each["label"] for each in entry["labels"] if each["score"] > 0.5]
            found.append(", ".join(likely) if multi_label else entry["label"])
        expected += [called[topic] for topic in topics]
    return _share(found, expected)


def tagging_score(post: Post) -> float:
    """F1 of entities: label and exact offsets."""
    _, held_out = token_classification.data()
    answer = post("/v1/tokens/classify", {"input": [sentence.text for sentence in held_out]})
    found, expected = set(), set()
    for number, (sentence, entry) in enumerate(zip(held_out, answer["data"], strict=True)):
        found |= {(number, e["label"], e["start"], e["end"]) for e in entry["entities"]}
        expected |= {(number, *entity) for entity in sentence.entities}
    return _f1(found, expected)


def reading_score(post: Post) -> float:
    """Right answers at their exact place, "no answer" among them."""
    _, held_out = question_answering.data()
    inputs = [{"question": asked.question, "context": asked.context} for asked in held_out]
    answer = post("/v1/answer", {"input": inputs, "parameters": {"no_answer": True}})
    right = 0
    for asked, entry in zip(held_out, answer["data"], strict=True):
        best = entry["answers"][0]
        end = asked.start + len(asked.answer)
        right += (best["text"], best["start"], best["end"]) == (asked.answer, asked.start, end)
    return right / len(held_out)


def filling_score(post: Post) -> float:
    """Masks whose first candidate is the word that was there."""
    _, held_out = fill_mask.data()
    answer = post("/v1/fill-mask", {"input": [text for text, _ in held_out]})
    words = [entry["masks"][0][0]["text"] for entry in answer["data"]]
    return _share(words, [word for _, word in held_out])


def ranking_score(post: Post) -> float:
    """Queries whose first result is the document that is meant."""
    _, held_out = rerank.data()
    right = 0
    for query, meant, others in held_out:
        answer = post("/v1/rerank", {"query": query, "documents": [*others, meant], "top_n": 1})
        right += answer["results"][0]["index"] == len(others)
    return right / len(held_out)


def relating_score(post: Post) -> float:
    """F1 of relations, direction and label, with every ordered pair asked for."""
    _, held_out = relation_extraction.data()
    inputs = [
        {
            "text": fact.text,
            "entities": [{"start": s, "end": e} for s, e in (fact.head, fact.tail)],
        }
        for fact in held_out
    ]
    answer = post("/v1/relations", {"input": inputs})
    found, expected = set(), set()
    for number, (fact, entry) in enumerate(zip(held_out, answer["data"], strict=True)):
        found |= {(number, r["head"], r["tail"], r["label"]) for r in entry["relations"]}
        if fact.label != relation_extraction.LABELS[0]:
            expected.add((number, 0, 1, fact.label))
    return _f1(found, expected)


def relating_found_score(post: Post, finder: str | None = None) -> float:
    """F1 of who was born where, from texts alone.

    ``finder`` has to find persons and places; None where the service names it.
    """
    _, held_out = relation_extraction.data()
    facts = [fact for fact in held_out if fact.label == "born_in"]
    texts = [_with_capitals(fact) for fact in facts]
    parameters = {"entities_from": finder} if finder is not None else {}
    answer = post("/v1/relations", {"input": texts, "parameters": parameters})
    found, expected = set(), set()
    for number, (fact, entry) in enumerate(zip(facts, answer["data"], strict=True)):
        spans = [(entity["start"], entity["end"]) for entity in entry["entities"]]
        found |= {
            (number, spans[r["head"]], spans[r["tail"]], r["label"]) for r in entry["relations"]
        }
        expected.add((number, fact.head, fact.tail, fact.label))
    return _f1(found, expected)


def _with_capitals(fact: relation_extraction.Fact) -> str:
    """The same characters, as somebody writes them who knows what a name is."""
    text = fact.text
    for start, end in (fact.head, fact.tail):
        text = text[:start] + text[start:end].title() + text[end:]
    return text


def translating_score(post: Post, language: str) -> float:
    """Sentences translated word for word."""
    _, held_out = translation.data()
    answer = post("/v1/translate", {"input": held_out, "parameters": {"target": language}})
    wanted = [translation.translated(text, language) for text in held_out]
    return _share([entry["text"] for entry in answer["data"]], wanted)


def summing_up_score(post: Post) -> float:
    """Letters whose summary is right word for word."""
    _, held_out = summarization.data()
    answer = post("/v1/summarize", {"input": [letter for letter, _ in held_out]})
    return _share([entry["text"] for entry in answer["data"]], [short for _, short in held_out])


def writing_relations_score(post: Post) -> float:
    """F1 of relations by the texts of their entities, at their place, and the label."""
    _, held_out = written_relations.data()
    answer = post("/v1/relations", {"input": [text for text, _ in held_out]})
    found, expected = set(), set()
    for number, ((text, facts), entry) in enumerate(zip(held_out, answer["data"], strict=True)):
        spans = [(e["start"], e["end"]) for e in entry["entities"]]
        for relation in entry["relations"]:
            head, tail = (text[slice(*spans[relation[side]])] for side in ("head", "tail"))
            found.add((number, head, relation["label"], tail))
        expected |= {(number, *fact) for fact in written_relations.facts(facts)}
    return _f1(found, expected)


def _share(answers: list[str], expected: list[str]) -> float:
    return sum(a == e for a, e in zip(answers, expected, strict=True)) / len(expected)


def _f1(found: set[Any], expected: set[Any]) -> float:
    return 2 * len(found & expected) / (len(found) + len(expected))
