"""Writing texts beside ``generate`` of transformers: one text after the other, and static batches.

A model of MarianMT's shape with random weights, which never ends by itself; every text is written
as long as the one that was read, and lengths are log-normal (median 24 tokens), so that static
batches wait for their longest. Ours runs behind the worker's own loop with 16 clients, without
HTTP. One thread computes everywhere; the texts are the same for all. Ratios within one run count.
Every way has a process of its own, so that its memory is its own; they take turns.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure

CLIENTS = 16
BATCH = 16
END = 0


WAYS = {
    "one by one": "generate, one by one",
    "static": f"generate, static batches of {BATCH}",
    "sluice": "sluice",
}


@dataclass
class Peer:
    """A way with its process, which is told of one list of texts after the other."""

    way: str
    layers: int
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    resident: float = 0
    """MiB at the peak."""
    more: float = 0
    """MiB of that beyond what was resident before the texts."""

    def __post_init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, __file__, "--serve", self.way, "--layers", str(self.layers)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, work: list[list[int]], beams: int) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([work, beams]) + "\n")
        self._child.stdin.flush()
        found = json.loads(self._child.stdout.readline())
        tokens = sum(map(len, work))
        self.rates.append(tokens / found["seconds"])
        self.cpu.append(found["cpu_seconds"] / tokens * 1e3)
        self.resident = max(self.resident, found["memory_mib"])
        self.more = max(self.more, found["memory_mib"] - found["before_mib"])

    def reset(self) -> None:
        self.rates, self.cpu, self.resident, self.more = [], [], 0, 0

    def end(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def marian(layers: int) -> Any:
    import torch
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=58_101, d_model=512, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048,
        decoder_ffn_dim=2048, max_position_embeddings=512, pad_token_id=58_100,
        eos_token_id=END, decoder_start_token_id=58_100,
    )  # fmt: skip
    model = MarianMTModel(config).eval()
    model.final_logits_bias[:, END] = -1e9
    return model


def texts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = [min(200, max(4, round(rng.lognormvariate(3.18, 0.8)))) for _ in range(count)]
    return [[rng.randrange(10, 58_000) for _ in range(length - 1)] + [END] for length in lengths]


def generating(model: Any, batch: int) -> Callable[[list[list[int]], int], None]:
    """transformers' own way, ``batch`` texts at a time in the order in which they come."""
    import torch

    def run(work: list[list[int]], beams: int) -> None:
        for start in range(0, len(work), batch):
            part = work[start : start + batch]
            width = max(map(len, part))
            ids = torch.full((len(part), width), model.config.pad_token_id)
            for row, text in enumerate(part):
                ids[row, : len(text)] = torch.tensor(text)
            mask = (ids != model.config.pad_token_id).long()
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=width, num_beams=beams,
                do_sample=False,
            )  # fmt: skip

    return run


def ours(model: Any) -> Callable[[list[list[int]], int], None]:
    import torch

    from sluice_worker.device import set_threads
    from sluice_worker.engines.seq2seq.decoding import Decoding, generation_unit
    from sluice_worker.engines.seq2seq.engine import Seq2SeqEngine
    from sluice_worker.lanes import Lanes
    from sluice_worker.lifecycle import Progress
    from sluice_worker.loop import Loop, Rules
    from sluice_worker.metrics import Metrics
    from sluice_worker.startup import STEPWISE_UNITS
    from sluice_worker.warmup import warm_up

    engine = Seq2SeqEngine(model, torch.device("cpu"))
    start = model.config.decoder_start_token_id

    def unit(text: list[int], beams: int) -> Any:
        rules = Decoding(start, (END,), len(text), beams=beams)
        return generation_unit(tuple(text), rules, len(text))

    canary = [unit(text, 1) for text in texts(3, seed=99)]
    warmth = warm_up(engine, canary, dtype="float32", threads=1, set_threads=set_threads)
    lanes = Lanes(engine, threads=1, width=1, set_threads=set_threads)
    rules = Rules(float("inf"), STEPWISE_UNITS, float("inf"))

    async def drive(work: list[list[int]], beams: int) -> None:
        loop = Loop(lanes, warmth.cost, warmth.wide, rules, Metrics(), Progress(), proof=canary[0])
        queue = iter(work)

        async def client() -> None:
            for text in queue:
                deadline = time.monotonic() + 3600
                await loop.submit([unit(text, beams)], deadline).done

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client())

    # One event loop for all lists: it is told that a lane is free after the last text is there.
    runner = asyncio.Runner()
    return lambda work, beams: runner.run(drive(work, beams))


def serve(way: str, layers: int) -> None:
    """The process of one way: lists of texts in, what each took out."""
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    import memory
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = marian(layers)
    run = ours(model) if way == "sluice" else generating(model, BATCH if way == "static" else 1)
    run(texts(2, seed=98), 1)
    for line in sys.stdin:
        work, beams = json.loads(line)
        before = memory.reset_peak()
        began, cpu = time.perf_counter(), time.process_time()
        run(work, beams)
        found = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "memory_mib": memory.peak(),
            "before_mib": before,
        }
        print(json.dumps(found), flush=True)


def show(peers: list[Peer], beams: int, count: int) -> None:
    base = peers[0]
    measure.table(
        f"Writing, {beams} beam{'s' * (beams > 1)}: MarianMT's shape, {count} texts, "
        f"{CLIENTS} clients, one thread",
        ["engine", "tokens/s", "x", "CPU ms/token", "x", "MiB", "MiB more"],
        [
            [
                WAYS[peer.way],
                f"{measure.median(peer.rates):.0f}",
                f"{measure.median(peer.rates) / measure.median(base.rates):.2f}",
                f"{measure.median(peer.cpu):.2f}",
                f"{measure.median(base.cpu) / measure.median(peer.cpu):.2f}",
                f"{peer.resident:.0f}",
                f"{peer.more:.0f}",
            ]
            for peer in peers
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--serve", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.layers)
        return
    peers = [Peer(way, options.layers) for way in WAYS]
    results = {}
    for beams in (1, 4):
        # Beams take long: half the rounds.
        for number in range(options.rounds if beams == 1 else -(-options.rounds // 2)):
            for peer in peers:
                peer.run(texts(options.texts, seed=number), beams)
        show(peers, beams, options.texts)
        results[f"{beams} beams"] = {
            WAYS[peer.way]: {
                "tokens_per_second": peer.rates,
                "cpu_ms_per_token": peer.cpu,
                "resident_mib": peer.resident,
                "more_mib": peer.more,
            }
            for peer in peers
        }
        for peer in peers:
            peer.reset()
    for peer in peers:
        peer.end()
    measure.save("writing", results)


if __name__ == "__main__":
    main()
