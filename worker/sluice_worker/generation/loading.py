"""From a verified folder to a model that generates: tokenizer, template, network, store, engine.

Called by ``loader`` on the thread that loads. Before the model is called ready its own logits are
compared with the engine's, and a few steps tell what a step costs.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sluice_api.tasks import Task
from sluice_api.wording import sentence
from sluice_worker import device as hardware
from sluice_worker.cost import CostModel, Load
from sluice_worker.engines.decoder.attention import LayerShape, NotServed
from sluice_worker.engines.decoder.engine import DecoderEngine
from sluice_worker.engines.decoder.network import CausalNetwork, StepNetwork
from sluice_worker.engines.decoder.store import Row, Store
from sluice_worker.engines.pretrained import load_pretrained
from sluice_worker.engines.without_compiler import without_compiler
from sluice_worker.generation.defaults import defaults_of
from sluice_worker.generation.grammar import Vocabulary
from sluice_worker.generation.prompts import PromptMaker
from sluice_worker.generation.template import load_template
from sluice_worker.models.description import Description
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import Manifest
from sluice_worker.models.tokenizer import Tokenizer

with without_compiler():
    from transformers import AutoModelForCausalLM

log = logging.getLogger(__name__)

MOST_RUNNING = {"cpu": 32, "cuda": 256}
MEMORY_SHARE = {"cpu": 0.3, "cuda": 0.8}
"""Of the memory that is free once the weights are in, what keys and values may take."""
_PROOF_TOKENS = 24
_PROOF_WINDOW = 8
"""How far layers that look back only so far may look in a proof: less than it is long."""
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits between two ways to compute the same, as a share of the largest."""


@dataclass(frozen=True, slots=True, repr=False)
class Generator:
    """A model that generates, in memory.

    Attributes:
        tasks: what it can do, the one it is made for first.
        answer_digest: see ``sluice_api.digests``.
        max_input_tokens: of a prompt and what follows it together.
    """

    uri: str
    tasks: tuple[Task, ...]
    maker: PromptMaker
    engine: DecoderEngine
    answer_digest: str
    max_input_tokens: int
    dtype: str
    dtype_reason: str
    device: str

    def __repr__(self) -> str:
        return f"<Generator {self.uri}: {', '.join(self.tasks)}; {self.engine!r}>"


def offered(manifest: Manifest, wanted: Task | None) -> tuple[Task, ...]:
    """What a generating model can do. Raises ModelRejected when that is not what is wanted."""
    chats = (Task.CHAT,) if load_template(manifest) is not None else ()
    tasks = (*chats, Task.TEXT_GENERATION)
    if wanted is None or wanted in tasks:
        return tuple(sorted(tasks, key=lambda task: task != wanted))
    if wanted == Task.CHAT:
        raise ModelRejected(
            "model.task: got chat, but the model has no chat template: neither the file "
            "chat_template.jinja nor chat_template in tokenizer_config.json. Add one, or set "
            "text-generation."
        )
    raise ModelRejected(
        f"model.task: got {wanted}, but this model offers {', '.join(tasks)}. "
        "Set one of these, or auto."
    )


def prompt_maker(manifest: Manifest, description: Description, tokenizer: Tokenizer) -> PromptMaker:
    """Everything that makes prompts of calls. Raises ModelRejected."""
    defaults = defaults_of(manifest, description.config)
    vocabulary = Vocabulary(tokenizer.serialized, description.vocabulary, defaults.stop_ids)
    return PromptMaker(
        tokenizer,
        vocabulary,
        defaults,
        load_template(manifest),
        most_tokens=description.max_tokens,
    )


def build_engine(
    manifest: Manifest,
    most_tokens: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    most_running: int,
    goal_seconds: float,
) -> DecoderEngine:
    """Read the weights, make room for keys and values, and prove that both work together.

    Raises ModelRejected.
    """
    model = load_pretrained(AutoModelForCausalLM, manifest, dtype=dtype, device=device)
    running = min(most_running, MOST_RUNNING[device.type])
    try:
        network = CausalNetwork(model)
        # The proof computes two texts side by side.
        store = make_store(
            network.shapes(), most_tokens, max(2, running), dtype=dtype, device=device
        )
        count = min(_PROOF_TOKENS, most_tokens - 1)
        prove(network, store, [token % network.vocabulary for token in range(7, 7 + 3 * count, 3)])
    except NotServed as error:
        raise ModelRejected(
            f"config.json: the architecture {model.config.model_type!r} cannot be served by this "
            f"engine: {sentence(str(error))} "
            "Set engine.name to an engine that serves it, or use a model of another architecture, "
            "such as Llama, Qwen, Mistral, GPT-NeoX or GPT-2."
        ) from error
    cost = CostModel()
    _warm_up(network, store, cost, min(64, most_tokens - 1))
    stepping: StepNetwork = network
    if device.type == "cuda":
        stepping = _graphed(network, store, most_tokens, dtype)
    return DecoderEngine(
        stepping, store, most_running=running, cost=cost, goal_seconds=goal_seconds
    )


def _graphed(
    network: CausalNetwork, store: Store, most_tokens: int, dtype: torch.dtype
) -> StepNetwork:
    """The network with its steps captured as they come up. Only a GPU's worker imports it."""
    from sluice_worker.engines.decoder.graphs import GraphedNetwork, capture_cuda, cuda_has_room
    from sluice_worker.engines.decoder.pages import PagedStore

    assert isinstance(store, PagedStore), "what a GPU has"
    return GraphedNetwork(
        network,
        store,
        longest=most_tokens,
        capture=capture_cuda,
        has_room=cuda_has_room,
        tolerance=_TOLERANCE[dtype],
    )


def prove(network: CausalNetwork, store: Store, ids: list[int]) -> None:
    """Compute ``ids`` in pieces beside themselves, and hold the logits to the model's own.

    Raises:
        NotServed: they differ, are no numbers, or cannot be computed so.
    """
    try:
        with _short_windows(network.model):
            difference = _difference_in_pieces(network, store, ids)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        # Code we do not know, called in a way its authors may not have meant.
        reason = str(error).partition("\n")[0]
        raise NotServed(f"{type(error).__name__}: {reason}") from error
    if not difference <= _TOLERANCE[network.model.dtype]:  # NaN is never smaller.
        raise NotServed(f"its logits differ by {difference:.1e} when computed in pieces")


@contextmanager
def _short_windows(model: Any) -> Iterator[None]:
    """Shorten the model's sliding windows, which a proof would else be too short to show.

    Some models put theirs into the mask alone, and the attention is told nothing of it.
    """
    owners: dict[int, tuple[Any, int]] = {}
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            window = getattr(owner, "sliding_window", None)
            if isinstance(window, int):
                owners[id(owner)] = (owner, window)
    try:
        for owner, window in owners.values():
            owner.sliding_window = min(window, _PROOF_WINDOW)
        yield
    finally:
        for owner, window in owners.values():
            owner.sliding_window = window


def _difference_in_pieces(network: CausalNetwork, store: Store, ids: list[int]) -> float:
    """The largest difference of two logits, as a share of the largest (or of 1)."""
    expected = network.reference(ids)[-1]
    first, second = store.open(ids, b"proof 1"), store.open(ids, b"proof 2")
    assert first is not None, "the store is new"
    assert second is not None, "the store is new"
    half, whole = len(ids) // 2, len(ids)
    for opened in (first, second):
        assert store.reserve(opened.place, whole)
    rows = [Row(first.place, 0, half), Row(second.place, 0, whole - 1)]
    network.step(store, rows, ids[:half] + ids[:-1], [0])
    rows = [Row(first.place, half, whole - half), Row(second.place, whole - 1, 1)]
    found = network.step(store, rows, ids[half:] + ids[-1:], [whole - half - 1, whole - half])
    store.close(first.place)
    store.close(second.place)
    scale = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) / scale


def make_store(
    shapes: Mapping[int, LayerShape],
    most_tokens: int,
    running: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Store:
    """Room for as many tokens as memory allows, and never more than can be asked for."""
    numbers = sum(shape.heads * (shape.key_size + shape.value_size) for shape in shapes.values())
    token_bytes = numbers * dtype.itemsize
    if device.type == "cpu":
        free = hardware.available_memory_bytes()
    else:
        free = torch.cuda.mem_get_info(device)[0]
    room = min(int(free * MEMORY_SHARE[device.type]) // token_bytes, running * most_tokens)
    if room < most_tokens:
        raise ModelRejected(
            f"model.maxInputTokens: {most_tokens} tokens take {most_tokens * token_bytes} bytes of "
            f"keys and values, and there is room for {room} tokens. Set a smaller one, or give the "
            "service more memory."
        )
    log.info("room for tokens", extra={"tokens": room, "token_bytes": token_bytes})
    if device.type == "cpu":
        from sluice_worker.engines.decoder.slots import SlotStore

        return SlotStore(shapes, slots=running, length=most_tokens, room=room, dtype=dtype)
    from sluice_worker.engines.decoder.pages import PagedStore, check_device

    check_device(shapes, dtype=dtype, capability=torch.cuda.get_device_capability(device))
    return PagedStore(shapes, room=room, dtype=dtype, device=device)


def _warm_up(network: CausalNetwork, store: Store, cost: CostModel, tokens: int) -> None:
    """Let the cost model see steps of three sizes."""
    opened = store.open([0] * (tokens + 1), b"warm-up")
    assert opened is not None, "nothing else has begun"
    store.reserve(opened.place, tokens)
    for count in (tokens, 1, max(1, tokens // 4)):
        started = time.monotonic()
        logits = network.step(store, [Row(opened.place, 0, count)], [0] * count, [count - 1])
        float(logits[0, 0])  # Until then a GPU may only have been told what to do.
        cost.observe(Load(count, count * count), time.monotonic() - started)
    store.close(opened.place)
