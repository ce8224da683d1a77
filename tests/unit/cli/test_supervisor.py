"""Child processes, with real ones: output, exit reasons, signals, and death with the parent."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable

import psutil
import pytest

from sluice_cli.up.exits import Exit
from sluice_cli.up.supervisor import Child, spawn


async def _spawn(code: str, lines: list[str], **options: object) -> Child:
    return await spawn(
        "child",
        ["-c", code],
        env=dict(os.environ),
        on_line=lines.append,
        **options,  # type: ignore[arg-type]
    )


async def test_lines_of_both_streams_and_the_exit_code() -> None:
    lines: list[str] = []
    child = await _spawn(
        "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)", lines
    )
    assert await asyncio.wait_for(child.wait(), 60) == Exit(3, "err")
    assert lines == ["out", "err"]
    assert repr(child) == f"<Child child pid={child.pid} exit=3>"


async def test_a_last_line_without_an_end_counts() -> None:
    lines: list[str] = []
    child = await _spawn("import sys; sys.stderr.write('half a line')", lines)
    assert (await asyncio.wait_for(child.wait(), 60)).last_line == "half a line"


async def test_terminate_and_kill() -> None:
    lines: list[str] = []
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('draining', flush=True))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(60)"
    )
    child = await _spawn(code, lines)
    await _until(lambda: lines == ["up"])
    child.terminate()
    await _until(lambda: lines == ["up", "draining"])
    assert child.running
    child.kill()
    ended = await asyncio.wait_for(child.wait(), 60)
    assert ended.code == -signal.SIGKILL
    assert ended.describe() == "ended by SIGKILL (out of memory, or killed by hand)"
    child.kill()  # Nothing is left to signal; nothing happens.


async def test_a_child_inherits_the_sockets_it_is_given_and_no_others() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        socket.create_server(("127.0.0.1", 0)) as kept,
    ):
        lines: list[str] = []
        code = (
            "import os, socket\n"
            f"print(socket.socket(fileno={given.fileno()}).getsockname()[1])\n"
            f"try: os.fstat({kept.fileno()})\n"
            "except OSError: print('closed')"
        )
        child = await _spawn(code, lines, fds=[given.fileno()])
        await asyncio.wait_for(child.wait(), 60)
        assert lines == [str(given.getsockname()[1]), "closed"]


async def test_ctrl_c_of_the_terminal_does_not_reach_a_child() -> None:
    child = await _spawn("import time; time.sleep(60)", [])
    assert os.getpgid(child.pid) == child.pid != os.getpgrp()
    child.kill()
    await asyncio.wait_for(child.wait(), 60)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
async def test_a_child_dies_with_a_parent_that_was_killed() -> None:
    code = (
        "import asyncio, os, pathlib, sys\n"
        "from sluice_cli.up.supervisor import spawn\n"
        "async def main():\n"
        "    code = 'import time; print(1, flush=True); time.sleep(60)'\n"
        "    child = await spawn('c', ['-c', code],\n"
        "        env=dict(os.environ), on_line=lambda _: print(child.pid, flush=True))\n"
        "    await child.wait()\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 60))
    assert psutil.pid_exists(pid)
    parent.kill()
    await parent.wait()
    await _until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  a process tells nobody
            await asyncio.sleep(0.01)
