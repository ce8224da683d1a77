"""``hf://org/name``: a repository of a Hugging Face hub.

A revision is pinned to its commit first, so that a branch which moves meanwhile cannot mix files.
Files live in the hub client's own cache, beside the listing the hub published for the commit: a
commit that is complete there needs no network. A listing of an earlier version, which wanted other
files, is asked for anew; where the hub gives none, what is there has to do. ``HF_ENDPOINT``,
``HF_TOKEN`` and ``HF_HOME`` mean what they always mean.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from sluice_api.wire import Phase
from sluice_worker.models.errors import (
    BadConfiguration,
    ModelDownloadFailed,
    ModelError,
    ModelNotFound,
    ModelRejected,
)
from sluice_worker.models.sources.base import Report, Snapshot

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_SECONDS = 10.0
"""How long the hub may take to answer, the lookup of its name included."""
_WANTED = re.compile(
    r"[^/]+\.(json|safetensors|txt|model|spm|jinja)|[0-9]+_[A-Za-z]+/config\.json"
    r"|additional_chat_templates/tool_use\.jinja"
)

T = TypeVar("T")

log = logging.getLogger(__name__)


class File(msgspec.Struct, frozen=True):
    """A file of a commit as the hub lists it. Large ones have a SHA-256, small ones git's SHA-1."""

    name: str
    size: int
    sha256: str | None
    git: str | None


class Listing(msgspec.Struct, frozen=True):
    """The files of a commit that are wanted.

    Attributes:
        wanted: the pattern that chose them.
    """

    commit: str
    files: list[File]
    wanted: str = ""


def fetch(location: str, revision: str | None, report: Report) -> Snapshot:
    """Download what is missing; ``revision`` is a branch, a tag or a commit."""
    if not _REPOSITORY.fullmatch(location) or ".." in location:
        raise BadConfiguration(f"model.uri: got 'hf://{location}', needs hf://ORG/NAME.")
    home = Path(_cache(), f"models--{location.replace('/', '--')}")
    listing = _remembered(home, revision)
    if listing is None or listing.wanted != _WANTED.pattern:
        listing = _renewed(home, location, revision, report, listing)
    folder = home / "snapshots" / listing.commit
    _check_small_files(folder, listing)
    sums = {file.name: file.sha256 for file in listing.files if file.sha256}
    return Snapshot(folder, boundary=home.resolve(), version=listing.commit, sums=sums)


def _renewed(
    home: Path, location: str, revision: str | None, report: Report, known: Listing | None
) -> Listing:
    """What the hub says, all of it downloaded; what is ``known`` where it gives nothing."""
    try:
        listing = _ask(location, revision)
        _download(location, listing, report)
    except ModelError as error:
        if known is None:
            raise
        log.warning(
            "the cached commit was chosen by an earlier version and may lack files",
            extra={"model": location, "commit": known.commit, "error": str(error)},
        )
        return known
    _remember(home, listing)
    return listing


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _cache() -> str:
    return os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)


def _ask(repository: str, revision: str | None) -> Listing:
    """The commit behind a revision and its files. Raises ModelError within the answer time."""
    with _foreign_errors(repository, revision):
        api = HfApi(endpoint=_endpoint())
        info = _within(
            _ANSWER_SECONDS,
            lambda: api.model_info(
                repository, revision=revision, files_metadata=True, timeout=_ANSWER_SECONDS
            ),
        )
    files = [
        File(
            name=entry.rfilename,
            size=entry.size or 0,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            git=None if entry.lfs else entry.blob_id,
        )
        for entry in info.siblings or []
        if _WANTED.fullmatch(entry.rfilename)
    ]
    if info.sha is None or not any(file.name == "config.json" for file in files):
        raise ModelNotFound(f"model.uri: {repository} holds no config.json.")
    if not any(file.name.endswith(".safetensors") for file in files):
        raise ModelRejected(
            f"{repository} publishes no safetensors at this revision, only formats that can run "
            "code when they are read. Set model.revision to one that has them, often the pull "
            "request of a converter (refs/pr/NUMBER), or convert the model and serve it by pvc:// "
            "(file:// on a machine of your own)."
        )
    return Listing(info.sha, files, _WANTED.pattern)


def _download(repository: str, listing: Listing, report: Report) -> None:
    total = sum(file.size for file in listing.files) or 1
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        report(Phase.DOWNLOADING, min(1.0, done / total), f"downloading {repository}")

    for file in listing.files:
        before = done
        with _foreign_errors(repository, listing.commit):
            hf_hub_download(
                repository,
                file.name,
                revision=listing.commit,
                endpoint=_endpoint(),
                cache_dir=_cache(),
                etag_timeout=_ANSWER_SECONDS,
                tqdm_class=_bar(advance),
            )
        advance(before + file.size - done)  # What was cached already moved no bar.


def _bar(advance: Callable[[int], None]) -> type[Any]:
    """A progress bar that draws nothing and tells us instead."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

    return Bar


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run ``work`` on a thread that may be left behind: name lookups know no deadline."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # Handed over to the caller, whatever it is.
            errors.append(error)

    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]


@contextmanager
def _foreign_errors(repository: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except GatedRepoError:
        raise ModelNotFound(
            f"model.uri: {repository} is gated. Accept its terms on the hub and set HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise ModelNotFound(
            f"model.uri: the hub has no model {repository}, or HF_TOKEN may not see it."
        ) from None
    except RevisionNotFoundError:
        raise ModelNotFound(f"model.revision: {repository} has no revision {revision!r}.") from None
    except Exception as error:  # The client's errors, and those of the HTTP stacks beneath it.
        raise ModelDownloadFailed(
            f"model.uri: {repository} could not be fetched from {_endpoint()} "
            f"({type(error).__name__}: {error}). Check the network and HF_ENDPOINT, or put the "
            "files on a volume and use pvc:// (file:// on a machine of your own)."
        ) from error


def _remembered(home: Path, revision: str | None) -> Listing | None:
    if revision is None or not _COMMIT.fullmatch(revision):
        return None
    try:
        return msgspec.json.decode(_listing_path(home, revision).read_bytes(), type=Listing)
    except (OSError, msgspec.DecodeError):
        return None


def _remember(home: Path, listing: Listing) -> None:
    path = _listing_path(home, listing.commit)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(listing))
    fresh.replace(path)


def _listing_path(home: Path, commit: str) -> Path:
    return home / f"sluice-{commit}.json"


def _check_small_files(folder: Path, listing: Listing) -> None:
    """Compare with git's own sums; the large files' are left to the manifest."""
    for file in listing.files:
        path = folder / file.name
        if not path.is_file():
            raise ModelDownloadFailed(f"{file.name} is missing in {folder}. Remove it and retry.")
        if file.git is not None and _git_sum(path) != file.git:
            raise ModelRejected(
                f"{file.name} is not what the hub published. Remove {folder} and start again."
            )


def _git_sum(path: Path) -> str:
    """What git calls the blob: SHA-1 over a header and the content."""
    content = path.read_bytes()
    blob = b"blob %d\0%b" % (len(content), content)
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()
