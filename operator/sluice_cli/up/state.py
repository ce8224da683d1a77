"""The state folder: what one ``sluice up`` leaves for the next, and shares with its gateway.

It holds the cache secret (made by the gateway), the service table (read by the gateway), what
workers told about their revision (so that a sleeping service is answered from the cache) and a
lock, because two ``sluice up`` must not write one table.
"""

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO, Self

import msgspec

from sluice_api import wire
from sluice_api.tasks import Task
from sluice_cli.up.errors import UpError

_REMEMBERED = 500
"""Revisions kept; the oldest are forgotten first."""


class Learnt(msgspec.Struct, rename="camel", frozen=True):
    """What a worker of a revision told once it was loaded."""

    answer_digest: str = ""
    tasks: list[Task] = []


_decode_memory = msgspec.json.Decoder(dict[str, Learnt]).decode


def default_folder() -> Path:
    """``$XDG_STATE_HOME/sluice/up``."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "state") / "sluice" / "up"


class StateFolder:
    """One folder, locked until :meth:`close`. Raises :class:`UpError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _take_lock(path / "lock")
        except OSError as error:
            raise UpError(
                f"--state-dir: cannot use {str(path)!r}: {error.strerror}. Choose another folder."
            ) from None
        self.table_path = path / "services.json"
        self.secret_path = path / "cache-secret"
        self._memory_path = path / "revisions.json"
        self._memory = self._load_memory()
        self._table = b""

    def __repr__(self) -> str:
        return f"<StateFolder {self.path} revisions={len(self._memory)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the next one have the folder."""
        self._lock.close()

    def recall(self, revision: str) -> Learnt:
        """What is known of a revision; empty when nothing is."""
        return self._memory.get(revision, Learnt())

    def remember(self, revision: str, learnt: Learnt) -> None:
        if self._memory.get(revision) == learnt:
            return
        self._memory.pop(revision, None)
        self._memory[revision] = learnt
        while len(self._memory) > _REMEMBERED:
            del self._memory[next(iter(self._memory))]
        _write(self._memory_path, msgspec.json.encode(self._memory))

    def write_table(self, table: wire.ServiceTable) -> bool:
        """Put the table where the gateway reads it, whole or not at all. True if it changed."""
        data = msgspec.json.encode(table)
        if data == self._table:
            return False
        _write(self.table_path, data)
        self._table = data
        return True

    def _load_memory(self) -> dict[str, Learnt]:
        try:
            return _decode_memory(self._memory_path.read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return {}  # It only saves the first worker some questions.


def _take_lock(path: Path) -> IO[str]:
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise UpError(
            f"--state-dir: {str(path.parent)!r} is in use by another `sluice up` "
            f"(process {owner}). Stop it, or choose another folder."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
