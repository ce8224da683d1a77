"""From a model's address to a model in memory: fetch, verify, describe, build.

Called once, on a thread of its own, by the worker's start-up. Hashing the files and importing torch
take about as long, so they run side by side.
"""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluice_api.digests import answer_digest
from sluice_api.tasks import Task, one_model_does
from sluice_api.wire import Phase
from sluice_worker import device as hardware
from sluice_worker.engines.base import Unit, unit_of
from sluice_worker.loaded import LoadedModel
from sluice_worker.models.description import Description, describe, known_markers
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import (
    CHAT_TEMPLATE,
    SENTENCE_FILES,
    TOKENIZER_FILES,
    TOOL_TEMPLATE,
    Manifest,
    verify,
)
from sluice_worker.models.sources.base import Report, silent
from sluice_worker.models.sources.registry import PINNED_CONTENT, fetch
from sluice_worker.models.tokenizer import MASK_TOKENS, Tokenizer, load_tokenizer
from sluice_worker.tasks.base import Material, TaskModule
from sluice_worker.tasks.registry import needs, offered
from sluice_worker.writing import prepare

if TYPE_CHECKING:
    from sluice_worker.engines.base import Engine
    from sluice_worker.generation.loading import Generator

log = logging.getLogger(__name__)

ANSWERS_VERSION = 7
"""Of what this code makes of a model and an input: raise it with every change of code that changes
an answer, so that nothing computed before is taken from a cache."""
_CANARY_TOKENS = (8, 48, 192)
_CANARY_TEXT = "The quick brown fox jumps over the lazy dog while the river runs to the sea. " * 24


def load(uri: str, **options: Any) -> LoadedModel:
    """:func:`load_any` for a model that does not generate."""
    model = load_any(uri, **options)
    assert isinstance(model, LoadedModel), "it does not generate"
    return model


def load_any(
    uri: str,
    *,
    revision: str | None = None,
    task: Task | None = None,
    dtype: str = "auto",
    device: str = "auto",
    max_input_tokens: int | None = None,
    batch_max_size: int = 256,
    goal_seconds: float = 0.25,
    report: Report = silent,
) -> "LoadedModel | Generator":
    """Load a model; blocks for seconds, or for minutes where it must be downloaded.

    Args:
        uri: ``file://``, ``python://`` or ``hf://`` (see ``models.sources``).
        revision: what the source understands, or ``sha256:…`` to pin the content; None for any.
        task: the one the model must do, which then comes first; None to take it from the model.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_input_tokens: None for the model's own limit.
        batch_max_size, goal_seconds: sequences that are generated side by side, and how long one
            step of them may take.
        report: told the phase, the progress in it (0–1) and a line for people.

    Raises:
        ModelError: one of its subclasses, with an exit code and the next step.
    """
    # Only a source that really downloads says so.
    report(Phase.LOADING, None, f"looking for {uri}")
    snapshot = fetch(uri, revision or None, report)
    pinned = revision if revision and revision.startswith(PINNED_CONTENT) else None
    report(Phase.LOADING, 0.0, "verifying files")
    with ThreadPoolExecutor(1, thread_name_prefix="import") as pool:
        importing = pool.submit(import_module, "sluice_worker.engines.selection")
        with _files_as_expected():
            known = _read(verify(snapshot, pinned), max_input_tokens, task)
        report(Phase.LOADING, 0.2, "importing torch")
        importing.result()
    chosen = hardware.choose_device(device)
    kind = hardware.resolve_dtype(
        dtype,
        chosen,
        _cpu_flags(),
        stored=known.description.stored_dtype,
        bfloat16=hardware.computes_bfloat16(chosen),
    )
    report(Phase.LOADING, 0.6, "reading weights")
    model: LoadedModel | Generator
    with _files_as_expected(), _room_on_a_gpu(kind.name):
        if known.description.head == "causal":
            model = _generator(uri, known, task, kind, chosen, batch_max_size, goal_seconds)
        else:
            model = _model(uri, known, kind, chosen)
    report(Phase.LOADING, 1.0, "loaded")
    _log(model, snapshot.version, known.manifest)
    return model


@contextmanager
def _files_as_expected() -> Iterator[None]:
    """Raises ModelRejected where a model's files hold something of another kind than they do
    elsewhere: everything that reads them trusts in their types."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        log.exception("the model's files were not understood")
        reason = " ".join(str(error).split())
        raise ModelRejected(
            f"The model's files hold something unexpected ({type(error).__name__}: {reason}). "
            "Compare its config.json and its tokenizer's files with those of the original model, "
            "or save it again: model.save_pretrained(folder)."
        ) from error


@contextmanager
def _room_on_a_gpu(dtype: str) -> Iterator[None]:
    """Raises ModelRejected where the model is too large for the device."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise ModelRejected(
            f"hardware.gpu: the model in {dtype} does not fit into the GPU's memory ({reason}) "
            "Set hardware.gpu.product or hardware.gpu.resource to a larger GPU, model.dtype to one "
            "of 16 bits, or take a smaller model."
        ) from error


@dataclass(frozen=True, slots=True)
class _Known:
    """What a model's files say, before torch is there and a weight is read.

    Attributes:
        tokenizer: None for a model that reads one text and writes another, whose tasks have it.
        mask_id: of a masked language model.
        tasks, canary: see :class:`LoadedModel`; empty for a model that generates, which
            ``generation.loading`` knows how to ask.
    """

    manifest: Manifest
    description: Description
    tokenizer: Tokenizer | None = None
    mask_id: int | None = None
    tasks: Mapping[Task, TaskModule] = field(default_factory=dict)
    canary: tuple[Unit, ...] = ()

    def answer_digest(self, dtype: str) -> str:
        return answer_digest(answer_parts(self.manifest, dtype, self.description.max_tokens))


def _read(manifest: Manifest, max_input_tokens: int | None, wanted: Task | None) -> _Known:
    """Raises ModelRejected for a model that does not do what is wanted."""
    description = describe(manifest, max_input_tokens, wanted)
    if description.writer is not None:
        tasks, canary = prepare(manifest, description, wanted, _CANARY_TEXT, _CANARY_TOKENS)
        return _Known(manifest, description, tasks=_wanted_first(tasks, wanted), canary=canary)
    tokenizer = load_tokenizer(manifest, description)
    if description.head == "causal":
        return _Known(manifest, description, tokenizer)
    if description.head == "sequence" and description.markers is None:
        description = replace(description, markers=known_markers(tokenizer.added_tokens()))
    mask_id = _mask_id(description, tokenizer)
    tasks = _wanted_first(offered(Material(description, tokenizer, mask_id)), wanted)
    return _Known(manifest, description, tokenizer, mask_id, tasks, _canary(tokenizer, mask_id))


def _model(uri: str, known: _Known, kind: hardware.Dtype, device: str) -> LoadedModel:
    description = known.description
    return LoadedModel(
        uri=uri,
        tasks=known.tasks,
        engine=_build(known, kind.name, device),
        answer_digest=known.answer_digest(kind.name),
        max_input_tokens=description.max_tokens,
        labels=description.classifier.labels if description.classifier else (),
        dimensions=description.hidden_size if description.pooling else None,
        dtype=kind.name,
        dtype_reason=kind.reason,
        device=device,
        canary=known.canary,
    )


def _build(known: _Known, dtype: str, device: str) -> "Engine":
    import torch

    kind, place = getattr(torch, dtype), torch.device(device)
    if known.description.writer is not None:
        from sluice_worker.engines.seq2seq import loading

        return loading.build(known.manifest, known.canary, dtype=kind, device=place)
    from sluice_worker.engines.selection import build

    return build(
        known.manifest,
        known.description,
        known.canary,
        mask_id=known.mask_id,
        dtype=kind,
        device=place,
    )


def _generator(
    uri: str,
    known: _Known,
    wanted: Task | None,
    kind: hardware.Dtype,
    device: str,
    most_running: int,
    goal_seconds: float,
) -> "Generator":
    import torch

    from sluice_worker.generation import loading

    manifest, description = known.manifest, known.description
    assert known.tokenizer is not None, "a prompt is tokens"
    tasks = loading.offered(manifest, wanted)
    engine = loading.build_engine(
        manifest,
        description.max_tokens,
        dtype=getattr(torch, kind.name),
        device=torch.device(device),
        most_running=most_running,
        goal_seconds=goal_seconds,
    )
    return loading.Generator(
        uri=uri,
        tasks=tasks,
        maker=loading.prompt_maker(manifest, description, known.tokenizer),
        engine=engine,
        answer_digest=known.answer_digest(kind.name),
        max_input_tokens=description.max_tokens,
        dtype=kind.name,
        dtype_reason=kind.reason,
        device=device,
    )


def _log(model: "LoadedModel | Generator", version: str | None, manifest: Manifest) -> None:
    fields = {
        "uri": model.uri,
        "version": version,
        "manifest": manifest.digest,
        "engine": model.engine.name,
        "tasks": ",".join(model.tasks),
        "dtype": model.dtype,
        "dtype_reason": model.dtype_reason,
    }
    log.info("model loaded", extra=fields)


def answer_parts(manifest: Manifest, dtype: str, max_tokens: int) -> dict[str, object]:
    """What an answer follows from, by content: see :func:`sluice_api.digests.answer_digest`.

    The input limit belongs to it, because truncation cuts there, and so does our own code.
    """
    sums = manifest.sums
    pooling = {
        name: sums[name]
        for name in sums
        if name in SENTENCE_FILES or ("/" in name and name.endswith("config.json"))
    }
    return {
        "weights": {name: sums[name] for name in manifest.weights},
        "tokenizer": {name: sums[name] for name in TOKENIZER_FILES if name in sums},
        "config": sums["config.json"],
        "generation_config": sums.get("generation_config.json"),
        "chat_templates": {name: sums.get(name) for name in (CHAT_TEMPLATE, TOOL_TEMPLATE)},
        "pooling": pooling or None,
        "dtype": dtype,
        "max_input_tokens": max_tokens,
        "answers": ANSWERS_VERSION,
    }


def _wanted_first(
    tasks: Mapping[Task, TaskModule], wanted: Task | None
) -> Mapping[Task, TaskModule]:
    if wanted is None:
        return tasks
    if wanted not in tasks:
        raise ModelRejected(
            f"model.task: got {wanted}, but this model offers {', '.join(tasks)}. "
            f"Set one of these, or auto; {wanted} takes {needs(wanted)}."
        )
    together = one_model_does(wanted)
    others = {task: module for task, module in tasks.items() if task in together}
    return {wanted: tasks[wanted], **others}


def _mask_id(description: Description, tokenizer: Tokenizer) -> int | None:
    """The id of the mask, which a masked language model must have. Raises ModelRejected."""
    if description.head != "mask":
        return None
    named = (description.mask_token,) if description.mask_token is not None else MASK_TOKENS
    found = next((i for name in named if (i := tokenizer.id_of(name)) is not None), None)
    if found is None:
        raise ModelRejected(
            f"The tokenizer does not know the mask token {' or '.join(named)}. Name the one it has "
            "in tokenizer_config.json (mask_token), or set model.task to embeddings."
        )
    return found


def _canary(tokenizer: Tokenizer, mask_id: int | None) -> tuple[Unit, ...]:
    whole = tokenizer.encode(_CANARY_TEXT, where="canary", truncate=True).ids
    if mask_id is not None:
        whole = (whole[0], mask_id, *whole[2:])
    wanted = sorted({min(tokens, len(whole)) for tokens in _CANARY_TOKENS})
    return tuple(unit_of((*whole[: tokens - 1], whole[-1]), None) for tokens in wanted)


def _cpu_flags() -> frozenset[str]:
    try:
        return hardware.cpu_flags(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return frozenset()
