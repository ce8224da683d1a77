"""What random models of REBEL's and mREBEL's kind write: token for token what ``generate`` writes.

Their markers are made likely, so that among the noise there are triplets of every kind.
"""

import re
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from sluice_api.shapes import relations
from sluice_api.tasks import Task
from sluice_worker.engines.base import Unit
from sluice_worker.engines.seq2seq.decoding import read
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from tests.support.model_calls import ask, parse
from tests.support.models import random_texts
from tests.support.writers import build_tiny_writer

TEXTS = random_texts(10, seed=5, longest=30)
START = "tp_XX"
REBEL = ("<triplet>", "<subj>", "<obj>")
MREBEL = ("<triplet>", "<per>", "<loc>")
LIKELY = {REBEL: (5.0, 3.0, 3.0), MREBEL: (2.0, 2.0, 2.0)}
"""Added to the logits of each marker; two never follow one another."""
Fact = tuple[str, str, str]


class Case(NamedTuple):
    """One model, ours and transformers' own.

    Attributes:
        start: the decoder's first token, where it is not the model's own.
    """

    loaded: LoadedModel
    reference: Any
    tokenizer: Any
    markers: tuple[str, ...]
    start: int | None

    def generated(self, text: str) -> list[int]:
        """The new tokens, as the model cards have them written."""
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        more = {} if self.start is None else {"decoder_start_token_id": self.start}
        with torch.inference_mode():
            output = self.reference.generate(ids, **more)
        found: list[int] = output[0, 1:].tolist()
        return found

    def units(self, texts: list[str]) -> list[Unit]:
        call = parse(relations.CODEC, {"input": texts})
        return list(self.loaded.tasks[Task.RELATION_EXTRACTION].prepare(call).units)

    def written(self, units: list[Unit]) -> list[list[int]]:
        return [list(read(array).ids) for array in self.loaded.engine.run(units)]

    def stated(self, tokens: list[int]) -> set[Fact]:
        """The complete triplets: read from the text by an expression, not by our parser."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        text = re.sub(r"</s>|<s>|<pad>|<unk>|[a-z]{2}_XX", " ", text)
        begin, first, second = self.markers
        after = rf"{first}|{second}" if first != "<subj>" else first
        last = rf"{first}|{second}" if first != "<subj>" else second
        found: set[Fact] = set()
        for segment in text.split(begin)[1:]:
            head, *rest = re.split(rf"({first}|{second})", segment)
            pieces = " ".join(rest)
            for tail, relation in re.findall(rf"(?:{after})([^<]*)(?:{last})([^<]*)", pieces):
                fact = (_plain(head), _plain(relation), _plain(tail))
                if all(fact):
                    found.add(fact)
        return found


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()


@pytest.fixture(scope="module", params=[(REBEL, 1), (REBEL, 3), (MREBEL, 1), (MREBEL, 3)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    markers, beams = request.param
    typed = markers is MREBEL
    # Beams as both models' cards ask for them, and a least length, else they end at once.
    penalty = {"length_penalty": 0.0} if beams > 1 else {}
    if typed and beams > 1:
        penalty["min_length"] = 12
    folder = build_tiny_writer(
        tmp_path_factory.mktemp("writer"),
        "mbart" if typed else "bart",
        markers=(*markers, START) if typed else markers,
        generation={"max_length": 40, "num_beams": beams, "no_repeat_ngram_size": 2, **penalty},
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = [tokenizer.convert_tokens_to_ids(marker) for marker in markers]
    for token, more in zip(ids, LIKELY[markers], strict=True):
        model.final_logits_bias[0, token] = more
    model.generation_config.bad_words_ids = [[one, other] for one in ids for other in ids]
    model.save_pretrained(folder)
    start = tokenizer.convert_tokens_to_ids(START) if typed else None
    return Case(load(f"file://{folder}", device="cpu"), model, tokenizer, markers, start)


def test_tokens_are_those_of_generate_alone_and_among_neighbours(case: Case) -> None:
    assert list(case.loaded.tasks) == [Task.RELATION_EXTRACTION]
    expected = [case.generated(text) for text in TEXTS]
    assert len({tuple(tokens) for tokens in expected}) > len(TEXTS) // 2
    assert case.written(case.units(TEXTS)) == expected
    for text, tokens in list(zip(TEXTS, expected, strict=True))[:4]:
        assert case.written(case.units([text])) == [tokens]


def test_the_answer_holds_the_triplets_that_generate_states(case: Case) -> None:
    answer = ask(case.loaded, "/v1/relations", {"input": TEXTS})
    expected = [case.stated(case.generated(text)) for text in TEXTS]
    assert [_answered(entry) for entry in answer["data"]] == expected
    assert sum(map(len, expected)) >= 3, expected


def _answered(entry: dict[str, Any]) -> set[Fact]:
    names = [entity["text"] for entity in entry["entities"]]
    located = [(names[r["head"]], r["label"], names[r["tail"]]) for r in entry["relations"]]
    lost = [(r["head"], r["label"], r["tail"]) for r in entry.get("unlocated", [])]
    facts = [tuple(map(_plain, fact)) for fact in (*located, *lost)]
    return {(head, label, tail) for head, label, tail in facts}
