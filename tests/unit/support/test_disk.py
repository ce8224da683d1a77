"""What the tests' clusters and images leave on disk is bounded."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.cluster import stores
from tests.support.cluster.access import ClusterError
from tests.support.images.builder import Builder


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Holds the locks of clusters that run."""
    with ExitStack() as locks:
        yield locks


def test_of_stores_that_lie_idle_two_stay(tmp_path: Path, running: ExitStack) -> None:
    for number in range(6):
        path, lock = stores.take(tmp_path)
        running.enter_context(lock)
        (path / "layers").mkdir(parents=True)
        assert path.name == f"store-{number}"
    running.close()
    running.enter_context(stores.take(tmp_path)[1])
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"store-0", "store-1", "store-2"}


def test_a_store_in_use_is_never_removed(tmp_path: Path, running: ExitStack) -> None:
    taken = []
    for _ in range(stores.STORES):
        path, lock = stores.take(tmp_path)
        path.mkdir()
        taken.append(running.enter_context(lock))
    with pytest.raises(ClusterError, match="run already"):
        stores.take(tmp_path)
    for lock in taken[:5]:
        lock.close()
    path, lock = stores.take(tmp_path)
    running.enter_context(lock)
    left = {int(path.name.removeprefix("store-")) for path in tmp_path.iterdir() if path.is_dir()}
    assert left == set(range(stores.STORES)) - {3, 4}


def test_archives_of_a_process_that_was_killed_go_with_the_next_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "_ensure_base", lambda _: None)
    monkeypatch.setattr(Builder, "_buildah", lambda *_, **__: "")
    builder = Builder(tmp_path / "images")
    (builder.folder / "scratch-dead").mkdir(parents=True)
    (builder.layout.folder / "blobs/sha256").mkdir(parents=True)
    (builder.layout.folder / "index.json").write_text('{"manifests": []}')
    with builder.built([]), builder.scratch() as folder:
        assert list(builder.folder.glob("scratch-*")) == [folder]
