"""Models of every kind on a GPU, loaded and warmed up as a worker does it. `make test-gpu`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer

from sluice_worker.device import set_threads
from sluice_worker.engines.base import Array
from sluice_worker.engines.decoder.graphs import USES
from sluice_worker.engines.decoder.sampling import Sampler
from sluice_worker.engines.decoder.sequence import Sequence
from sluice_worker.engines.seq2seq.engine import Seq2SeqEngine
from sluice_worker.examples import translation
from sluice_worker.generation.loading import Generator
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load, load_any
from sluice_worker.models.errors import ModelRejected
from sluice_worker.warmup import warm_up
from tests.support import models, trained
from tests.support.accelerator import need_gpu
from tests.support.decoding import Heard
from tests.support.language_models import greedy
from tests.support.model_calls import ask, asking
from tests.support.pretended_gpu import pretended_gpu
from tests.support.trained import Post

pytestmark = pytest.mark.gpu

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
SCORES: dict[str, Callable[[Post], float]] = {
    "inferrer": trained.inferring_score,
    "tagger": trained.tagging_score,
    "reader": trained.reading_score,
    "masked": trained.filling_score,
    "reranker": trained.ranking_score,
    "relator": trained.relating_score,
    "translator": partial(trained.translating_score, language="bo"),
    "summarizer": trained.summing_up_score,
    "relation_writer": trained.writing_relations_score,
}


SIXTEEN_BITS = [("pretended", "float16"), ("gpu", "float16"), ("gpu", "bfloat16")]
ALL_DTYPES = [("pretended", "float32"), ("gpu", "float32"), *SIXTEEN_BITS]


@contextmanager
def on(place: str) -> Iterator[None]:
    if place == "pretended":
        with pretended_gpu():
            yield
    else:
        need_gpu()
        yield


# Models are trained before a GPU is pretended, which would take long: their folders come first.


@pytest.fixture(params=SCORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str) -> Path:
    found: Path = getattr(trained.Models(), kind)
    return found


@pytest.fixture
def translator() -> Path:
    return trained.Models().translator


@pytest.fixture
def talker() -> Path:
    return trained.Models().talker


@pytest.fixture(params=ALL_DTYPES, ids="-".join)
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the model; on a GPU, and on a pretended one."""
    place, name = request.param
    with on(place):
        yield name


@pytest.fixture(params=SIXTEEN_BITS, ids="-".join)
def sixteen_bits(request: pytest.FixtureRequest) -> Iterator[str]:
    """As ``dtype``, of 16 bits."""
    place, name = request.param
    with on(place):
        yield name


def warm(model: LoadedModel) -> LoadedModel:
    assert model.device == "cuda"
    warm_up(model.engine, model.canary, dtype=model.dtype, threads=1, set_threads=set_threads)
    return model


def way(model: LoadedModel) -> str:
    """How the engine computes, as far as that is settled when a model is loaded."""
    engine = model.engine
    return f"read {engine.reader!r}" if isinstance(engine, Seq2SeqEngine) else engine.name


def answers(model: LoadedModel) -> list[Array]:
    return model.engine.run(model.canary)


def assert_close(there: LoadedModel, here: LoadedModel, dtype: str) -> None:
    """What the same model says in both places; ``dtype`` is that of the one on the GPU."""
    for got, expected in zip(answers(there), answers(here), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype])


def test_a_trained_model_knows_what_it_knew(kind: str, folder: Path, dtype: str) -> None:
    there = warm(load(f"file://{folder}", device="cuda", dtype=dtype))
    here = load(f"file://{folder}", device="cpu")
    assert SCORES[kind](asking(there)) >= SCORES[kind](asking(here)) - 0.05
    assert way(there) == way(here)


def test_what_is_drawn_follows_from_its_seed(translator: Path, dtype: str) -> None:
    model = load(f"file://{translator}", device="cuda", dtype=dtype)
    [text, *_] = translation.data()[1]
    parameters = {"target": "bo", "temperature": 2.0, "num_beams": 1}

    def drawn(seed: int) -> str:
        body = {"input": [text], "parameters": {**parameters, "seed": seed}}
        written: str = ask(model, "/v1/translate", body)["data"][0]["text"]
        return written

    texts = [drawn(seed) for seed in range(8)]
    assert texts == [drawn(seed) for seed in range(8)]
    assert len(set(texts)) > 1


@pytest.mark.parametrize("architecture", sorted(models.ARCHITECTURES))
def test_an_encoder_says_what_it_says_on_a_cpu(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    labels = ("red", "green") if architecture == "bart" else ()  # A bare one writes texts.
    folder = models.build_tiny(tmp_path, architecture, labels=labels)
    there = warm(load(f"file://{folder}", device="cuda", dtype=dtype, task=None))
    here = load(f"file://{folder}", device="cpu")
    assert_close(there, here, dtype)
    assert way(there) == way(here)


def test_heads_of_a_size_that_the_kernel_does_not_take_are_served(
    tmp_path: Path, sixteen_bits: str
) -> None:
    folder = models.build_tiny(tmp_path, "bert", hidden_size=36, num_attention_heads=3)
    there = warm(load(f"file://{folder}", device="cuda", dtype=sixteen_bits))
    here = load(f"file://{folder}", device="cpu")
    assert_close(there, here, sixteen_bits)


def test_a_trained_model_writes_what_generate_writes(talker: Path, sixteen_bits: str) -> None:
    tokenizer = Tokenizer.from_file(str(talker / "tokenizer.json"))
    asked = ["What does the dog say?", "Where does the bee live?", "Where does the owl live?"]
    prompts = [tokenizer.encode(f"<|user|>{text}<|end|><|assistant|>").ids for text in asked]
    alone = transformers.AutoModelForCausalLM.from_pretrained(talker, dtype=sixteen_bits).to("cuda")
    expected = [greedy(alone.eval(), prompt, 24) for prompt in prompts]
    model = load_any(f"file://{talker}", device="cuda", dtype=sixteen_bits)
    assert isinstance(model, Generator)
    scheduler = model.engine.scheduler
    captured = False
    for _ in range(USES):
        stops = model.maker.defaults.stop_ids
        sequences = [Sequence([*ids], 24, Sampler(), Heard(), stop_ids=stops) for ids in prompts]
        for sequence in sequences:
            scheduler.add(sequence)
        while any(not sequence.done for sequence in sequences):
            assert model.engine.advance() is not None
        assert [sequence.ids[sequence.prompt :] for sequence in sequences] == expected
        if captured:  # So this round was replayed.
            break
        captured = model.engine.network.captures["captured"] > 0
    assert captured
    assert "failed" not in model.engine.network.captures


@pytest.mark.usefixtures("sixteen_bits")
def test_what_a_gpu_cannot_do_is_refused_by_name(talker: Path) -> None:
    with pytest.raises(ModelRejected, match=r"model\.dtype: got float32"):
        load_any(f"file://{talker}", device="cuda", dtype="float32")
