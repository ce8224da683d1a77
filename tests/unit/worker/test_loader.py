"""Loading as a whole: what is reported, what is refused, what the answer digest binds."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sluice_api.tasks import Task
from sluice_api.wire import Phase
from sluice_worker.engines.encoder import PackedEngine
from sluice_worker.loader import load
from sluice_worker.logs import TextFormatter
from sluice_worker.models.errors import BadConfiguration, ModelRejected
from tests.support import models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def digest(folder: Path, **options: object) -> str:
    return load(f"file://{folder}", device="cpu", **options).answer_digest  # type: ignore[arg-type]


def test_progress_rises_to_the_end(folder: Path) -> None:
    seen: list[tuple[Phase, float | None, str]] = []
    load(f"file://{folder}", report=lambda *report: seen.append(report))
    progress = [share for phase, share, _ in seen if phase is Phase.LOADING and share is not None]
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert progress[-1] == 1
    assert all(message for _, _, message in seen)
    assert {phase for phase, _, _ in seen} == {Phase.LOADING}, "nothing was downloaded"


def test_what_was_loaded_is_told_in_plain_words(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sluice_worker"):
        load(f"file://{folder}", device="cpu")
    (line,) = [TextFormatter().format(r) for r in caplog.records if r.message == "model loaded"]
    assert " engine=packed tasks=embeddings,zero-shot " in line
    assert "<" not in line


@pytest.mark.parametrize("task", sorted(set(Task) - {Task.EMBEDDINGS, Task.ZERO_SHOT}))
def test_another_task_is_told_what_kind_of_model_does_it(tiny: Path, task: Task) -> None:
    with pytest.raises(ModelRejected, match=rf"got {task}, .*\b{task} takes an? \w.*\.$"):
        load(f"file://{tiny}", device="cpu", task=task)


def test_the_same_content_elsewhere_has_the_same_digest(tiny: Path, folder: Path) -> None:
    (folder / "README.md").write_text("does not count")
    assert digest(tiny) == digest(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_every_file_that_is_read_counts(folder: Path, tiny: Path, name: str) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content, indent=7))
    assert digest(folder) != digest(tiny)


def test_weights_dtype_limit_and_templates_count(folder: Path, tiny: Path) -> None:
    before = digest(tiny)
    assert digest(tiny, dtype="bfloat16") != before
    assert digest(tiny, max_input_tokens=64) != before
    (folder / "chat_template.jinja").write_text("{{ text }}")
    assert digest(folder) != before
    (folder / "chat_template.jinja").unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert digest(folder) != before


def test_sharded_weights_answer_alike(folder: Path, tiny: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {name: shards[place % 2] for place, name in enumerate(tensors)}
    for shard in shards:
        part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded, whole = (load(f"file://{path}", device="cpu") for path in (folder, tiny))
    answers = zip(sharded.engine.run(sharded.canary), whole.engine.run(whole.canary), strict=True)
    assert all((one == other).all() for one, other in answers)


def test_the_oldest_tensor_names_are_understood(folder: Path, tiny: Path) -> None:
    tensors = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    old, new = (load(f"file://{path}", device="cpu") for path in (folder, tiny))
    for one, other in zip(old.engine.run(old.canary), new.engine.run(new.canary), strict=True):
        assert (one == other).all()


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelRejected, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        load(f"file://{folder}", device="cpu")


def test_a_missing_tensor_is_not_made_up_by_transformers(tmp_path: Path) -> None:
    folder = models.build_tiny(tmp_path, "modernbert", labels=("a", "b"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelRejected, match=r"lack 1 tensors \(classifier\.weight\)"):
        load(f"file://{folder}", device="cpu")


def test_damaged_weights_are_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelRejected, match="damaged"):
        load(f"file://{folder}", device="cpu")


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelRejected, match="not stable"):
        load(f"file://{folder}", device="cpu")


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    with pytest.raises(ModelRejected, match="knows 50"):
        load(f"file://{folder}", device="cpu")


@pytest.mark.parametrize("rest", ["nothing", "a vocabulary for another class"])
def test_a_tokenizer_that_knows_no_word_is_refused(folder: Path, rest: str) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    if rest != "nothing":
        (folder / "merges.txt").write_text("h e")
    with pytest.raises(ModelRejected, match=r"holds no vocabulary: .* Save the tokenizer"):
        load(f"file://{folder}", device="cpu")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("config.json", {"num_attention_heads": "four"}, "ValueError: invalid literal"),
        ("config.json", {"num_attention_heads": 5}, "5 attention heads cannot share"),
        ("config.json", {"type_vocab_size": None}, "TypeError: '>' not supported"),
        (
            "config.json",
            {"hidden_act": {"name": "gelu"}},
            "'hidden_act': TypeError: .* expected str",
        ),
        ("tokenizer_config.json", {"model_max_length": "128"}, "TypeError: '<' not supported"),
    ],
)
def test_files_of_another_kind_are_refused_in_one_line(
    folder: Path, name: str, change: dict[str, object], told: str
) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | change))
    with pytest.raises(ModelRejected, match=told) as refused:
        load(f"file://{folder}", device="cpu")
    assert "\n" not in str(refused.value)


def test_more_positions_than_there_are_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 500}))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelRejected, match="128 positions"):
        load(f"file://{folder}", device="cpu")


def test_sizes_left_to_defaults_are_left_to_transformers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(ModelRejected, match="transformers"):  # Its default of 12 does not fit 32.
        load(f"file://{folder}", device="cpu")


def test_unknown_code_is_never_run(folder: Path) -> None:
    marker = folder / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass EvilModel: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoModel": "modeling_evil.EvilModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelRejected):
        load(f"file://{folder}", device="cpu")
    assert not marker.exists()


def test_weights_stored_in_16_bits_are_computed_in_32(folder: Path) -> None:
    tensors = {
        name: tensor.to(torch.float16)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    loaded = load(f"file://{folder}", device="cpu")
    assert loaded.dtype == "float32"
    assert isinstance(loaded.engine, PackedEngine)


def test_a_bad_dtype_is_a_bad_configuration(folder: Path) -> None:
    with pytest.raises(BadConfiguration, match="int8"):
        load(f"file://{folder}", device="cpu", dtype="int8")


def test_a_bert_is_served_without_transformers(folder: Path) -> None:
    """Its modelling code is more than half of a cold start."""
    program = (
        "import sys\n"
        "from sluice_worker.loader import load\n"
        f"model = load('file://{folder}', device='cpu')\n"
        "assert model.engine.run(model.canary)\n"
        "heavy = {'transformers', 'torch._dynamo', 'sympy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_gpu_that_is_too_small_is_told_by_its_field(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee the docs.")

    monkeypatch.setattr("sluice_worker.engines.selection.build", build)
    with pytest.raises(ModelRejected, match=r"hardware\.gpu: .*float32.*9 GiB\.\) Set hardware"):
        load(f"file://{folder}", device="cpu")
