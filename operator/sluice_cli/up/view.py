"""What a person sees: a live table on a terminal, plain lines elsewhere.

``control.py`` calls a :class:`View` with events, lines of its children and, each turn, the rows of
the table. Events go to stderr; what a script may wait for (the ready line) goes to stdout.
"""

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sluice_cli.up.settings import LogLevel
from sluice_cli.up.table import Row, ServiceTable

PROGRESS_SECONDS = 5.0
"""How often a plain view says that something is still going on."""
LINES_PER_SECOND = 50
"""Lines of one child that are shown; a child that writes more must not drown the others."""


class View(Protocol):
    """Where everything is shown. Used as a context manager around the whole run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def event(self, source: str, text: str) -> None:
        """Something happened."""

    def detail(self, source: str, text: str) -> None:
        """Something was decided; only for ``--log-level debug``."""

    def problem(self, source: str, text: str) -> None:
        """Something went wrong; shown at every log level."""

    def line(self, source: str, text: str) -> None:
        """A child wrote a line."""

    def say(self, text: str) -> None:
        """A line for scripts as much as for people: stdout, exactly as it is."""

    def show(self, rows: Sequence[Row], now: float) -> None:
        """The state of things, each turn."""


class Budget:
    """How many lines each source may still show this second."""

    def __init__(self, limit: int = LINES_PER_SECOND) -> None:
        self._limit = limit
        self._second: dict[str, tuple[int, int]] = {}

    def take(self, source: str, now: float) -> str | None:
        """None: show the line. A text: show that instead (empty: nothing)."""
        second, count = self._second.get(source, (int(now), 0))
        if second != int(now):
            second, count = int(now), 0
        self._second[source] = (second, count + 1)
        if count < self._limit:
            return None
        return "… more lines this second are left out" if count == self._limit else ""


class PlainView:
    """One line per event, and one now and then while something is going on."""

    def __init__(self, level: LogLevel, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._level = level
        self._clock = clock
        self._budget = Budget()
        self._shown: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def event(self, source: str, text: str) -> None:
        if self._level != LogLevel.WARNING:
            self._print(source, text)

    def detail(self, source: str, text: str) -> None:
        if self._level == LogLevel.DEBUG:
            self._print(source, text)

    def problem(self, source: str, text: str) -> None:
        for line in text.splitlines():
            self._print(source, f"! {line}")

    def line(self, source: str, text: str) -> None:
        if self._level == LogLevel.WARNING:
            return
        instead = self._budget.take(source, self._clock())
        if instead != "":
            self._print(source, f"| {text if instead is None else instead}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def show(self, rows: Sequence[Row], now: float) -> None:
        for row in rows:
            if not row.busy:
                self._shown.pop(row.service, None)
                continue
            state, at = self._shown.get(row.service, ("", now))
            kind = row.state.split(" ")[0]
            if kind != state or now - at >= PROGRESS_SECONDS:
                self._shown[row.service] = (kind, now)
                held = f", {row.held} held" if row.held else ""
                self.event(row.service, f"{row.state} ({row.ready}/{row.wanted} ready{held})")

    def _print(self, source: str, text: str) -> None:
        print(f"{source:<12} {text}", file=sys.stderr, flush=True)


class LiveView(PlainView):
    """A table that stays at the bottom of the terminal; lines scroll by above it."""

    def __init__(self, level: LogLevel, console: Console) -> None:
        super().__init__(level)
        self._console = console
        # We draw when something changed, so no thread of its own is needed; and what goes to
        # stdout must arrive there, also when only stderr is a terminal.
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        if sys.stdout.isatty():
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            super().say(text)

    def show(self, rows: Sequence[Row], now: float) -> None:
        self._live.update(ServiceTable(rows), refresh=True)

    def problem(self, source: str, text: str) -> None:
        for line in text.splitlines():
            self._print(source, line, style="red")

    def _print(self, source: str, text: str, style: str = "") -> None:
        # Assembled, not markup: a line of a child may hold anything.
        line = Text.assemble((f"{source:<12} ", "bold"), (text, style))
        self._console.print(line, soft_wrap=True)


def choose_view(live: bool | None, level: LogLevel) -> View:
    """The view that suits where the output goes. ``NO_COLOR`` is rich's own business."""
    console = Console(stderr=True)
    if console.is_terminal if live is None else live:
        return LiveView(level, console)
    return PlainView(level)
