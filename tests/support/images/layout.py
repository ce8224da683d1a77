"""A folder of images as the OCI lays them out, and archives of what somebody else lacks of them.

`builder` exports into it; `loading` takes archives from it. A layer that is in the folder already
is not stored again, and one that a node has already is not sent again: after a change of code that
is a megabyte instead of gigabytes.
"""

import io
import json
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

_REFERENCE = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"


class Layout:
    """One OCI image layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"<Layout of {len(self._entries())} images in {self.folder}>"

    def address(self, reference: str) -> str:
        """What builders call the place of an image in here."""
        return f"oci:{self.folder}:{reference}"

    def config_digest(self, reference: str) -> str | None:
        """What identifies the image, however its layers are packed; None if it is not here."""
        entry = self._entries().get(reference)
        if entry is None:
            return None
        digest: str = self._manifest(entry)["config"]["digest"]
        return digest

    def size(self, reference: str) -> int:
        """Bytes of all its layers."""
        manifest = self._manifest(self._entries()[reference])
        return sum(layer["size"] for layer in manifest["layers"])

    def config(self, reference: str) -> dict[str, Any]:
        """The image's configuration: user, entry point, environment, labels, history."""
        return self._json(self._manifest(self._entries()[reference])["config"]["digest"])

    def layers(self, reference: str) -> list[Path]:
        """The layers (tar), the lowest first."""
        manifest = self._manifest(self._entries()[reference])
        return [self._blob(layer["digest"]) for layer in manifest["layers"]]

    def write_archive(self, reference: str, archive: Path, known: Collection[str]) -> None:
        """Write an image as an OCI archive, leaving out the blobs whose digests are ``known``."""
        entry = dict(self._entries()[reference])
        manifest = self._manifest(entry)
        entry["annotations"] = {_CONTAINERD_NAME: reference, _REFERENCE: reference}
        index = {"schemaVersion": 2, "manifests": [entry]}
        blobs = [entry, manifest["config"], *manifest["layers"]]
        with tarfile.open(archive, "w") as content:
            _add(content, "oci-layout", {"imageLayoutVersion": "1.0.0"})
            _add(content, "index.json", index)
            for digest in dict.fromkeys(blob["digest"] for blob in blobs):
                if digest not in known:
                    blob = self._blob(digest)
                    content.add(blob, arcname=str(blob.relative_to(self.folder)))

    def prune(self) -> None:
        """Remove images that were replaced, and the blobs that only they had."""
        entries = self._entries()
        index = {"schemaVersion": 2, "manifests": list(entries.values())}
        unfinished = self._index.with_suffix(".new")
        unfinished.write_text(json.dumps(index))
        unfinished.replace(self._index)
        needed = set()
        for entry in entries.values():
            manifest = self._manifest(entry)
            for blob in (entry, manifest["config"], *manifest["layers"]):
                needed.add(self._blob(blob["digest"]))
        for path in self.folder.glob("blobs/*/*"):
            if path not in needed:
                path.unlink()

    @property
    def _index(self) -> Path:
        return self.folder / "index.json"

    def _entries(self) -> dict[str, Any]:
        """By reference. What was replaced stays listed, without a name, until `prune`."""
        try:
            manifests = json.loads(self._index.read_bytes())["manifests"]
        except FileNotFoundError:
            return {}
        named = [entry for entry in manifests if _REFERENCE in entry.get("annotations", {})]
        return {entry["annotations"][_REFERENCE]: entry for entry in named}

    def _manifest(self, entry: dict[str, Any]) -> dict[str, Any]:
        return self._json(entry["digest"])

    def _json(self, digest: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._blob(digest).read_bytes())
        return content

    def _blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest.replace(":", "/")


def _add(archive: tarfile.TarFile, name: str, value: Any) -> None:
    data = json.dumps(value).encode()
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
