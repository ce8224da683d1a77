"""A real one-node Kubernetes for tests: started, used, disturbed and ended by one object.

Everything runs inside namespaces of its own under one process (see `box`); ending that process ends
all of it, and it ends by itself when the process that started it goes. The fixture in
tests/cluster/conftest.py makes one a session; `python -m tests.support.cluster` one for a person.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from . import archives, control, leftovers, machine, programs, stores
from .access import COMMAND_SECONDS, Access, ClusterError
from .options import API_SERVER, Options, Site, decode, encode
from .processes import tail

ROOT = Path(__file__).parents[3]
START_SECONDS = 300.0
END_SECONDS = 20.0
CONTROL_SECONDS = 75.0
NAMESPACES = ("--net", "--mount", "--pid")
CRI_KNOWS_IT = "io.cri-containerd.image=managed"


class Cluster(Access):
    """One running cluster, made by `start` or found by `join`."""

    def __init__(self, site: Site, options: Options) -> None:
        super().__init__(site.kubeconfig(), (site.programs, site.tools))
        self.site = site
        self.options = options
        self.steps: list[tuple[str, float]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._forwarded: dict[tuple[str, int], tuple[str, int]] = {}

    def __repr__(self) -> str:
        last = f"{self.steps[-1][0]} after {self.steps[-1][1]} s" if self.steps else "starting"
        return f"<Cluster {self.site.name}, Kubernetes {self.options.release}, {last}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    # Starting and ending --------------------------------------------------------------------------

    @classmethod
    def start(
        cls, options: Options | None = None, *, owned: bool = True, name: str | None = None
    ) -> "Cluster":
        """Build what is missing, then bring a cluster up.

        owned: it ends when this process does; otherwise it stays until somebody ends it.
        Raises ClusterError with the step that failed and the ends of the logs, FileExistsError if a
        cluster of that name runs, programs.BuildError.
        """
        _until_there_are_watches()
        wanted = options or Options()
        kubernetes = programs.ensure(programs.kubernetes(wanted.release))
        tools = programs.ensure(programs.tools())
        leftovers.clean()
        with ExitStack() as kept:
            state, lock = leftovers.make_state_folder(name)
            kept.enter_context(lock)
            store, store_lock = stores.take(programs.cache_folder())
            kept.enter_context(store_lock)
            listener = kept.enter_context(_listen())
            port = listener.getsockname()[1]
            cluster = cls(Site(state, store, kubernetes, tools, port), wanted)
            cluster.site.description.write_text(encode(wanted, cluster.site))
            try:
                cluster._launch([lock, store_lock], owned=owned)
                cluster._call(do="forward", handing=listener, host="127.0.0.1", port=port)
                if not wanted.control_plane_only:
                    cluster.load(archives.pause(tools), archives.busybox())
            except BaseException:
                cluster.end()
                raise
        return cluster

    @classmethod
    def join(cls, state: Path) -> "Cluster":
        """The running cluster of a state folder. Raises ClusterError if there is none."""
        try:
            options, site = decode((state / "cluster.json").read_text())
        except FileNotFoundError:
            name = state.name.removeprefix("sluice-cluster-")
            raise ClusterError(f"there is no cluster {name}; make cluster brings one up") from None
        cluster = cls(site, options)
        cluster.check()
        return cluster

    def _launch(self, locks: list[IO[str]], *, owned: bool) -> None:
        report, told = os.pipe()
        descriptors = [told, *(lock.fileno() for lock in locks)]
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
        command += [sys.executable, "-m", f"{__package__}.box", encode(self.options, self.site)]
        command += ["--report", str(told)]
        for lock in locks:
            command += ["--lock", str(lock.fileno())]
        if owned:
            owner = os.pidfd_open(os.getpid())
            descriptors.append(owner)
            command += ["--owner", str(owner)]
        with (
            (self.site.state / "box.log").open("w") as log,
            open(report, "rb", buffering=0) as steps,
        ):
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                start_new_session=True,  # an interrupt at the terminal reaches the owner first
            )
            os.close(told)
            if owned:
                os.close(owner)
            self._follow(steps)

    def _follow(self, steps: IO[bytes]) -> None:
        """Read the box's progress until it is ready. Raises ClusterError."""
        pending = b""
        deadline = time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(steps, selectors.EVENT_READ)
            while selector.select(deadline - time.monotonic()):
                chunk = steps.read(4096)
                if not chunk:
                    raise ClusterError(f"the cluster's box ended\n{self.logs()}")
                *lines, pending = (pending + chunk).split(b"\n")
                for line in map(json.loads, lines):
                    self.steps.append((line["step"], line["seconds"]))
                    if line["step"] == "failed":
                        raise ClusterError(f"{line['error']}\n{self.steps}\n{self.logs()}")
                    if line["step"] == "ready":
                        return
        raise ClusterError(f"not up within {START_SECONDS:.0f} s: {self.steps}\n{self.logs()}")

    def end(self) -> None:
        """End everything and remove what it left. Ending twice is allowed."""
        self.close()
        with suppress(OSError, control.ControlError):
            control.call(self.site.control_socket, 5.0, do="end")
        self._until_gone()
        leftovers.remove(self.site.state)

    def _until_gone(self) -> None:
        if self._process:
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        else:
            self.until(self._is_gone, "the cluster's end", END_SECONDS)

    def _is_gone(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.site.control_socket))
            return False
        return True

    # Using ----------------------------------------------------------------------------------------

    @cached_property
    def pid(self) -> int:
        """The process id, outside, of the first process inside."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.site.control_socket))
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder)

    def exec(
        self,
        command: Sequence[str],
        *,
        seconds: float = COMMAND_SECONDS,
        check: bool = True,
        stdin: str | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside: the cluster's network and its DNS, this machine's files.

        Raises RuntimeError with its output if it fails and `check` is set.
        """
        return self._run([*self.entering(), *command], seconds, check, stdin)

    def entering(self) -> list[str]:
        """The start of a command line that runs the rest of it inside, in the current folder."""
        return self._into(str(Path.cwd()))

    def entrance(self) -> str:
        """A line for any shell in any folder that opens a shell inside, in that folder."""
        path = ":".join([*map(str, self._programs), "$PATH"])
        variables = [f'KUBECONFIG="{self.kubeconfig}"', f'PATH="{path}"']
        return " ".join([*self._into('"$PWD"'), *variables, "bash"])

    def _into(self, folder: str) -> list[str]:
        # The folder that `nsenter --wd` takes along lies outside of the namespace, where programs
        # in Go, such as Helm, cannot tell its name: env goes there once inside.
        inside = ["nsenter", "-t", str(self.pid), *NAMESPACES]
        return [*inside, "--", "env", f"--chdir={folder}"]

    def forward(self, host: str, port: int) -> tuple[str, int]:
        """An address of 127.0.0.1 that leads to one inside: a ClusterIP, a pod, a DNS name.

        It stays as long as the cluster; whoever asks again gets the same one.
        """
        target = (host, port)
        if target not in self._forwarded:
            address = self._call(do="forwarded", host=host, port=port)
            self._forwarded[target] = tuple(address) if address else self._open(host, port)
        return self._forwarded[target]

    def _open(self, host: str, port: int) -> tuple[str, int]:
        with _listen() as listener:  # the box keeps its own handle
            self._call(do="forward", handing=listener, host=host, port=port)
            address: tuple[str, int] = listener.getsockname()
            return address

    def url(self, host: str, port: int = 80) -> str:
        """Like `forward`, as the start of an HTTP address, without a slash at its end."""
        outside, outside_port = self.forward(host, port)
        return f"http://{outside}:{outside_port}"

    def service_url(self, namespace: str, name: str, port: int = 80) -> str:
        """By the Service's DNS name; see `url`."""
        return self.url(f"{name}.{namespace}.svc.cluster.local", port)

    def load(self, *image_archives: Path) -> list[str]:
        """Put images into the node; an archive that is there already costs nothing.

        Takes archives of `docker save` or OCI layouts; gives the names that were new. Raises
        RuntimeError if one is refused.
        """
        new: list[str] = []
        for archive in image_archives:
            if not self.has(archive):
                imported = self._ctr("images", "import", str(archive), seconds=600)
                new += self._mark(imported, archives.manifest_digest(archive))
        return new

    def has(self, archive: Path) -> bool:
        """Whether the node has this very image already."""
        digest = archives.manifest_digest(archive)
        return f"sluice.dev/archive={digest}" in self._ctr("images", "ls")

    def _mark(self, imported: str, digest: str) -> list[str]:
        """Note where images came from, once the kubelet's side has seen them too."""
        names = [line.split()[1] for line in imported.splitlines() if line.startswith("unpacking ")]
        if not names:
            raise RuntimeError(f"ctr said nothing of an image: {imported!r}")
        for name in names:
            chosen = ("images", "ls", f"name=={name}")
            self.until(
                lambda chosen=chosen: CRI_KNOWS_IT in self._ctr(*chosen),  # type: ignore[misc]
                f"the kubelet sees the image {name}",
            )
            self._ctr("images", "label", name, f"sluice.dev/archive={digest}")
        return names

    def _ctr(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        command = ["ctr", "-a", str(self.site.containerd_socket), "-n", "k8s.io", *arguments]
        return self._run(command, seconds, check=True, stdin=None).stdout

    def advertise(self, resource: str, count: int) -> None:
        """Let the node have an extended resource, such as nvidia.com/gpu, that it does not have."""
        key = resource.replace("~", "~0").replace("/", "~1")
        # The kubelet derives what is allocatable only at its next report, some seconds later.
        patch = [
            {"op": "add", "path": f"/status/{field}/{key}", "value": str(count)}
            for field in ("capacity", "allocatable")
        ]
        self.kubectl(
            *("patch", "node", "node1", "--subresource=status", "--type=json"),
            *("-p", json.dumps(patch)),
        )

    # Disturbing -----------------------------------------------------------------------------------

    def stop(self, daemon: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one daemon (see options.DAEMONS) and wait for its end."""
        self._call(do="stop", name=daemon, signal=int(how))

    def begin(self, daemon: str) -> None:
        """Start a stopped daemon and wait until it answers."""
        self._call(do="start", name=daemon)

    def restart(self, daemon: str = API_SERVER, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop a daemon, start it, wait until it answers."""
        self.stop(daemon, how)
        self.begin(daemon)

    def send(self, daemon: str, what: signal.Signals) -> None:
        """Send one signal to a daemon: SIGSTOP freezes it, SIGCONT lets it go on."""
        self._call(do="signal", name=daemon, signal=int(what))

    def running(self) -> dict[str, int]:
        """The daemons that run, with their process ids inside."""
        found: dict[str, int] = self._call(do="status")["running"]
        return found

    def repair(self) -> None:
        """Start what a test stopped and did not start again; a frozen daemon goes on."""
        running = self.running()
        for daemon in self.options.daemons:
            if daemon in running:
                self.send(daemon, signal.SIGCONT)
            else:
                self.begin(daemon)

    def check(self) -> None:
        """Raises ClusterError if the box has gone or a daemon ended that nobody stopped."""
        try:
            deaths = self._call(do="status")["deaths"]
        except OSError as error:
            raise ClusterError(f"the cluster's box is gone: {error}\n{self.logs()}") from None
        if deaths:
            raise ClusterError("\n".join(deaths))

    def describe(self, namespace: str) -> str:
        return f"{super().describe(namespace)}\n{self.logs(5)}"

    def logs(self, lines: int = 15, daemons: Iterable[str] | None = None) -> str:
        """The ends of the daemons' logs."""
        site = self.site
        paths = {path.stem: path for path in sorted(site.logs.glob("*.log"))}
        chosen = [
            site.state / "box.log",
            *(paths[name] for name in daemons or paths if name in paths),
        ]
        return "\n".join(f"--- {path.stem}\n{tail(path, lines)}" for path in chosen)

    def _call(self, handing: socket.socket | None = None, **request: Any) -> Any:
        return control.call(self.site.control_socket, CONTROL_SECONDS, handing=handing, **request)


def _until_there_are_watches() -> None:
    """Other tests' clusters may have them all, and will end. Raises ClusterError."""
    deadline = time.monotonic() + START_SECONDS
    while not machine.has_watches():
        if time.monotonic() > deadline:
            raise ClusterError(
                "the kernel's inotify instances are used up (a cluster takes some 25): "
                "end other clusters, or sysctl fs.inotify.max_user_instances=1024"
            )
        time.sleep(1)


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listener.setblocking(False)
    return listener
