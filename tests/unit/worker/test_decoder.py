"""The decoder engine by its parts: architectures, chunks, guesses, cancelling, failures."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from sluice_worker.engines.decoder.attention import NotServed
from sluice_worker.engines.decoder.engine import Cancelled, Step, Stopped
from sluice_worker.engines.decoder.network import CausalNetwork
from sluice_worker.engines.decoder.sampling import Sampler, Sampling
from sluice_worker.generation.loading import Generator, prove
from sluice_worker.loader import load_any
from sluice_worker.models.errors import ModelRejected
from tests.support.decoding import STORES, HandEngine, Heard, slot_store
from tests.support.language_models import ARCHITECTURES, END, greedy, random_model
from tests.unit.worker.test_choice import BYTES

STOPS = frozenset([END])


def prompts(count: int) -> list[list[int]]:
    chance = random.Random(9)
    return [[chance.randrange(2, 97) for _ in range(chance.randrange(1, 30))] for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> CausalNetwork:
    return CausalNetwork(random_model("llama"))


@pytest.mark.parametrize("kind", sorted(STORES))
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_writes_what_generate_writes(architecture: str, kind: str) -> None:
    model = random_model(architecture)
    asked = prompts(6)
    expected = [greedy(model, prompt, 14) for prompt in asked]
    network = CausalNetwork(model)
    alone = HandEngine(network, STORES[kind](network, room=300))
    mixed = HandEngine(network, STORES[kind](network, room=300))
    together = [mixed.submit(prompt, 14, stop_ids=STOPS)[0] for prompt in asked]
    mixed.finish()
    for prompt, whole, sequence in zip(asked, expected, together, strict=True):
        assert sequence.ids[sequence.prompt :] == whole
        single, _ = alone.submit(prompt, 14, stop_ids=STOPS)
        alone.finish()
        assert single.ids[single.prompt :] == whole


@pytest.mark.parametrize("tied", [True, False])
def test_a_wide_head_computed_in_pieces_is_the_model_s_own(tied: bool) -> None:
    config = transformers.PhiConfig(
        vocab_size=2500,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.PhiForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    ids = list(range(2, 2500, 100))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    network = CausalNetwork(model)
    assert not isinstance(model.lm_head, torch.nn.Linear), "whole"
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    torch.testing.assert_close(network.reference(ids), expected)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4), "attention"),
        (
            transformers.Gemma2Config(
                vocab_size=97,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
            ),
            "softcap",
        ),
        (
            transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1),
            "attention",
        ),
    ],
)
def test_an_architecture_that_cannot_be_served_is_refused(config: Any, reason: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(NotServed, match=reason):
        CausalNetwork(model).shapes()


def test_no_step_looks_for_what_a_mask_would_need(
    network: CausalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a tenth of a millisecond, and has a GPU waited for."""

    def find(positions: torch.Tensor) -> None:
        raise AssertionError("a mask is made")

    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", find)
    engine = HandEngine(network, slot_store(network, room=200))
    _, heard = engine.submit([5, 6, 7], 3)
    engine.finish()
    assert heard.error is None
    assert heard.reason == "length"


def test_who_loads_it_is_told_what_to_do(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    BYTES.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelRejected, match=r"'bloom' .* its attention .* engine\.name"):
        load_any(f"file://{tmp_path}")


def test_a_token_that_the_model_has_no_number_for_is_text(tmp_path: Path) -> None:
    """Gemma 3's tokenizer has one for images, which its models of texts alone do not know."""
    fast = Tokenizer.from_str(BYTES.to_str())
    size = fast.get_vocab_size()
    fast.add_special_tokens(["<image>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    random_model("llama", vocabulary=size).save_pretrained(tmp_path)
    generator = load_any(f"file://{tmp_path}")
    assert isinstance(generator, Generator)
    ids = generator.maker.tokenizer.spelled("an <image>")
    assert max(ids) < size
    assert generator.maker.tokenizer.text_of(ids) == "an <image>"
    assert generator.maker.vocabulary.bytes_of(ids[0]) == b"an"
    random_model("llama", vocabulary=size - 3).save_pretrained(tmp_path)
    with pytest.raises(ModelRejected, match="together"):
        load_any(f"file://{tmp_path}")


class Proved:
    """A network of which one step goes wrong."""

    def __init__(self, network: CausalNetwork, change: Callable[[torch.Tensor], torch.Tensor]):
        self.model, self.reference, self._network = network.model, network.reference, network
        self.change = change

    def step(self, *arguments: Any) -> torch.Tensor:
        return self.change(self._network.step(*arguments))


def cannot(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("not made for float16\nSee the docs.")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits + 1, "differ by"),
        (lambda logits: logits * torch.nan, "differ by nan"),
        (cannot, "RuntimeError: not made for float16$"),
    ],
    ids=["other", "nan", "fails"],
)
def test_what_is_not_proved_is_not_served(
    network: CausalNetwork, change: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    store = slot_store(network, room=200)
    prove(network, store, list(range(7, 40)))
    with pytest.raises(NotServed, match=reason):
        prove(Proved(network, change), store, list(range(7, 40)))  # type: ignore[arg-type]


def windowed(architecture: str, **members: Any) -> CausalNetwork:
    """A model whose layers look back further than a proof is long."""
    config = transformers.AutoConfig.for_model(
        architecture,
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=100,
        **members,
    )
    torch.manual_seed(0)
    return CausalNetwork(transformers.AutoModelForCausalLM.from_config(config).eval())


def test_a_window_that_only_the_mask_knows_is_not_served() -> None:
    """Some models tell their attention of no window; ours is given no mask that it would be in."""
    network = windowed("phimoe", num_local_experts=2)
    with pytest.raises(NotServed, match="differ by"):
        prove(network, slot_store(network, room=200), list(range(7, 40)))


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_a_window_is_proved_and_stays_what_it_was(architecture: str) -> None:
    network = windowed(architecture, head_dim=8)
    before = [getattr(module, "sliding_window", None) for module in network.model.modules()]
    prove(network, slot_store(network, room=200), list(range(7, 40)))
    after = [getattr(module, "sliding_window", None) for module in network.model.modules()]
    assert after == before
    assert network.model.config.sliding_window == 100


def test_guesses_save_steps_and_change_nothing(network: CausalNetwork) -> None:
    counts = []
    texts = []
    for guesses in (False, True):
        steps: list[Step] = []
        written = []
        # A model of random weights soon goes round in circles, so that guesses come true.
        for prompt in ([8, 9, 10, 11] * 6, [5, 6, 7], [3]):
            engine = HandEngine(network, slot_store(network, room=200))
            engine.engine.scheduler._guesses = guesses
            engine.engine.on_step = steps.append
            written.append(engine.submit(prompt, 30)[0].ids)
            engine.finish()
        counts.append(len(steps))
        texts.append(written)
    assert texts[0] == texts[1]
    assert counts[1] < counts[0]


def test_a_cancelled_sequence_takes_part_in_no_later_step(network: CausalNetwork) -> None:
    engine = HandEngine(network, slot_store(network, room=200))
    sequence, heard = engine.submit([5, 6, 7], 30)
    waiting, unheard = engine.submit([5, 6, 7], 30)
    engine.engine.scheduler._most_running = 1
    engine.step()
    engine.step()
    sequence.cancelled = waiting.cancelled = True
    written = sequence.written
    engine.step()
    assert sequence.written == written
    assert isinstance(heard.error, Cancelled)
    assert isinstance(unheard.error, Cancelled)
    assert not engine.busy
    assert engine.engine.store.used == 0


def test_a_failed_step_fails_its_sequences_and_no_others(
    network: CausalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HandEngine(network, slot_store(network, room=200))
    _, heard = engine.submit([5, 6, 7], 30)
    with monkeypatch.context() as patch:
        patch.setattr(network, "step", lambda *_: 1 / 0)
        engine.step()
    assert isinstance(heard.error, ZeroDivisionError)
    sequence, fine = engine.submit([5, 6, 7], 3)
    engine.finish()
    assert fine.reason == "length"
    assert len(sequence.ids) == 6


def test_a_listener_that_fails_hurts_nobody_else(network: CausalNetwork) -> None:
    class Failing(Heard):
        def take(self, drawn: Any) -> Any:
            raise ValueError("cannot be told")

    engine = HandEngine(network, slot_store(network, room=200))
    sequence, _ = engine.submit([5, 6, 7], 30)
    sequence.listener = failing = Failing()
    _, fine = engine.submit([5, 6, 7], 3)
    engine.finish()
    assert isinstance(failing.error, ValueError)
    assert fine.reason == "length"


@pytest.mark.parametrize("method", ["mask", "advance"])
def test_a_grammar_that_fails_hurts_nobody_else(network: CausalNetwork, method: str) -> None:
    class Failing:
        ended = False

        def mask(self, row: torch.Tensor) -> None: ...

        def advance(self, token: int) -> None: ...

    def fail(_: Any) -> None:
        raise ValueError("too many items")

    failing = Failing()
    setattr(failing, method, fail)
    engine = HandEngine(network, slot_store(network, room=200))
    steps: list[Step] = []
    engine.engine.on_step = steps.append
    drawn = Sampling(temperature=1.0, seed=3)
    expected, _ = engine.submit([5, 6, 7], 3, sampler=Sampler(drawn))
    engine.finish()
    _, refused = engine.submit([8, 9], 30, sampler=Sampler(Sampling(), failing))
    sequence, fine = engine.submit([5, 6, 7], 3, sampler=Sampler(drawn))
    engine.finish()
    assert isinstance(refused.error, ValueError)
    assert refused.tokens == []
    assert fine.reason == "length"
    assert sequence.ids == expected.ids
    assert not any(step.error for step in steps), "the engine is well"


def test_a_prompt_is_read_in_chunks_beside_those_that_write(network: CausalNetwork) -> None:
    engine = HandEngine(network, slot_store(network, room=200), budget=17)
    writer, _ = engine.submit([5], 40)
    engine.step()
    reader, _ = engine.submit([7] * 50, 2)
    for computed in (16, 32, 48):
        before = writer.written
        engine.step()
        assert reader.computed == computed
        assert writer.written > before


def test_the_choices_of_a_prompt_read_it_once(network: CausalNetwork) -> None:
    engine = HandEngine(network, slot_store(network, room=400), running=8)
    prompt = list(range(2, 50))
    first, _ = engine.submit(prompt, 4)
    others = [engine.submit(prompt, 4, leader=first)[0] for _ in range(3)]
    engine.finish()
    assert [other.cached for other in others] == [32, 32, 32]
    assert {tuple(other.ids) for other in others} == {tuple(first.ids)}


def test_what_a_stop_wants_ends_a_sequence(network: CausalNetwork) -> None:
    class Stopping(Heard):
        def take(self, drawn: Any) -> Any:
            super().take(drawn)
            return "stop" if len(self.tokens) == 3 else None

    engine = HandEngine(network, slot_store(network, room=200))
    sequence, _ = engine.submit([5, 6, 7], 30)
    sequence.listener = listener = Stopping()
    engine.finish()
    assert listener.reason == "stop"
    assert len(listener.tokens) == 3


def test_a_thread_serves_callers_and_ends(network: CausalNetwork) -> None:
    hand = HandEngine(network, slot_store(network, room=400))
    engine = hand.engine
    over = threading.Event()
    engine.on_step = lambda step: over.set() if any(s.done for s in step.sequences) else None
    engine.start()
    from sluice_worker.engines.decoder.sequence import Sequence

    heard = Heard()
    engine.submit(Sequence([5, 6, 7], 4, Sampler(), heard))
    assert over.wait(60)
    assert heard.reason == "length"
    endless = Heard()
    engine.submit(Sequence([5, 6, 7], 50, Sampler(), endless))
    engine.stop()
    assert endless.reason == "length" or isinstance(endless.error, Stopped)
    with pytest.raises(Stopped):
        engine.submit(Sequence([5], 4, Sampler(), Heard()))


# Choosing tokens ----------------------------------------------------------------------------------


def filtered(sampling: Sampling, row: torch.Tensor) -> torch.Tensor:
    """The distribution that transformers' own processors leave."""
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = TemperatureLogitsWarper(sampling.temperature)(None, row[None])  # type: ignore[arg-type]
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)  # type: ignore[arg-type]
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)  # type: ignore[arg-type]
    if sampling.min_p:
        scores = MinPLogitsWarper(sampling.min_p)(None, scores)  # type: ignore[arg-type]
    return scores[0].softmax(0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, seed=1),
        Sampling(temperature=1.3, top_k=5, seed=2),
        Sampling(temperature=1.0, top_p=0.6, seed=3),
        Sampling(temperature=1.0, top_k=20, top_p=0.8, seed=4),
        Sampling(temperature=0.9, min_p=0.2, seed=5),
        Sampling(temperature=1.5, top_k=30, top_p=0.9, min_p=0.05, seed=6),
    ],
)
def test_what_is_drawn_has_transformers_distribution(sampling: Sampling) -> None:
    torch.manual_seed(0)
    row = torch.randn(40) * 2
    expected = filtered(sampling, row)
    sampler = Sampler(sampling)
    drawn = torch.bincount(torch.tensor([sampler.draw(row) for _ in range(4000)]), minlength=40)
    assert set(drawn.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
    assert (drawn / 4000 - expected).abs().max() < 0.03


def test_a_nucleus_wider_than_what_is_looked_at_first_is_right() -> None:
    row = torch.zeros(3000)
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=1))
    values, tokens = sampler._candidates(row)
    assert len(values) == pytest.approx(2700, abs=2)
    assert tokens is not None


def test_a_seed_repeats_itself_beside_any_neighbour(network: CausalNetwork) -> None:
    def drawn(neighbours: int) -> list[int]:
        engine = HandEngine(network, slot_store(network, room=400), running=8)
        sampler = Sampler(Sampling(temperature=1.5, seed=11))
        for number in range(neighbours):
            engine.submit([number + 3], 10, sampler=Sampler(Sampling(temperature=2.0)))
        sequence, _ = engine.submit([4, 5, 6], 10, sampler=sampler)
        engine.finish()
        return sequence.ids

    assert drawn(0) == drawn(5)


def test_penalties_and_bias_change_the_logits() -> None:
    row = torch.tensor([2.0, -2.0, 1.0, 0.0])
    sampling = Sampling(presence=0.5, frequency=0.25, repetition=2.0, bias={3: 7.0})
    Sampler(sampling).adjust(row, [0, 1, 0, 0], 1)
    # Repetition: 2/2 and -2·2. Written since: 1 once, 0 twice.
    assert row.tolist() == pytest.approx([1 - 0.5 - 0.5, -4 - 0.75, 1, 7])


def test_probabilities_are_reported_before_any_rule(network: CausalNetwork) -> None:
    model = random_model("llama")
    prompt = [5, 6, 7]
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    engine = HandEngine(network, slot_store(network, room=200))
    rules = Sampling(logprobs=4, bias={9: 100.0})
    _, heard = engine.submit(prompt, 1, sampler=Sampler(rules))
    engine.finish()
    assert heard.tokens == [9]
    assert heard.drawn[0].logprob == pytest.approx(float(logprobs[9]), abs=1e-4)
    top = logprobs.topk(4)
    assert [token for token, _ in heard.drawn[0].top] == top.indices.tolist()


def test_the_engine_is_small() -> None:
    folder = Path("worker/sluice_worker/engines/decoder")
    lines = [line for path in folder.glob("*.py") for line in path.read_text().splitlines()]
    assert len([line for line in lines if line.strip()]) <= 1500, "blank ones do not count"
