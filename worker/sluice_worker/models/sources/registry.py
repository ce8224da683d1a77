"""Which source serves which scheme. Adding a source is adding a module with ``fetch``, and a line.

Modules are imported when their scheme is first used, so a model on disk costs no HTTP client.
"""

from importlib import import_module
from typing import cast

from sluice_worker.models.errors import BadConfiguration
from sluice_worker.models.sources.base import Fetch, Report, Snapshot

SOURCES = {
    "file": "sluice_worker.models.sources.folder",
    "hf": "sluice_worker.models.sources.hub",
    "python": "sluice_worker.models.sources.package",
}

PINNED_CONTENT = "sha256:"
"""A revision of this form pins the content itself, whatever the source (see ``manifest``)."""


def fetch(uri: str, revision: str | None, report: Report) -> Snapshot:
    """Bring the files of ``uri`` to this machine. Raises ModelError."""
    scheme, separator, location = uri.partition("://")
    if not separator or scheme not in SOURCES:
        known = ", ".join(f"{name}://" for name in SOURCES)
        raise BadConfiguration(f"model.uri: got {uri!r}, needs one of {known}.")
    source = cast(Fetch, import_module(SOURCES[scheme]).fetch)
    wanted = None if revision and revision.startswith(PINNED_CONTENT) else revision
    return source(location, wanted or None, report)
