"""Writing texts beside ``generate`` of transformers: one text after the other, and static batches.

A model of MarianMT's shape with random weights, which never ends by itself; every text is written
as long as the one that was read, and lengths are log-normal (median 24 tokens), so that static
batches wait for their longest. Ours runs behind the worker's own loop with 16 clients, without
HTTP. One thread computes everywhere; the texts are the same for all. Ratios within one run count.
"""

import argparse
import asyncio
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import measure

CLIENTS = 16
BATCH = 16
END = 0


@dataclass
class Peer:
    name: str
    run: Callable[[list[list[int]], int], None]
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


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
    warmth = warm_up(engine, canary, threads=1, set_threads=set_threads)
    lanes = Lanes(engine, threads=1, width=1, set_threads=set_threads)
    rules = Rules(float("inf"), STEPWISE_UNITS, float("inf"))

    async def drive(work: list[list[int]], beams: int) -> None:
        loop = Loop(lanes, warmth.cost, warmth.wide, rules, Metrics(), Progress())
        queue = iter(work)

        async def client() -> None:
            for text in queue:
                deadline = time.monotonic() + 3600
                await loop.submit([unit(text, beams)], deadline).done

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client())

    return lambda work, beams: asyncio.run(drive(work, beams))


def measured(peers: list[Peer], beams: int, rounds: int, count: int) -> None:
    for number in range(rounds):
        work = texts(count, seed=number)
        tokens = sum(map(len, work))
        for peer in peers:
            began, cpu = time.perf_counter(), time.process_time()
            peer.run(work, beams)
            peer.rates.append(tokens / (time.perf_counter() - began))
            peer.cpu.append((time.process_time() - cpu) / tokens * 1e3)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args(arguments)

    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = marian(options.layers)
    results = {}
    for beams in (1, 4):
        peers = [
            Peer("generate, one by one", generating(model, 1)),
            Peer(f"generate, static batches of {BATCH}", generating(model, BATCH)),
            Peer("sluice", ours(model)),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured(peers, beams, options.rounds, options.texts)
        base = peers[0]
        measure.table(
            f"Writing, {beams} beam{'s' * (beams > 1)}: MarianMT's shape, {options.texts} texts, "
            f"{CLIENTS} clients, one thread",
            ["engine", "tokens/s", "x", "CPU ms/token", "x"],
            [
                [
                    peer.name,
                    f"{measure.median(peer.rates):.0f}",
                    f"{measure.median(peer.rates) / measure.median(base.rates):.2f}",
                    f"{measure.median(peer.cpu):.2f}",
                    f"{measure.median(base.cpu) / measure.median(peer.cpu):.2f}",
                ]
                for peer in peers
            ],
        )
        results[f"{beams} beams"] = {
            peer.name: {"tokens_per_second": peer.rates, "cpu_ms_per_token": peer.cpu}
            for peer in peers
        }
    measure.save("writing", results)


if __name__ == "__main__":
    main()
