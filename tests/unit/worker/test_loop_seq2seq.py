"""The loop with the real engine for texts that are written: whose fault a failure is."""

import asyncio
from pathlib import Path

import pytest
import torch
import transformers

from sluice_api.errors import ApiError
from sluice_worker.cost import CostModel, Load, WideGain
from sluice_worker.engines.seq2seq.decoding import (
    Decoding,
    GenerationUnit,
    Sampling,
    generation_unit,
    read,
)
from sluice_worker.engines.seq2seq.engine import Seq2SeqEngine
from sluice_worker.lanes import Lanes
from sluice_worker.lifecycle import FAILURES_IN_A_ROW, Lifecycle
from sluice_worker.loop import Loop, Rules
from sluice_worker.metrics import Metrics
from tests.support.event_loops import eventually
from tests.support.writers import END, build_tiny_writer

PLAIN = Decoding(start=END, ends=(), most=6)
IMPOSSIBLE = Decoding(start=END, ends=(), most=6, sampling=Sampling(temperature=1e-45, seed=1))
"""Whatever is divided by it is infinite, and nothing can be drawn from that."""
NOW = 1000.0


def text(token: int, rules: Decoding) -> GenerationUnit:
    return generation_unit((token, token + 1, END), rules, 6)


async def test_rules_that_cannot_be_followed_leave_the_worker_live(tmp_path: Path) -> None:
    folder = build_tiny_writer(tmp_path, "bart")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    engine = Seq2SeqEngine(model, torch.device("cpu"))
    lanes = Lanes(engine, threads=1, width=1, set_threads=lambda count: None)
    cost = CostModel()
    cost.observe(Load(10, 100), 0.001)
    lifecycle = Lifecycle("tiny", "r1", NOW)
    loop = Loop(
        lanes,
        cost,
        WideGain(1.0, threads=1),
        Rules(0.1, 8, 10.0),
        Metrics(),
        lifecycle.progress,
        proof=text(7, PLAIN),
        clock=lambda: NOW,
    )
    try:
        for number in range(FAILURES_IN_A_ROW):
            bad = loop.submit([text(10 + number, IMPOSSIBLE)], NOW + 60)
            with pytest.raises(ApiError, match="failed on this input"):
                await asyncio.wait_for(bad.done, 60)
            await eventually(lambda: not (loop.running or loop.backlog.waiting), 60)
        assert lifecycle.ailment(NOW) is None
        good = loop.submit([text(30, PLAIN)], NOW + 60)
        [array] = await asyncio.wait_for(good.done, 60)
        assert read(array).ids == read(engine.run([text(30, PLAIN)])[0]).ids
    finally:
        lanes.close()
