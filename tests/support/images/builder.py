"""Builds the product's images from their Dockerfiles, without a daemon and without a registry.

buildah does it in a store of its own in the user's cache folder, on a Python base that mmdebstrap
makes once; unchanged layers are taken from there. What is built lies beside it as an OCI layout,
from which `loading` takes what a node lacks. One build at a time; a second waits for the first.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import package_settings
from .layout import Layout
from .recipes import RECIPES, ROOT, Recipe, with_bases

BASE = "localhost/python:base"
BASE_COMMAND = (
    *("mmdebstrap", "--quiet", "--variant=essential"),
    "--include=python3,python3-venv,ca-certificates,libstdc++6",
    *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man")),
    "bookworm",
)
PROGRAMS = ("buildah", "mmdebstrap", "skopeo")
BUILD_SECONDS = 1800.0
PROBE_SECONDS = "10"
SCRATCH = "scratch-"

Say = Callable[[str], None]


class BuildFailed(Exception):
    """An image could not be built; the message holds the end of what the builder wrote."""


def say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def missing() -> list[str]:
    """What this machine lacks to build images, in words; empty if nothing."""
    lacks = [f"the program {name}" for name in PROGRAMS if shutil.which(name) is None]
    return lacks if os.geteuid() == 0 else [*lacks, "root"]


class Builder:
    """Builds into one cache folder: the base, a store of layers, and the layout of what is done."""

    def __init__(self, folder: Path | None = None, say: Say = say_to_stderr) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = folder or home / "sluice" / "images"
        self.layout = Layout(self.folder / "layout")
        self._store = self.folder / f"store-{_pins()}"
        self._state = self.folder / "run"
        self._log = self.folder / "build.log"
        self._say = say

    def __repr__(self) -> str:
        return f"<Builder in {self.folder}, {self.layout!r}>"

    def build(self, names: Sequence[str]) -> list[Recipe]:
        """Build the named images and what they begin from, where anything changed.

        Returns their recipes. Raises BuildFailed, KeyError for a name that is none.
        """
        with self.built(names) as recipes:
            return recipes

    @contextmanager
    def built(self, names: Sequence[str]) -> Iterator[list[Recipe]]:
        """`build`; nobody else builds, and so replaces what is in the layout, until the end."""
        recipes = with_bases(list(names))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._forget()
            try:
                self._ensure_base()
                for recipe in recipes:
                    self._build(recipe)
            finally:
                # A build that failed leaves what it had half done: with torch, gigabytes.
                self._buildah("rm", "--all", check=False)
            self.layout.prune()
            yield recipes

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for archives, gone afterwards; on disk, because /tmp may be memory.

        Only inside `built`: what lies there when the next one begins is of a process that died.
        """
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=SCRATCH) as folder:
            yield Path(folder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("images: waiting for another build")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _forget(self) -> None:
        """Remove layers of former pins, and archives of processes that were killed: gigabytes."""
        for store in self.folder.glob("store-*"):
            if store != self._store:
                shutil.rmtree(store)
        for scratch in self.folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(scratch)

    def _ensure_base(self) -> None:
        if self._has(BASE):
            return
        recipe = hashlib.sha256(repr(BASE_COMMAND).encode()).hexdigest()[:12]
        archive = self.folder / f"base-{recipe}.tar"
        if not archive.exists():
            self._say("images: making the Python base (about a minute, once)")
            unfinished = archive.with_suffix(".unfinished.tar")
            self._run([*BASE_COMMAND, str(unfinished)])
            unfinished.replace(archive)
        with tempfile.TemporaryDirectory() as context:
            recipe_file = Path(context, "Dockerfile")
            recipe_file.write_text(f'FROM scratch\nADD {archive.name} /\nCMD ["python3"]\n')
            self._buildah("bud", "--tag", BASE, "--file", str(recipe_file), str(self.folder))

    def _build(self, recipe: Recipe) -> None:
        began = time.monotonic()
        if recipe.base:
            config = self._bud(recipe, "--build-arg=BASE=" + RECIPES[recipe.base].reference)
        else:
            runtime = _runtime_of(recipe)
            new = not self._has(runtime)
            if new:
                self._make_runtime(recipe, runtime)
            config = self._bud(recipe, f"--build-arg=RUNTIME={runtime}")
            if new:
                self._forget_stages(recipe, runtime)
        if self.layout.config_digest(recipe.reference) == config:
            return
        self._export(recipe.reference)
        size = self.layout.size(recipe.reference) / 2**20
        seconds = time.monotonic() - began
        self._say(f"images: built {recipe.reference} in {seconds:.0f} s ({size:.0f} MiB)")

    def _make_runtime(self, recipe: Recipe, reference: str) -> None:
        self._say(f"images: installing the packages of {recipe.repository}")
        arguments = {"TORCH": self._torch()} if recipe.name == "worker" else {}
        flags = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        self._bud(recipe, "--target=runtime", *flags, tag=reference)

    def _forget_stages(self, recipe: Recipe, runtime: str) -> None:
        """Remove what only the making of a runtime needed, and runtimes before it: gigabytes."""
        name = f"{recipe.repository}-runtime"
        for tag in self._buildah("images", "--format={{.Tag}}", name, check=False).split():
            if f"{name}:{tag}" != runtime:
                self._buildah("rmi", f"{name}:{tag}", check=False)
        self._buildah("rmi", "--prune", "--force", check=False)

    def _bud(self, recipe: Recipe, *flags: str, tag: str | None = None) -> str:
        """Build, with every layer that did not change taken from the store; the image's id."""
        arguments = {} if recipe.base else {"BASE": BASE}
        arguments |= recipe.arguments
        with tempfile.TemporaryDirectory() as folder:
            package_settings.of_this_machine(Path(folder))
            secrets = [f"--secret=id={path.name},src={path}" for path in Path(folder).iterdir()]
            identity = Path(folder, "identity")
            self._buildah(
                *("bud", "--layers", "--pull-never", *secrets, *flags),
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                *("--tag", tag or recipe.reference, "--iidfile", str(identity)),
                *("--file", str(ROOT / recipe.dockerfile), str(ROOT)),
            )
            return identity.read_text().strip()

    def _has(self, reference: str) -> bool:
        return bool(self._buildah("images", "--quiet", reference, check=False).strip())

    def _export(self, reference: str) -> None:
        # Not by `buildah push`, which would pack every layer anew each time.
        store = f"[overlay@{self._store}+{self._state}]"
        self._run(
            [
                *("skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers"),
                f"containers-storage:{store}{reference}",
                self.layout.address(reference),
            ]
        )

    def _torch(self) -> str:
        """The variant of torch that this machine can get; asked once for each version."""
        wanted = (ROOT / "requirements/torch.txt").read_text().splitlines()[-1]
        answer = self.folder / wanted
        if not answer.exists():
            answer.write_text("cpu" if _serves_cpu_build(wanted) else "cpu-from-cuda")
            if answer.read_text() == "cpu-from-cuda":
                self._say(
                    "images: PyTorch's own index cannot be reached; the worker's image gets PyPI's"
                    " build without its GPU parts (TORCH=cpu-from-cuda), more than twice as big"
                )
        return answer.read_text()

    def _buildah(self, *arguments: str, check: bool = True) -> str:
        store = ["--root", str(self._store), "--runroot", str(self._state)]
        return self._run(["buildah", *store, "--storage-driver=overlay", *arguments], check)

    def _run(self, command: Sequence[str], check: bool = True) -> str:
        """What the command wrote to stdout. Its stderr goes to the log. Raises BuildFailed."""
        with self._log.open("w") as log:
            done = subprocess.run(
                command,
                env=os.environ | {"BUILDAH_ISOLATION": "chroot"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=BUILD_SECONDS,
            )
        if check and done.returncode:
            said = (done.stdout + self._log.read_text()).splitlines()[-25:]
            raise BuildFailed("\n".join([f"{command[0]} ended with {done.returncode}:", *said]))
        return done.stdout


def _pins() -> str:
    """A hash of everything that layers of packages follow from."""
    digest = hashlib.sha256(repr(BASE_COMMAND).encode())
    for name in ("gateway", "image", "operator", "torch", "worker"):
        digest.update((ROOT / f"requirements/{name}.txt").read_bytes())
    return digest.hexdigest()[:12]


def _runtime_of(recipe: Recipe) -> str:
    """The name of the image with everything but the product's code.

    It is built apart, because to see that its layers are unchanged buildah would read all their
    gigabytes each time.
    """
    content = (ROOT / recipe.dockerfile).read_bytes() + repr(recipe).encode()
    return f"{recipe.repository}-runtime:{hashlib.sha256(content).hexdigest()[:12]}"


def _serves_cpu_build(requirement: str) -> bool:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else "uv"
    with tempfile.TemporaryDirectory() as target:
        probe = subprocess.run(
            [
                *(uv, "pip", "install", "--quiet", "--dry-run", "--no-deps"),
                *("--torch-backend=cpu", "--target", target, requirement),
            ],
            env=os.environ | {"UV_HTTP_TIMEOUT": PROBE_SECONDS, "UV_HTTP_RETRIES": "0"},
            capture_output=True,
        )
    return probe.returncode == 0


def docker_serves() -> bool:
    """There is a Docker whose daemon answers."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def build_with_docker(names: Sequence[str], say: Say = say_to_stderr) -> list[Recipe]:
    """The same images in Docker's own store, on the Dockerfiles' own base. Raises BuildFailed."""
    recipes = with_bases(list(names))
    for recipe in recipes:
        arguments = dict(recipe.arguments)
        if recipe.base:
            arguments["BASE"] = RECIPES[recipe.base].reference
        command = ["docker", "build", "--tag", recipe.reference, "--file", recipe.dockerfile]
        command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        with tempfile.TemporaryDirectory() as folder:
            package_settings.of_this_machine(Path(folder))
            for secret in Path(folder).iterdir():
                command.append(f"--secret=id={secret.name},src={secret}")
            say(f"images: docker builds {recipe.reference}")
            if subprocess.run([*command, "."], cwd=ROOT).returncode:
                raise BuildFailed(f"docker could not build {recipe.reference}")
    return recipes
