"""Notices that the files of ``sluice up`` have changed.

Polls instead of watching: it works on every file system (network mounts, bind mounts, editors that
replace the file) and costs a few ``stat`` calls. ``control.py`` reads the files again on a change.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from sluice_api.service_files import yaml_files

POLL_SECONDS = 0.25

Fingerprint = tuple[tuple[str, int, int, int], ...]


def fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """What changes when a file is written, replaced, added or removed."""
    marks = []
    for path in yaml_files(paths):
        try:
            stat = path.stat()
        except OSError:
            marks.append((str(path), 0, 0, 0))
        else:
            marks.append((str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(marks)


async def changes(
    paths: Sequence[Path], *, poll_seconds: float = POLL_SECONDS
) -> AsyncIterator[None]:
    """Yields after each change, once the files have been still for one poll.

    An editor writes in steps; what is read in the middle is half a file.
    """
    known = last = await asyncio.to_thread(fingerprint, paths)
    while True:
        await asyncio.sleep(poll_seconds)
        now = await asyncio.to_thread(fingerprint, paths)
        if now == last and now != known:
            known = now
            yield
        last = now
