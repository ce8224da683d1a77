"""What every model source yields: a folder on this machine, and what the source vouches for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sluice_api.wire import Phase

Report = Callable[[Phase, float | None, str], None]
"""Takes the phase, the progress in it (0–1, None where it cannot be told), and one line of text."""


def silent(phase: Phase, progress: float | None, message: str) -> None:
    """A report for callers who do not watch."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model's files on this machine. They are read only after they were verified.

    Attributes:
        folder: holds ``config.json``.
        boundary: no file may lie outside of this folder once its links are followed.
        version: what the revision resolved to (a commit, a package version), if the source knows.
        sums: SHA-256 in hexadecimal by path relative to ``folder``, as published by the source;
            a file that is not listed is not vouched for.
    """

    folder: Path
    boundary: Path
    version: str | None = None
    sums: Mapping[str, str] = field(default_factory=dict)


Fetch = Callable[[str, str | None, Report], Snapshot]
"""A source: from what stands behind ``scheme://`` and the revision asked for to a snapshot.

Raises ModelNotFound, ModelDownloadFailed, ModelRejected or BadConfiguration. It must return or
raise within a bounded time after the last byte made progress.
"""
