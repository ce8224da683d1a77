"""Where containerd keeps images from one cluster to the next: a folder that each takes for itself.

A cluster takes the first one that is free, so that later ones find what earlier ones imported; a
second cluster at the same time takes the second. Of those that lie idle two stay, 3 to 9 GB each.
"""

import fcntl
import shutil
from pathlib import Path
from typing import IO

from .access import ClusterError

STORES = 16
IDLE_STORES = 2


def take(base: Path) -> tuple[Path, IO[str]]:
    """The first store in `base` that no running cluster uses, and its lock; too many idle ones go.

    It is taken while the file is open, by whichever process. Raises ClusterError.
    """
    taken: tuple[Path, IO[str]] | None = None
    idle = 0
    for number in range(STORES):
        store = base / f"store-{number}"
        if taken and not store.exists():
            continue
        lock = _lock(base / f"store-{number}.lock")
        if lock is None:
            continue
        if taken is None:
            taken = store, lock
            continue
        with lock:
            idle += 1
            if idle > IDLE_STORES:
                shutil.rmtree(store)
    if taken is None:
        raise ClusterError(f"{STORES} clusters run already")
    return taken


def _lock(path: Path) -> IO[str] | None:
    """The file, open and locked; None where another process has the lock."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
