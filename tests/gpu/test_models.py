"""Models of every kind on a GPU, loaded and warmed up as a worker does it. `make test-gpu`."""

from collections.abc import Callable
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
from sluice_worker.generation.loading import Generator
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load, load_any
from sluice_worker.models.errors import ModelRejected
from sluice_worker.warmup import warm_up
from tests.support import models, trained
from tests.support.accelerator import need_gpu
from tests.support.decoding import Heard
from tests.support.language_models import greedy
from tests.support.model_calls import asking
from tests.support.trained import Post

pytestmark = pytest.mark.gpu

DTYPES = ("float32", "float16", "bfloat16")
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


@pytest.fixture(autouse=True)
def _on_a_gpu() -> None:
    need_gpu()


def warm(model: LoadedModel) -> LoadedModel:
    assert model.device == "cuda"
    warm_up(model.engine, model.canary, dtype=model.dtype, threads=1, set_threads=set_threads)
    return model


def answers(model: LoadedModel) -> list[Array]:
    return model.engine.run(model.canary)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SCORES)
def test_a_trained_model_knows_what_it_knew(kind: str, dtype: str) -> None:
    folder = getattr(trained.Models(), kind)
    post = asking(warm(load(f"file://{folder}", device="cuda", dtype=dtype)))
    on_a_cpu = SCORES[kind](asking(load(f"file://{folder}", device="cpu")))
    assert SCORES[kind](post) >= on_a_cpu - 0.05


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", sorted(models.ARCHITECTURES))
def test_an_encoder_says_what_it_says_on_a_cpu(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    folder = models.build_tiny(tmp_path, architecture)
    there = warm(load(f"file://{folder}", device="cuda", dtype=dtype, task=None))
    here = load(f"file://{folder}", device="cpu")
    tolerance = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}[dtype]
    for got, expected in zip(answers(there), answers(here), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def test_heads_of_a_size_that_the_kernel_does_not_take_are_served(tmp_path: Path) -> None:
    folder = models.build_tiny(tmp_path, "bert", hidden_size=36, num_attention_heads=3)
    there = warm(load(f"file://{folder}", device="cuda", dtype="float16"))
    here = load(f"file://{folder}", device="cpu")
    for got, expected in zip(answers(there), answers(here), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_trained_model_writes_what_generate_writes(dtype: str) -> None:
    folder = trained.Models().talker
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = ["What does the dog say?", "Where does the bee live?", "Where does the owl live?"]
    prompts = [tokenizer.encode(f"<|user|>{text}<|end|><|assistant|>").ids for text in asked]
    alone = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to("cuda")
    expected = [greedy(alone.eval(), prompt, 24) for prompt in prompts]
    model = load_any(f"file://{folder}", device="cuda", dtype=dtype)
    assert isinstance(model, Generator)
    scheduler = model.engine.scheduler
    for _ in range(USES):  # Until the steps of three rows are replayed.
        stops = model.maker.defaults.stop_ids
        sequences = [Sequence([*ids], 24, Sampler(), Heard(), stop_ids=stops) for ids in prompts]
        for sequence in sequences:
            scheduler.add(sequence)
        while any(not sequence.done for sequence in sequences):
            assert model.engine.advance() is not None
        assert [sequence.ids[sequence.prompt :] for sequence in sequences] == expected
    assert model.engine.network.captures["captured"] > 0
    assert "failed" not in model.engine.network.captures


def test_what_a_gpu_cannot_do_is_refused_by_name() -> None:
    with pytest.raises(ModelRejected, match=r"model\.dtype: got float32"):
        load_any(f"file://{trained.Models().talker}", device="cuda", dtype="float32")
