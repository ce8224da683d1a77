"""``hf://`` with the real client against a hub on loopback, and with no hub at all."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice_api.wire import Phase
from sluice_worker.loader import load
from sluice_worker.models import errors
from sluice_worker.models.manifest import (
    CONFIG_FILES,
    SENTENCE_FILES,
    TOKENIZER_FILES,
    verify,
)
from sluice_worker.models.sources import hub
from sluice_worker.models.sources.base import silent
from tests.support import model_hub
from tests.support.models import build_tiny_bert
from tests.support.writers import build_tiny_writer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bert(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def published(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[model_hub.Hub]:
    with model_hub.serving(tiny) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_a_model_is_downloaded_with_progress_and_serves(published: model_hub.Hub) -> None:
    seen: list[float] = []

    def report(phase: Phase, progress: float | None, message: str) -> None:
        if phase is Phase.DOWNLOADING and progress is not None:
            assert "acme/tiny" in message
            seen.append(progress)

    loaded = load("hf://acme/tiny", report=report)
    assert loaded.engine.run(loaded.canary)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_what_is_loaded_is_the_same_from_a_folder(published: model_hub.Hub, tiny: Path) -> None:
    assert load("hf://acme/tiny").answer_digest == load(f"file://{tiny}").answer_digest


def test_all_that_is_read_of_a_model_is_downloaded(published: model_hub.Hub) -> None:
    names = [*CONFIG_FILES, *TOKENIZER_FILES, *SENTENCE_FILES]
    for name in names:
        published.files.setdefault(name, name.encode())
    folder = hub.fetch("acme/tiny", None, silent).folder
    assert [name for name in names if not (folder / name).exists()] == []


@pytest.mark.parametrize("architecture", ["marian", "m2m_100"])
def test_a_translator_with_pieces_of_sentencepiece_comes_whole(
    architecture: str, published: model_hub.Hub, tmp_path: Path
) -> None:
    folder = build_tiny_writer(tmp_path / "model", architecture)
    published.files.clear()
    published.files |= {path.name: path.read_bytes() for path in folder.iterdir()}
    there, here = load("hf://acme/tiny"), load(f"file://{folder}")
    assert there.answer_digest == here.answer_digest


@pytest.mark.parametrize("revision", ["main", "refs/pr/45"])
def test_a_branch_resolves_to_its_commit(published: model_hub.Hub, revision: str) -> None:
    assert hub.fetch("acme/tiny", revision, silent).version == model_hub.COMMIT


def test_a_complete_commit_needs_no_network(published: model_hub.Hub) -> None:
    first = hub.fetch("acme/tiny", model_hub.COMMIT, silent)
    asked = len(published.requests)
    assert hub.fetch("acme/tiny", model_hub.COMMIT, silent) == first
    assert len(published.requests) == asked


@pytest.fixture
def cached_before(published: model_hub.Hub, monkeypatch: pytest.MonkeyPatch) -> model_hub.Hub:
    """A hub with a file that was not wanted yet when its commit was downloaded."""
    published.files["source.spm"] = b"pieces"
    with monkeypatch.context() as then:
        then.setattr(hub, "_WANTED", re.compile(r"[^/]+\.(json|safetensors)"))
        folder = hub.fetch("acme/tiny", model_hub.COMMIT, silent).folder
    assert not (folder / "source.spm").exists()
    return published


def test_what_is_wanted_of_a_cached_commit_by_now_is_downloaded(
    cached_before: model_hub.Hub,
) -> None:
    snapshot = hub.fetch("acme/tiny", model_hub.COMMIT, silent)
    assert (snapshot.folder / "source.spm").read_bytes() == b"pieces"
    asked = len(cached_before.requests)
    assert hub.fetch("acme/tiny", model_hub.COMMIT, silent) == snapshot
    assert len(cached_before.requests) == asked


def test_a_listing_as_it_was_first_written_is_renewed(cached_before: model_hub.Hub) -> None:
    [path] = Path(os.environ["HF_HUB_CACHE"]).rglob("sluice-*.json")
    written = json.loads(path.read_bytes())
    written.pop("wanted", None)
    path.write_text(json.dumps(written))
    snapshot = hub.fetch("acme/tiny", model_hub.COMMIT, silent)
    assert (snapshot.folder / "source.spm").exists()


def test_a_cached_commit_serves_as_it_is_where_no_hub_answers(
    cached_before: model_hub.Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert hub.fetch("acme/tiny", model_hub.COMMIT, silent).version == model_hub.COMMIT
    assert "may lack files" in caplog.text


def test_pickles_are_refused_before_anything_is_downloaded(published: model_hub.Hub) -> None:
    published.files["pytorch_model.bin"] = published.files.pop("model.safetensors")
    with pytest.raises(errors.ModelRejected, match=r"safetensors.*model\.revision.*refs/pr"):
        hub.fetch("acme/tiny", None, silent)
    assert all("/resolve/" not in path for path in published.requests)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_content_that_was_tampered_with_is_refused(published: model_hub.Hub, name: str) -> None:
    content = bytearray(published.files[name])
    content[-2] ^= 1
    published.tampered[name] = bytes(content)
    with pytest.raises(errors.ModelRejected, match=name.replace(".", r"\.")):
        verify(hub.fetch("acme/tiny", None, silent), None)


def test_models_and_revisions_that_do_not_exist(published: model_hub.Hub) -> None:
    with pytest.raises(errors.ModelNotFound, match="no model acme/absent"):
        hub.fetch("acme/absent", None, silent)
    with pytest.raises(errors.ModelNotFound, match="no revision 'v9'"):
        hub.fetch("acme/tiny", "v9", silent)


@pytest.mark.parametrize("location", ["tiny", "a/b/c", "../b", "a/..", ""])
def test_addresses_have_two_parts(location: str) -> None:
    with pytest.raises(errors.BadConfiguration, match="ORG/NAME"):
        hub.fetch(location, None, silent)


def test_no_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(errors.ModelDownloadFailed, match="HF_ENDPOINT"):
            hub.fetch("acme/tiny", None, silent)


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        url = f"http://127.0.0.1:{silent_server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        begun = time.monotonic()
        with pytest.raises(errors.ModelDownloadFailed):
            hub.fetch("acme/tiny", None, silent)
        assert time.monotonic() - begun < 60
