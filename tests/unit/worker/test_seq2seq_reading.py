"""Sources are read packed, each as if alone; what cannot be read so is read in buckets."""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sluice_worker.engines.seq2seq import reading
from sluice_worker.engines.seq2seq.positions import tell_positions
from sluice_worker.engines.seq2seq.reading import BucketReader, PackedReader, reader_for
from tests.support.models import scramble

CPU = torch.device("cpu")
VOCABULARY = 90
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "max_position_embeddings": 80,
}  # fmt: skip
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
ARCHITECTURES = {
    "bart": _BART,
    "mbart": _BART,
    "marian": {**_BART, "pad_token_id": 89, "decoder_start_token_id": 89},
    "m2m_100": _BART,
    "pegasus": _BART,
    "plbart": _BART,
    "blenderbot": _BART,
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
}


def made(architecture: str, **settings: Any) -> Any:
    config = transformers.AutoConfig.for_model(architecture, vocab_size=VOCABULARY, **settings)
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    scramble(model)
    return model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param, **ARCHITECTURES[request.param])


@pytest.fixture
def bart() -> Any:
    return made("bart", **_BART)


def sources(*lengths: int) -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(4, 80) for _ in range(length)] for length in lengths]


@torch.inference_mode()
def alone(model: Any, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    encoder = model.get_encoder()
    return [encoder(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in texts]


@torch.inference_mode()
def read(reader: Any, texts: Sequence[Sequence[int]]) -> Tensor:
    states: Tensor = reader.read(texts)
    return states


def test_packed_sources_are_read_as_if_alone(model: Any) -> None:
    """Together they are longer than any text may be, so positions start anew in each."""
    texts = sources(1, 70, 5, 33, 5, 5, 79, 12, 33)
    expected = alone(model, texts)
    reader = reader_for(model, CPU)
    assert isinstance(reader, PackedReader)
    states = read(reader, texts)
    assert states.shape[:2] == (9, 79)
    for mine, own in zip(states, expected, strict=True):
        torch.testing.assert_close(mine[: len(own)], own, atol=1e-5, rtol=1e-5)
        assert not mine[len(own) :].any()
    for mine, own in zip(alone(model, texts), expected, strict=True):
        assert torch.equal(mine, own), "the model itself is as it was"


def test_the_packed_encoder_has_no_weights_of_its_own(model: Any) -> None:
    reader = reader_for(model, CPU)
    assert isinstance(reader, PackedReader)
    own = {tensor.data_ptr() for tensor in model.get_encoder().parameters()}
    assert {tensor.data_ptr() for tensor in reader._encoder.parameters()} == own


def test_buckets_say_the_same(bart: Any) -> None:
    texts = sources(40, 3, 38, 17)
    packed, buckets = (read(kind(bart, CPU), texts) for kind in (PackedReader, BucketReader))
    torch.testing.assert_close(packed, buckets, atol=1e-5, rtol=1e-5)


def test_relative_positions_are_computed_for_the_longest_text_alone() -> None:
    """In a row of thousands of tokens, those of all tokens would fill the memory."""
    model = made("t5", **_T5)
    reader = PackedReader(model, CPU)
    asked: list[int] = []
    [biased] = [m for m in reader._encoder.modules() if hasattr(m, "relative_attention_bias")]
    biased.relative_attention_bias.register_forward_hook(
        lambda module, arguments, output: asked.append(output.shape[0])
    )
    read(reader, sources(*[20] * 30))
    assert asked == [20]


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("longt5", _T5, "not known to read token by token"),
        ("switch_transformers", _T5, "not known to read token by token"),
        ("led", {**_BART, "max_encoder_position_embeddings": 80, "attention_window": 8}, "led"),
    ],
)
def test_other_encoders_read_in_buckets(
    architecture: str, settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert isinstance(reader_for(made(architecture, **settings), CPU), BucketReader)
    assert reason in caplog.records[-1].reason  # type: ignore[attr-defined]


def test_an_encoder_that_asks_for_a_mask_reads_in_buckets(
    bart: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for layer in bart.get_encoder().layers:
        layer.self_attn.is_causal = True
    assert isinstance(reader_for(bart, CPU), BucketReader)
    assert "asks for" in caplog.records[-1].reason  # type: ignore[attr-defined]


def test_what_is_not_equal_reads_in_buckets(
    bart: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here: positions that go on from one text to the next."""
    caplog.set_level("INFO")
    monkeypatch.setattr(reading, "positions_at", lambda places: nullcontext())
    assert tell_positions(bart.get_decoder())
    texts = sources(12, 5)
    reader = reader_for(bart, CPU)
    assert isinstance(reader, BucketReader)
    assert "differ by" in caplog.records[-1].reason  # type: ignore[attr-defined]
    for mine, own in zip(read(reader, texts), alone(bart, texts), strict=True):
        torch.testing.assert_close(mine[: len(own)], own, atol=1e-5, rtol=1e-5)
