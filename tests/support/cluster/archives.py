"""Small container images made from files, without a builder: pause and busybox.

An archive is what `docker save` would write, with one layer; the same content gives the same bytes.
The product's own images come from their Dockerfiles, elsewhere.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from .programs import cache_folder, forget_unused

BUSYBOX = "localhost/busybox:1"
PAUSE = "localhost/pause:1"
NOBODY = "65532"


def pause(tools: Path) -> Path:
    """The archive of the pod sandbox's image."""
    program = (tools / "pause").read_bytes()
    return write(PAUSE, {"pause": program}, {}, {"Entrypoint": ["/pause"]})


def busybox() -> Path:
    """The archive of an image with a shell, wget, nc, httpd and what else this machine's has.

    Raises RuntimeError if this machine's is linked statically: that one cannot resolve names.
    """
    program = shutil.which("busybox", path="/usr/bin:/bin")
    if not program:
        raise FileNotFoundError("busybox")
    passwd = f"root:x:0:0::/:/bin/sh\nnobody:x:{NOBODY}:{NOBODY}::/:/bin/sh\n"
    files = {path.lstrip("/"): Path(path).read_bytes() for path in libraries(program)}
    files |= {"bin/busybox": Path(program).read_bytes(), "etc/passwd": passwd.encode()}
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    links = {f"bin/{name}": "busybox" for name in applets.stdout.split() if name != "busybox"}
    return write(BUSYBOX, files, links, {"Cmd": ["sh"], "Env": ["PATH=/bin"]})


def libraries(program: str) -> list[str]:
    """The shared libraries and the loader of a program, where they lie on this machine."""
    answer = subprocess.run(["ldd", program], capture_output=True, text=True)
    found = re.findall(r"(/\S+) \(0x", answer.stdout)
    if not found:
        raise RuntimeError(f"{program} is linked statically: apt-get install busybox")
    return found


def manifest_digest(archive: Path) -> str:
    """What tells two archives apart: the digest of their table of contents."""
    with tarfile.open(archive) as content:
        for name in ("index.json", "manifest.json"):
            try:
                member = content.extractfile(name)
            except KeyError:
                continue
            if member:
                return hashlib.sha256(member.read()).hexdigest()
    raise ValueError(f"{archive} is no image archive")


def write(
    name: str,
    files: Mapping[str, bytes],
    links: Mapping[str, str],
    configuration: Mapping[str, object],
) -> Path:
    """An archive of one layer in the cache folder. Paths have no slash in front."""
    layer = _layer(files, links)
    layer_digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": configuration,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    content = {
        config_name: config,
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    short = name.rpartition("/")[2].partition(":")[0]
    path = cache_folder() / f"image-{short}-{layer_digest[:12]}.tar"
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with tarfile.open(unfinished, "w") as archive:
        for member, data in content.items():
            _add(archive, member, data, 0o644)
    unfinished.replace(path)
    forget_unused(f"image-{short}-*.tar")
    return path


def _layer(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
        for name, data in sorted(files.items()):
            _add(archive, name, data, 0o755)
        for name, target in sorted(links.items()):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
