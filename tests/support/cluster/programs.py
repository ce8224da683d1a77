"""The programs of the test cluster, built once from Go modules into the user's cache folder.

Kubernetes and etcd are one program (tests/cluster/kubernetes); Helm, CoreDNS and the pause
container come from a second module. A folder is named by the hash of the module's files, so a
change builds anew and nothing else does. Two builders wait for one another; a build that is cut
short leaves nothing.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .options import DEFAULT_RELEASE

MODULES = Path(__file__).parents[2] / "cluster" / "kubernetes"
COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
)
TOOLS = ("helm", "coredns", "pause")
PROGRESS_SECONDS = 15.0
UNUSED_SECONDS = 30 * 86400.0


class BuildError(Exception):
    """Go could not build a module; the message is the end of what it said."""


def cache_folder() -> Path:
    """Where everything is kept that outlives a run: programs, archives, containerd's store."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sluice" / "kubernetes"


@dataclass(frozen=True)
class Module:
    """A Go module file and what is built from it into one folder.

    label: for people. packages: what `go build` is given. links: names for the first program.
    """

    label: str
    file: Path
    packages: tuple[str, ...]
    flags: tuple[str, ...] = ()
    links: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        digest = hashlib.sha256(repr((self.packages, self.flags, self.links)).encode())
        sources = sorted(self.file.parent.glob("*/*.go")) + sorted(self.file.parent.glob("*.go"))
        for path in (self.file, self.file.with_suffix(".sum"), *sources):
            digest.update(path.read_bytes())
        return cache_folder() / f"{self.label.lower().replace(' ', '-')}-{digest.hexdigest()[:12]}"


def releases() -> dict[str, str]:
    """The Kubernetes releases that can be built: minor version → full version."""
    found = {}
    for file in (MODULES / "go.mod", *sorted(MODULES.glob("go-*.mod"))):
        version = _required(file, "k8s.io/kubernetes")
        found[version.rpartition(".")[0]] = version
    return found


def kubernetes(release: str) -> Module:
    """Raises ValueError for a release without a module file."""
    known = releases()
    if release not in known:
        raise ValueError(f"Kubernetes {release} is not one of {', '.join(sorted(known))}")
    version = known[release]
    major, minor, _ = version.split(".")
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    # Without them the server calls itself v0.0.0 and clients complain.
    named = " ".join(
        f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamps.items()
    )
    file = "go.mod" if release == DEFAULT_RELEASE else f"go-{release}.mod"
    return Module(
        label=f"Kubernetes {version}",
        file=MODULES / file,
        packages=(".",),
        flags=("-tags=providerless", f"-ldflags=-s -w {named}"),
        links=COMPONENTS,
    )


def tools() -> Module:
    return Module(
        label="cluster tools",
        file=MODULES / "tools" / "go.mod",
        packages=("helm.sh/helm/v4/cmd/helm", "./coredns", "./pause"),
        flags=("-ldflags=-s -w",),
    )


def gateway_api() -> Path:
    """The folder of the Gateway API's resource definitions, in its Go module. Raises BuildError."""
    command = ["go", "mod", "download", "-json", "sigs.k8s.io/gateway-api"]
    folder = MODULES / "gateway-api"
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if told.returncode:
        raise BuildError(f"{' '.join(command)}\nin {folder} failed:\n{told.stderr}{told.stdout}")
    return Path(json.loads(told.stdout)["Dir"]) / "config" / "crd" / "standard"


def ensure(module: Module) -> Path:
    """The folder with the module's programs, built if it is not there. Raises BuildError."""
    folder = module.folder
    if folder.exists():
        os.utime(folder)  # in use
        return folder
    with _only_builder(folder):
        if not folder.exists():
            _build(module, folder)
    return folder


def forget_unused(pattern: str) -> None:
    """Remove what matches in the cache folder and was not used for a month."""
    for path in cache_folder().glob(pattern):
        if time.time() - path.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)


def _build(module: Module, folder: Path) -> None:
    started = time.monotonic()
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    command = ["go", "build", "-trimpath", f"-modfile={module.file}", *module.flags]
    command += ["-o", f"{unfinished}/", *module.packages]
    log = unfinished / "build.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=module.file.parent,
            env=os.environ | {"CGO_ENABLED": "0"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while not _ended(process, PROGRESS_SECONDS):
                _say(f"building {module.label}, once (some minutes)", started)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        end = "\n".join(log.read_text().splitlines()[-20:])
        shutil.rmtree(unfinished)
        raise BuildError(f"{' '.join(command)}\nin {module.file.parent} failed:\n{end}")
    _link(unfinished, module.links)
    unfinished.rename(folder)
    forget_unused(f"{folder.name.rpartition('-')[0]}-*")
    _say(f"built {module.label}", started)


def _link(folder: Path, names: tuple[str, ...]) -> None:
    """One program that acts by its name gets its names."""
    if names:
        (program,) = (path for path in folder.iterdir() if path.suffix != ".log")
        for name in names:
            (folder / name).symlink_to(program.name)


def _required(file: Path, module: str) -> str:
    found = re.search(
        rf"^(?:require)?\s*{re.escape(module)} v(\S+)", file.read_text(), re.MULTILINE
    )
    if not found:
        raise ValueError(f"{file.name} does not require {module}")
    return found[1]


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False


def _say(what: str, started: float) -> None:
    print(f"{what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another build of the same programs", time.monotonic())
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
