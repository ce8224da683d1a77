"""The state folder: one owner, whole files, and a memory that forgets the oldest."""

import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sluice_api import wire
from sluice_api.tasks import Task
from sluice_cli.up import state
from sluice_cli.up.errors import UpError
from sluice_cli.up.state import Learnt, StateFolder, default_folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    with StateFolder(tmp_path / "a" / "b") as made:
        yield made


def test_two_owners_are_refused_and_the_next_one_is_not(folder: StateFolder) -> None:
    with pytest.raises(UpError, match=r"in use by another `sluice up` \(process \d+\)"):
        StateFolder(folder.path)
    folder.close()
    StateFolder(folder.path).close()


def test_the_folder_is_private(folder: StateFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UpError, match="--state-dir: cannot use"):
        StateFolder(tmp_path / "file" / "state")


def test_the_table_is_written_only_when_it_changed(folder: StateFolder) -> None:
    table = wire.ServiceTable(services=[wire.Service(name="m", revision="r1")])
    assert folder.write_table(table)
    before = folder.table_path.stat()
    assert not folder.write_table(table)
    assert folder.table_path.stat().st_ino == before.st_ino
    table.services[0].revision = "r2"
    assert folder.write_table(table)
    assert msgspec.json.decode(folder.table_path.read_bytes(), type=wire.ServiceTable) == table
    assert [p.name for p in folder.path.iterdir() if p.name.startswith(".")] == []


def test_what_was_learnt_is_known_to_the_next_owner(folder: StateFolder) -> None:
    learnt = Learnt("sha256:1", [Task.EMBEDDINGS, Task.ZERO_SHOT])
    folder.remember("r1", learnt)
    folder.close()
    with StateFolder(folder.path) as again:
        assert again.recall("r1") == learnt
        assert again.recall("r2") == Learnt()


def test_the_oldest_is_forgotten_first(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_REMEMBERED", 2)
    for name in ("r1", "r2", "r1", "r3"):
        folder.remember(name, Learnt(f"sha256:{name}-{name == 'r1'}"))
    assert [bool(folder.recall(name).answer_digest) for name in ("r1", "r2", "r3")] == [
        False,
        True,
        True,
    ]


def test_a_broken_memory_is_no_memory(folder: StateFolder) -> None:
    folder.close()
    (folder.path / "revisions.json").write_text("{nonsense")
    with StateFolder(folder.path) as again:
        assert again.recall("r1") == Learnt()


def test_the_default_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "sluice" / "up"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_folder() == Path.home() / ".local" / "state" / "sluice" / "up"
