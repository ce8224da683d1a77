"""What clusters leave behind that were killed: found and removed by whoever starts the next one.

A box holds a lock on a file of its state folder as long as it lives. A folder whose lock is free
belongs to nobody: its cgroups and the folder go. A running cluster is never touched.
"""

import fcntl
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from . import cgroups

PREFIX = "sluice-cluster-"
LOCK = "lock"


def make_state_folder(name: str | None = None) -> tuple[Path, IO[str]]:
    """A new folder and its lock, held while the file is open (by whichever process).

    Short, because Unix socket addresses are limited to 107 bytes. Raises FileExistsError if the
    name is taken.
    """
    base = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
    lock = (base / LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = state_folder(name or secrets.token_hex(3))
    try:
        # Nobody takes a folder without its lock for abandoned, because it gets its name locked.
        if folder.exists():
            raise FileExistsError(f"the cluster {folder.name.removeprefix(PREFIX)} exists")
        base.rename(folder)
    except OSError:
        lock.close()
        shutil.rmtree(base)
        raise
    return folder, lock


def state_folder(name: str) -> Path:
    """Where the cluster of this name has its state."""
    return Path(tempfile.gettempdir()) / f"{PREFIX}{name}"


def clean() -> None:
    """Remove what is left of clusters that no longer run."""
    for state in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _is_abandoned(state):
            remove(state)
    found = cgroups.names(PREFIX)
    commands = _commands()  # only now: whoever made one of those before runs already
    for name in found:
        # Its state folder may be gone before the last of its cgroups, or lie where others look.
        if name.encode() not in commands:
            cgroups.remove(name)


def remove(state: Path) -> None:
    """Remove one cluster's cgroups and folder."""
    cgroups.remove(state.name)
    shutil.rmtree(state, ignore_errors=True)


def _commands() -> bytes:
    """The command lines of everything that runs; a box's and its kubelet's name their cluster."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            lines.append(path.read_bytes())
    return b"\n".join(lines)


def _is_abandoned(state: Path) -> bool:
    try:
        with (state / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except (BlockingIOError, FileNotFoundError, NotADirectoryError):
        return False
