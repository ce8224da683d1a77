"""From settings to a worker that is ready: load, warm up, connect the parts.

``server`` runs :func:`start` beside the ports it already serves, so that probes see the progress.
Everything heavy is imported here, on a thread, and nowhere earlier.
"""

import asyncio
import gc
import importlib.metadata
import logging
import time
from typing import TYPE_CHECKING, cast

from sluice_api.wire import Phase
from sluice_worker.lifecycle import Identity, Lifecycle
from sluice_worker.routes import Worker
from sluice_worker.settings import Settings

if TYPE_CHECKING:
    from sluice_worker.generation.loading import Generator
    from sluice_worker.loaded import LoadedModel
    from sluice_worker.warmup import Warmth

log = logging.getLogger(__name__)

STEPWISE_UNITS = 32
"""Texts written side by side. A batch takes as long as its longest, however little is in it, so the
latency goal says nothing about it; beyond this, more beside each other gains little."""


async def start(worker: Worker) -> None:
    """Make ``worker`` ready. Raises ModelError when the model cannot be served."""
    began = time.monotonic()
    model, warmth = await asyncio.to_thread(_load, worker.settings, worker.lifecycle)
    if warmth is None:
        connect_generator(worker, cast("Generator", model))
    else:
        connect(worker, cast("LoadedModel", model), warmth)
    gc.freeze()  # what is loaded stays: do not look through it for garbage again and again
    worker.lifecycle.report(Phase.READY)
    log.info(
        "model ready",
        extra={
            "seconds": time.monotonic() - began,
            "model": model.uri,
            "tasks": ",".join(model.tasks),
            "answer_digest": model.answer_digest,
        },
    )


def _load(
    settings: Settings, lifecycle: Lifecycle
) -> "tuple[LoadedModel | Generator, Warmth | None]":
    """A warm model. One that generates was warmed as it was loaded, and has nothing else to say."""
    from sluice_worker import device

    threads = settings.threads or device.available_cpus()
    device.limit_threads(threads)

    from sluice_worker.loaded import LoadedModel
    from sluice_worker.loader import load_any
    from sluice_worker.warmup import warm_up

    model = load_any(
        settings.model_uri,
        revision=settings.model_revision,
        task=settings.task,
        dtype=settings.dtype,
        device=settings.device,
        max_input_tokens=settings.max_input_tokens,
        batch_max_size=settings.batch_max_size,
        goal_seconds=settings.batch_latency_goal_seconds,
        report=lifecycle.report,
    )
    lifecycle.report(Phase.WARMING)
    if not isinstance(model, LoadedModel):
        return model, None
    if model.device != "cpu":
        threads = 1  # the accelerator computes; one thread feeds it
    warmth = warm_up(
        model.engine,
        model.canary,
        dtype=model.dtype,
        threads=threads,
        set_threads=device.set_threads,
    )
    return model, warmth


def connect(worker: Worker, model: "LoadedModel", warmth: "Warmth") -> None:
    """Put the parts together around a warm model. Imports what needs numpy, so not earlier."""
    from sluice_worker.intake import Intake
    from sluice_worker.lanes import Lanes
    from sluice_worker.loop import Loop, Rules

    settings, metrics, lifecycle = worker.settings, worker.metrics, worker.lifecycle
    lanes = Lanes(
        model.engine,
        threads=warmth.threads,
        width=warmth.threads,
        set_threads=warmth.set_threads,
    )
    most = settings.batch_max_size
    rules = Rules(
        latency_goal_seconds=settings.batch_latency_goal_seconds,
        max_size=min(most, STEPWISE_UNITS) if model.engine.stepwise else most,
        max_backlog_seconds=settings.max_backlog_seconds,
    )
    loop = Loop(
        lanes,
        warmth.cost,
        warmth.wide,
        rules,
        metrics,
        lifecycle.progress,
        proof=model.canary[0],
    )
    worker.intake = Intake(
        model.tasks,
        loop,
        metrics,
        service=settings.name,
        max_input_tokens=model.max_input_tokens,
    )
    lifecycle.identity = Identity(
        answer_digest=model.answer_digest,
        tasks=tuple(model.tasks),
        labels=model.labels,
        max_input_tokens=model.max_input_tokens,
        dimensions=model.dimensions,
        dtype=model.dtype,
        device=model.device,
    )
    lifecycle.capacity = loop.capacity
    metrics.watch(
        waiting=lambda: loop.backlog.waiting,
        running=lambda: sum(len(batch.left) for batch in list(loop.running)),
        backlog=lambda: loop.predicted_wait(time.monotonic()),
    )
    _set_info(worker, model, warmth.threads)


def connect_generator(worker: Worker, model: "Generator") -> None:
    """The same for a model that generates; its engine begins here."""
    from sluice_worker import device
    from sluice_worker.generation.intake import GenerationIntake

    settings, metrics, lifecycle = worker.settings, worker.metrics, worker.lifecycle
    threads = (settings.threads or device.available_cpus()) if model.device == "cpu" else 1
    engine, scheduler = model.engine, model.engine.scheduler
    intake = GenerationIntake(
        model.tasks,
        model.maker,
        engine,
        metrics,
        lifecycle.progress,
        service=settings.name,
        max_backlog_seconds=settings.max_backlog_seconds,
    )
    worker.intake = intake
    lifecycle.identity = Identity(
        answer_digest=model.answer_digest,
        tasks=model.tasks,
        max_input_tokens=model.max_input_tokens,
        dtype=model.dtype,
        device=model.device,
    )
    lifecycle.capacity = intake.capacity
    metrics.watch(
        waiting=lambda: len(scheduler.waiting),
        running=lambda: len(scheduler.running),
        backlog=intake.predicted_wait,
    )
    metrics.kv_use.set_function(lambda: engine.store.used / engine.store.room)
    _set_info(worker, model, threads)
    engine.start(prepare_thread=lambda: device.set_threads(threads))


def _set_info(worker: Worker, model: "LoadedModel | Generator", threads: int) -> None:
    worker.metrics.info.labels(
        version=importlib.metadata.version("sluice"),
        model=model.uri,
        revision=worker.settings.revision,
        answer_digest=model.answer_digest,
        dtype=model.dtype,
        device=model.device,
        threads=str(threads),
        engine=model.engine.name,
    ).set(1)
