"""``generators.py WAY FOLDER WORK``: generate every text of WORK one way, and print what it took.

WORK is JSON: a list of [prompt ids, tokens to write]. Each way runs in a process of its own, so
that its memory is its own; loading is not counted, neither in time nor in memory: the peak is reset
when the model is in. Prints JSON: seconds, memory, tokens.
"""

import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import memory
import torch

warnings.simplefilter("ignore")

Work = list[tuple[list[int], int]]
Texts = list[list[int]]


def one_by_one(model: Any, work: Work) -> Texts:
    return [_generate(model, [prompt], [count])[0] for prompt, count in work]


def batches_of_16(model: Any, work: Work) -> Texts:
    """Padded, in the order of arrival; each batch takes as long as its longest answer."""
    texts: Texts = []
    for start in range(0, len(work), 16):
        part = work[start : start + 16]
        texts += _generate(model, [prompt for prompt, _ in part], [count for _, count in part])
    return texts


def _generate(model: Any, prompts: Texts, counts: list[int]) -> Texts:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    written = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max(counts),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, longest:].tolist()
    return [row[:count] for row, count in zip(written, counts, strict=True)]


def continuous(model: Any, work: Work) -> Texts:
    """transformers' own, with memory for 512 blocks; left alone, it takes most of what is free."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=512, max_batch_tokens=256)
    texts: dict[str, list[int]] = {}
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching, timeout=5
    ) as manager:
        names = [manager.add_request(prompt, max_new_tokens=count) for prompt, count in work]
        while len(texts) < len(names):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(result.error)
                texts[result.request_id] = list(result.generated_tokens)
    return [texts[name] for name in names]


def sluice(model: Any, work: Work) -> Texts:
    from sluice_worker.cost import CostModel
    from sluice_worker.engines.decoder.engine import DecoderEngine
    from sluice_worker.engines.decoder.network import CausalNetwork
    from sluice_worker.engines.decoder.sampling import Drawn, Sampler
    from sluice_worker.engines.decoder.sequence import Sequence
    from sluice_worker.generation.loading import make_store

    class Listener:
        def take(self, drawn: Drawn) -> None:
            return None

        def finish(self, reason: str) -> None:
            left.release()

        def fail(self, error: Exception) -> None:
            raise error

    left = threading.Semaphore(0)
    network = CausalNetwork(model)
    store = make_store(network.shapes(), 512, 32, dtype=torch.float32, device=torch.device("cpu"))
    engine = DecoderEngine(network, store, most_running=32, cost=CostModel(), goal_seconds=0.25)
    engine.start(lambda: torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"])))
    sequences = [Sequence([*prompt], count, Sampler(), Listener()) for prompt, count in work]
    engine.submit(*sequences)
    for _ in sequences:
        left.acquire()
    engine.stop()
    return [sequence.ids[sequence.prompt :] for sequence in sequences]


WAYS: dict[str, Callable[[Any, Work], Texts]] = {
    "one by one": one_by_one,
    "batches of 16": batches_of_16,
    "continuous": continuous,
    "sluice": sluice,
}


def load(way: str, folder: str) -> Any:
    """The model, imported the way that the server of each way imports it."""
    if way == "sluice":
        from sluice_worker.engines.without_compiler import without_compiler
    else:
        without_compiler = nullcontext
    with without_compiler():
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder).eval()


def main() -> None:
    way, folder, work_file = sys.argv[1:]
    work: Work = json.loads(Path(work_file).read_text())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = load(way, folder)
    WAYS["one by one"](model, [(prompt[:8], 2) for prompt, _ in work[:1]])
    before = memory.reset_peak()
    began, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        texts = WAYS[way](model, work)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - began,
                "cpu_seconds": time.process_time() - cpu,
                "memory_mib": memory.peak(),
                "loaded_mib": before,
                "tokens": sum(map(len, texts)),
                "texts": texts,
            }
        )
    )


if __name__ == "__main__":
    main()
