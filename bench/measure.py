"""What every benchmark here needs: pinned processes, their CPU time, wrk, a table and a JSON file.

Figures are CPU time per request, because that is stable on a shared machine; throughput of one core
is its inverse. Peers run in turn within one round and rounds repeat, so that a drift of the machine
hits all of them; the median over the rounds counts.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PEERS = _CACHE / "sluice" / "bench-peers"

SUBJECT_CORE, LOAD_CORE = 0, (1 if (os.cpu_count() or 1) > 1 else 0)
"""What is measured has a core to itself; load, backend and Redis share the other."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A child pinned to one core, measured as a whole tree, ended by handle."""

    command: Sequence[str]
    core: int | None
    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> "Process":
        self.log = tempfile.TemporaryFile()
        self.child = subprocess.Popen(
            list(self.command),
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        if self.core is not None:
            os.sched_setaffinity(self.child.pid, {self.core})
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(10)
                break
        self.log.close()

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def wait_for(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.command[0]} did not start:\n{self.output()[-2000:]}")
            time.sleep(0.05)

    def tree(self) -> list[int]:
        pids, queue = [], [self.child.pid]
        while queue:
            pid = queue.pop()
            pids.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    queue += map(int, (task / "children").read_text().split())
        return pids

    def cpu_seconds(self) -> float:
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def memory_mib(self) -> float:
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
        return total / 1024


def listening(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return ready


@dataclass(frozen=True)
class Load:
    """What one wrk run saw."""

    requests: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float


_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('@{"requests":%d,"seconds":%f,"failed":%d,"p50_ms":%f,"p99_ms":%f}@',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


def wrk(url: str, script: str, *, connections: int, seconds: float) -> Load:
    """Closed loop, one thread, keep-alive. ``script`` is Lua that sets up the request."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + _DONE)
        file.flush()
        output = subprocess.run(
            [
                "wrk",
                "-t1",
                f"-c{connections}",
                f"-d{max(1, round(seconds))}s",
                "-s",
                file.name,
                url,
            ],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE}),
        ).stdout
    match = re.search(r"@(\{.*\})@", output)
    if match is None:
        raise RuntimeError(output)
    return Load(**json.loads(match[1]))


class Unavailable(Exception):
    """A peer cannot be had on this machine; the message says why and what to do."""


def program(name: str) -> str:
    """The path of an installed program. Raises :class:`Unavailable`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Unavailable(f"{name} is not installed; `make bench` installs it where it may")
    return found


def peer_venv(requirement: str) -> Path:
    """The programs of a virtual environment for a peer from the package index; made once.

    Raises :class:`Unavailable`.
    """
    folder = PEERS / re.sub(r"[^a-zA-Z0-9.]+", "-", requirement)
    if not (folder / ".done").exists():
        print(f"▸ installing {requirement} for comparison, into {folder}", file=sys.stderr)
        uv = shutil.which("uv") or str(Path(sys.prefix) / "bin" / "uv")
        environment = {**os.environ, "VIRTUAL_ENV": str(folder)}
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", requirement],
        ):
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ended.returncode:
                why = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise Unavailable(f"{requirement} cannot be installed: {why}")
        (folder / ".done").touch()
    return folder / "bin"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        # nginx drops root for its workers, which must still reach their files.
        Path(name).chmod(0o777)
        yield Path(name)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


_ABOUT = """
import json, platform, sysconfig
print(json.dumps([
    f"{platform.python_implementation()} {platform.python_version()}",
    sysconfig.get_config_var("CONFIG_ARGS") or "",
    "posix_local" in sysconfig.get_scheme_names(),
]))
"""


def interpreter(python: str = sys.executable) -> str:
    """Which Python ``python`` is, and whether it was built for speed, as far as it can tell."""
    try:
        told = subprocess.run([python, "-c", _ABOUT], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"--python: {python} does not run, give another: {error}") from None
    version, arguments, of_debian = json.loads(told.stdout)
    if "--enable-optimizations" in arguments:
        return f"{version}, built with --enable-optimizations"
    if of_debian:  # Or of Ubuntu: optimised, by rules of its own that its configuration conceals.
        return f"{version} of Debian, which optimises"
    return f"{version}, built without --enable-optimizations"


def machine() -> dict[str, Any]:
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpus": os.cpu_count(),
        "cpu": model[1] if model else platform.processor(),
        "python": platform.python_version(),
        "python_build": sysconfig.get_config_var("CONFIG_ARGS"),
        "kernel": platform.release(),
    }


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table as the pages of ``docs/`` have them."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    print(f"\n{title}\n")
    for line in lines:
        print(f"| {line} |")


def save(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    print(f"\n  written to bench/results/{path.name}")
