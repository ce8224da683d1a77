"""No model needs torch's compiler, and whoever wants it later has it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.language_models import random_model
from tests.support.models import VOCABULARY, build_tiny, save_tokenizer
from tests.support.writers import build_tiny_writer

COMPILER = {
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "triton"),
    "torch.nn.attention.flex_attention",
}


def build_tiny_decoder(folder: Path) -> Path:
    save_tokenizer(folder, ["a text of some words"])
    random_model("llama", vocabulary=VOCABULARY).save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "decoder": build_tiny_decoder,
    "sequence to sequence": lambda folder: build_tiny_writer(folder, "t5"),
    "encoder of transformers": lambda folder: build_tiny(folder, "deberta-v2"),
}


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.parametrize("kind", MODELS)
def test_no_worker_imports_it(kind: str, tmp_path: Path) -> None:
    """Not while it loads and proves its model, which takes steps of all kinds."""
    folder = MODELS[kind](tmp_path / "model")
    run(f"""
import sys
from sluice_worker.loader import load_any
load_any("file://{folder}", device="cpu")
assert "transformers.modeling_utils" in sys.modules
heavy = {COMPILER!r} & set(sys.modules)
assert not heavy, heavy
""")


def test_masks_and_compiled_code_work_afterwards(tmp_path: Path) -> None:
    """With the compiler's own class, under the name by which transformers imported its stand-in."""
    run("""
import torch
from sluice_worker.engines.without_compiler import without_compiler
with without_compiler():
    from transformers import masking_utils
usual = torch.compiler.disable
with without_compiler(), without_compiler():
    assert torch._dynamo.allow_in_graph(abs) is abs
    assert torch.compiler.disable(reason="none")(abs) is abs
assert torch.compiler.disable is usual
with masking_utils.TransformGetItemToIndex() as entered:
    rows = torch.vmap(lambda row: torch.arange(5)[row])(torch.arange(3))
assert rows.tolist() == [0, 1, 2]
import torch._dynamo
assert torch._dynamo.config.recompile_limit > 0
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
""")


def test_what_is_not_a_mark_is_the_compilers_own() -> None:
    run("""
import sys, torch
from sluice_worker.engines.without_compiler import without_compiler
with without_compiler():
    import torch._dynamo
    assert torch._dynamo.config.recompile_limit > 0
    assert "torch._dynamo.convert_frame" in sys.modules
assert torch._dynamo.explain and "torch._dynamo" in sys.modules
""")
