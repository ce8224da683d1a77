"""``file:///absolute/path``: a folder on this machine, such as a mounted volume."""

from pathlib import Path
from urllib.parse import unquote

from sluice_worker.models.errors import BadConfiguration, ModelNotFound
from sluice_worker.models.sources.base import Report, Snapshot


def fetch(location: str, revision: str | None, report: Report) -> Snapshot:
    """The folder itself. A folder has no versions, so its only revisions are content digests."""
    host, slash, rest = location.partition("/")
    if host not in ("", "localhost") or not slash:
        raise BadConfiguration(
            f"model.uri: got 'file://{location}', needs an absolute path: file:///models/name."
        )
    if revision is not None:
        raise BadConfiguration(
            f"model.revision: got {revision!r}, but a folder has no versions. "
            "Leave it out, or pin the content with sha256:DIGEST (the worker logs it)."
        )
    folder = Path("/", unquote(rest))
    if not folder.is_dir():
        raise ModelNotFound(
            f"model.uri: there is no folder {folder}. Check the path and the mounted volume."
        )
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"model.uri: {folder} holds no config.json. Name the folder that save_pretrained wrote."
        )
    resolved = folder.resolve()
    return Snapshot(folder=resolved, boundary=resolved)
