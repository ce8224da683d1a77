"""One child's place under a supervisor: started, listened to, replaced when it ends.

``supervisor`` keeps one :class:`Slot` for each process. Children are processes of their own group,
so that a key pressed at a terminal reaches the supervisor alone, which passes it on once.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sluice_gateway.processes.link import Answered, Ask, Down, Link, Ready, Ticked, Told, Up
from sluice_gateway.processes.sums import Page

FIRST_PAUSE_SECONDS: Final = 0.1
MAX_PAUSE_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 30.0
"""A child that served for so long has shown that it can; its next end is a first one again."""
SILENT_TICKS: Final = 15
"""A child that leaves so many seconds unanswered hangs, and is ended."""
START_TICKS: Final = 120
"""So many seconds has one that was never heard: to be loaded takes long on a busy machine."""
ASK_SECONDS: Final = 12.0
"""A little longer than a child takes at most, so that it can say that it took too long."""

log = logging.getLogger(__name__)


def pause_before_restart(ends: int) -> float:
    """Seconds until a child is started again that has ended ``ends`` times in a row."""
    return min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (ends - 1))


@contextlib.contextmanager
def _nameless(text: str) -> Iterator[int]:
    """A file of ``text`` for a child to read, of which nothing stays, whoever ends and however."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file.fileno()


class Gone(Exception):
    """The child ended, or does not answer."""


class Slot:
    """A child, or the place of one that is to come. :meth:`run` is a task of the supervisor.

    Attributes:
        page: of metrics, the last that it told.
        restarts: how often a child ended that was not asked to.

    Args:
        arguments: of the command line.
        cache_secret: what children are given as ``--cache-secret``, where the arguments have none.
        on_joined: called when a new child can be told things.
        on_ready: called when it serves, and when nothing is heard of it any more.
        on_told: given what it tells of demand.
        on_gone: called when it has ended.
    """

    def __init__(
        self,
        number: int,
        arguments: Sequence[str],
        listener: socket.socket,
        *,
        on_joined: Callable[["Slot"], None],
        on_ready: Callable[[], None],
        on_told: Callable[["Slot", Told], None],
        on_gone: Callable[["Slot"], None],
        cache_secret: str | None = None,
    ) -> None:
        self.number = number
        self.page: Page = {}
        self.restarts = 0
        self.ready = asyncio.Event()
        self._arguments = arguments
        self._listener = listener
        self._cache_secret = cache_secret
        self._on_joined = on_joined
        self._on_ready = on_ready
        self._on_told = on_told
        self._on_gone = on_gone
        self._process: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self._stopping = asyncio.Event()
        self._served = False
        self._heard = False
        self._unanswered = 0
        self._asks: dict[int, asyncio.Future[Answered]] = {}
        self._asked = 0

    def __repr__(self) -> str:
        pid = self._process.pid if self._process is not None else "-"
        state = "ready" if self.ready.is_set() else "not ready"
        return f"<Slot {self.number} pid {pid} {state}, {self.restarts} restarts>"

    async def run(self, *, first: bool = False) -> int:
        """Keep a child running until :meth:`stop`. Returns the exit code of the last one.

        Args:
            first: nobody serves yet. A child that ends before it does ends this too then: others
                would fare no better.
        """
        ends = 0
        while True:
            code, served_seconds = await self._live()
            hopeless = first and not self.restarts and served_seconds is None
            if self._stopping.is_set() or hopeless:
                return code
            ends = 1 if (served_seconds or 0.0) >= STEADY_SECONDS else ends + 1
            self.restarts += 1
            pause = pause_before_restart(ends)
            log.error(
                "process ended", extra={"child": self.number, "code": code, "restart_in": pause}
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                return code

    def send(self, message: Down) -> None:
        if self._link is not None:
            self._link.send(message)

    def tick(self, message: Down) -> None:
        """A second has passed. A child that has not answered for long is ended."""
        if self._link is None:
            return
        if self._unanswered >= (SILENT_TICKS if self._heard else START_TICKS):
            log.error("process does not react", extra={"child": self.number})
            self._unanswered = 0
            self.signal(signal.SIGKILL)
            return
        self._unanswered += 1
        self.send(message)

    async def ask(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> Answered:
        """The child's answer to a request of the admin port. Raises :class:`Gone`."""
        if self._link is None:
            raise Gone
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._asks[number] = answer
        try:
            self.send(Ask(number, method, path, query, headers, body))
            async with asyncio.timeout(ASK_SECONDS):
                return await answer
        except TimeoutError:
            raise Gone from None
        finally:
            self._asks.pop(number, None)

    def stop(self) -> None:
        """Ask the child to end; asked twice, it does not wait for its clients."""
        # Two signals of one number are one to a child that has not yet run since the first.
        self.signal(signal.SIGINT if self._stopping.is_set() else signal.SIGTERM)
        self._stopping.set()

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    # ----------------------------------------------------------------------------------------------

    async def _live(self) -> tuple[int, float | None]:
        """One child's life: its exit code, and for how long it served, if it did."""
        ours, theirs = socket.socketpair()
        began = time.monotonic()
        try:
            self._process = await self._start(theirs)
        except OSError as error:  # No memory, no process left: there may be some later.
            log.error("process not started", extra={"child": self.number, "reason": str(error)})
            ours.close()
            return 1, None
        finally:
            theirs.close()
        self._link = await Link.over(ours, Up, self._take, self._lost)
        self._unanswered, self._heard, self._served = 0, False, False
        self._on_joined(self)
        if self._stopping.is_set():
            self.signal(signal.SIGTERM)  # Asked while it was being started.
        code = await self._process.wait()
        served = time.monotonic() - began if self._served else None
        self._served = False
        self._link.close()
        self._link = None
        self._lost()
        self._on_gone(self)
        return code, served

    async def _start(self, end: socket.socket) -> asyncio.subprocess.Process:
        descriptors = [end.fileno(), self._listener.fileno()]
        arguments = [*map(str, descriptors), *self._arguments]
        with contextlib.ExitStack() as files:
            if self._cache_secret is not None:
                secret = files.enter_context(_nameless(self._cache_secret))
                descriptors.append(secret)
                arguments += ["--cache-secret", f"/dev/fd/{secret}"]
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "sluice_gateway.processes.child", str(self.number)),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
            )

    def _take(self, message: Any) -> None:
        self._heard = True
        match message:
            case Told():
                self._on_told(self, message)
            case Ticked():
                self._unanswered = 0
            case Answered(number):
                waiting = self._asks.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case Ready():
                self._served = True
                self.ready.set()
                self._on_ready()

    def _lost(self) -> None:
        """Nothing is heard of it any more. It ends by itself, or :meth:`tick` has it ended."""
        if self.ready.is_set():
            self.ready.clear()
            self._on_ready()
        for waiting in self._asks.values():
            if not waiting.done():
                waiting.set_exception(Gone())
