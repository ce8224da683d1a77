"""The daemons of a cluster as children of the box, which is the first process of its namespace.

It spawns them into their log files, reaps them and whatever they leave behind (a first process
inherits every orphan), and stops or starts one at a test's wish. An end that nobody asked for is
kept and reported: a test must not pass on a cluster that lost a part.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class DaemonDiedError(Exception):
    """A daemon ended by itself; the message carries the end of its log."""


@dataclass
class Daemon:
    """One program: its command line, and the process that runs it now."""

    name: str
    command: list[str]
    log: Path
    pid: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __repr__(self) -> str:
        return f"<Daemon {self.name} {self.pid or 'not running'}>"


class Processes:
    """The daemons of one box."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = dict(environment)
        self._daemons: dict[str, Daemon] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._stopping: set[str] = set()
        self._runs = 0
        self.deaths: list[str] = []

    def __repr__(self) -> str:
        running = [name for name, daemon in self._daemons.items() if daemon.pid]
        return f"<Processes {', '.join(running)}; {len(self.deaths)} died>"

    def watch(self) -> None:
        """Reap from now on. Call it once, inside the running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def running(self) -> dict[str, int]:
        """The daemons that run, with their process ids inside the box."""
        return {name: daemon.pid for name, daemon in self._daemons.items() if daemon.pid}

    def start(self, name: str, command: list[str] | None = None) -> None:
        """Start a daemon, with a command line the first time."""
        if command is not None:
            self._daemons[name] = Daemon(name, command, self._logs / f"{name}.log")
        daemon = self._daemons[name]
        if daemon.pid:
            raise ValueError(f"{name} runs already")
        daemon.ended.clear()
        daemon.pid = self._spawn(daemon.command, daemon.log)

    async def stop(self, name: str, how: signal.Signals, seconds: float = 10.0) -> None:
        """End a daemon; one that does not heed the signal in time is killed."""
        daemon = self._daemons[name]
        if not daemon.pid:
            return
        self._stopping.add(name)
        os.kill(daemon.pid, how)
        try:
            await asyncio.wait_for(daemon.ended.wait(), seconds)
        except TimeoutError:
            os.kill(daemon.pid, signal.SIGKILL)
            await daemon.ended.wait()
        finally:
            self._stopping.discard(name)

    async def run(self, *command: str, seconds: float = 30.0) -> str:
        """What a program printed. Raises RuntimeError with that if it fails."""
        self._runs += 1
        log = self._logs / f"command-{self._runs}.log"
        pid = self._spawn(list(command), log)
        end = asyncio.get_running_loop().create_future()
        self._ends[pid] = end
        code = await asyncio.wait_for(end, seconds)
        output = log.read_text(errors="replace")
        log.unlink()
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}: {output}")
        return output

    def check(self) -> None:
        """Raises DaemonDiedError if a daemon ended that nobody stopped."""
        if self.deaths:
            raise DaemonDiedError("\n".join(self.deaths))

    def _spawn(self, command: list[str], log: Path) -> int:
        write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), write, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        return os.posix_spawnp(
            command[0], command, self._environment, file_actions=actions, setsid=True
        )

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._note_end(pid, os.waitstatus_to_exitcode(status))

    def _note_end(self, pid: int, code: int) -> None:
        end = self._ends.pop(pid, None)
        if end is not None and not end.done():
            end.set_result(code)
        for daemon in self._daemons.values():
            if daemon.pid == pid:
                daemon.pid = None
                daemon.ended.set()
                if daemon.name not in self._stopping:
                    story = f"{daemon.name} ended with {code}:\n{tail(daemon.log)}"
                    self.deaths.append(story)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log file; empty where there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
