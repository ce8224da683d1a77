"""The decoder engine beside transformers' ways to generate: tokens per second and memory.

A Llama of 39 million parameters with random weights, 48 prompts of 8 to 64 tokens, answers of 8 to
128 tokens (both uniform), greedy, no end token, the same list for everyone, all at hand from the
start. Ways: one request after the other, padded batches of 16, transformers' continuous batching
(512 blocks, 256 tokens a step), the engine with the 32 texts side by side that it has by default on
a CPU. No server and no tokenizer is in it. Ratios within one run count, and whether all wrote the
same tokens. One thread, because two on a machine with other work to do mostly wait for each other:
CPU time a token then says what a quiet core would do.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure

GENERATORS = Path(__file__).parent / "peers" / "generators.py"
WAYS = {
    "one by one": "transformers, one by one",
    "batches of 16": "transformers, batches of 16",
    "continuous": "transformers, continuous batching",
    "sluice": "sluice decoder engine",
}
VOCABULARY = 30_522


@dataclass
class Result:
    name: str
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    resident: float = 0
    """MiB of its process, at the peak."""
    more: float = 0
    """MiB of that beyond what was resident when the model was loaded."""
    texts: list[Any] = field(default_factory=list)


def model_folder(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def work(count: int, seed: int) -> list[tuple[list[int], int]]:
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        prompt = [chance.randrange(3, VOCABULARY) for _ in range(chance.randint(8, 64))]
        found.append((prompt, chance.randint(8, 128)))
    return found


def run(way: str, folder: Path, work_file: Path) -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, str(GENERATORS), way, str(folder), str(work_file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(finished.stderr[-2000:])
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--texts", type=int, default=48)
    options = parser.parse_args(arguments)
    results = {way: Result(name) for way, name in WAYS.items()}
    with measure.folder() as folder:
        model = model_folder(folder / "model")
        for number in range(options.rounds):
            asked = folder / "work.json"
            asked.write_text(json.dumps(work(options.texts, seed=number)))
            for way, result in results.items():
                found = run(way, model, asked)
                result.rates.append(found["tokens"] / found["seconds"])
                result.cpu.append(found["cpu_seconds"] / found["tokens"] * 1e3)
                result.resident = max(result.resident, found["memory_mib"])
                result.more = max(result.more, found["memory_mib"] - found["loaded_mib"])
                result.texts.append(found["texts"])
    base, total = results["one by one"], options.rounds * options.texts
    measure.table(
        f"Generation: 39 M parameters, {options.texts} texts, one thread",
        ["way", "tokens/s", "x", "CPU ms/token", "x", "MiB", "MiB more", "same texts"],
        [
            [
                result.name,
                f"{measure.median(result.rates):.0f}",
                f"{measure.median(result.rates) / measure.median(base.rates):.2f}",
                f"{measure.median(result.cpu):.1f}",
                f"{measure.median(base.cpu) / measure.median(result.cpu):.2f}",
                f"{result.resident:.0f}",
                f"{result.more:.0f}",
                f"{same(result, base)} of {total}",
            ]
            for result in results.values()
        ],
    )
    ours = results["sluice"]
    for way in ("batches of 16", "continuous"):
        peer = results[way]
        print(
            f"  ours beside {peer.name}: {_ratio(ours.rates, peer.rates):.2f} x the tokens/s, "
            f"{_ratio(peer.cpu, ours.cpu):.2f} x by CPU time, "
            f"{ours.more / max(1, peer.more):.2f} x its memory beside the model"
        )
    measure.save(
        "generation",
        {
            way: {
                "rates": r.rates,
                "cpu_ms": r.cpu,
                "resident_mib": r.resident,
                "more_mib": r.more,
                "same": same(r, base),
            }
            for way, r in results.items()
        },
    )


def _ratio(left: list[float], right: list[float]) -> float:
    """Of the medians."""
    return measure.median(left) / measure.median(right)


def same(result: Result, base: Result) -> int:
    """How many texts are those of the base, token for token."""
    pairs = zip(result.texts, base.texts, strict=True)
    return sum(a == b for left, right in pairs for a, b in zip(left, right, strict=True))


if __name__ == "__main__":
    main()
