"""Images on their way into a node are told of: the worker's takes minutes."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.images import loading
from tests.support.images.recipes import RECIPES


class Node:
    """Has some images, and takes others."""

    def __init__(self, *, knows: bool) -> None:
        self.knows = knows
        self.loaded: list[Path] = []

    def has(self, archive: Path) -> bool:
        return self.knows

    def load(self, archive: Path) -> None:
        self.loaded.append(archive)


@pytest.mark.parametrize("knows", [True, False])
def test_only_what_travels_is_told_of(
    knows: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = tmp_path / "worker.tar"
    archive.write_bytes(b"x" * 2**20)
    monkeypatch.setattr(loading, "_archive", lambda *_: archive)
    monkeypatch.setattr(loading, "_blobs", lambda _: set[str]())
    node, said = Node(knows=knows), list[str]()
    layout: Any = None
    cluster: Any = node
    assert loading._put(layout, "worker", tmp_path, cluster, said.append) != knows
    assert len(node.loaded) == len(said) // 2 == (not knows)
    if not knows:
        reference = RECIPES["worker"].reference
        assert said[0] == f"loading {reference} into the node, 1 MiB …"
        assert not archive.exists(), "the next one needs the room"
