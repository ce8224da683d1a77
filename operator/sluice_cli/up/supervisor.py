"""One local child process: started in its own process group, read line by line, ended by handle.

The gateway and every worker are such children. Who restarts them, and when, is decided elsewhere
(``instances.py`` for workers, ``gateway.py`` for the gateway); here is only what a process is.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sluice_cli.up.exits import Exit
from sluice_cli.up.loglines import Lines

_GUARD = Path(__file__).with_name("guard.py")
_TAIL_SECONDS = 1.0
"""How long output is awaited once the process has ended: a grandchild may hold the pipe open."""


class Child:
    """A running process. Made by :func:`spawn`; whoever makes it awaits :meth:`wait`."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, on_line: Callable[[str], None]
    ) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._on_line = on_line
        self._last_line = ""
        self._reader = asyncio.create_task(self._read(), name=f"read {name}")
        self._waiter = asyncio.create_task(self._wait(), name=f"wait {name}")

    def __repr__(self) -> str:
        code = self._process.returncode
        return f"<Child {self.name} pid={self.pid} {'running' if code is None else f'exit={code}'}>"

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def terminate(self) -> None:
        """Ask the process to drain and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and everything in its group at once."""
        self._signal(signal.SIGKILL)

    async def wait(self) -> Exit:
        """How it ended, once it has. May be awaited by several, and cancelled by each alone."""
        return await asyncio.shield(self._waiter)

    def _signal(self, number: signal.Signals) -> None:
        if not self.running:
            return
        try:
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                self._process.send_signal(number)
        except ProcessLookupError:
            pass  # It ended just now.

    async def _wait(self) -> Exit:
        code = await self._process.wait()
        await asyncio.wait([self._reader], timeout=_TAIL_SECONDS)
        self._reader.cancel()
        return Exit(code, self._last_line)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        lines = Lines()
        while data := await self._process.stdout.read(65536):
            self._tell(lines.feed(data))
        self._tell(lines.finish())

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self._last_line = line
            self._on_line(line)


async def spawn(
    name: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    fds: Sequence[int] = (),
    on_line: Callable[[str], None],
) -> Child:
    """Start ``python ARGV…`` so that it dies with this process and hears no Ctrl-C of its terminal.

    Args:
        argv: arguments of the interpreter, for example ``["-m", "sluice_worker"]``.
        fds: descriptors it inherits, under the same numbers.
        on_line: called with every line it writes to stdout or stderr.
    """
    guard = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid())]
    process = await asyncio.create_subprocess_exec(
        *guard,
        sys.executable,
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(env),
        pass_fds=tuple(fds),
        process_group=0,
    )
    return Child(name, process, on_line)
