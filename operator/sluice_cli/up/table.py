"""The live table of ``sluice up``: one row a service, as wide as the terminal.

``view.py`` draws it. Where a row has no room for everything, what is least asked for goes, and the
last decision moves to a line of its own below the figures: no figure is ever cut away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

WIDE_COLUMNS = 140
"""From here on, everything about a service fits in one row."""
_FREE_COLUMNS = 4
"""The terminal writes ``^C`` at the end of the last row; a wrapped one would leave it behind."""
_BAR_WIDTH = 10
_DECISION_CHARACTERS = 200
"""Of the last line of a worker, say; all of it stands in the log."""
_FIGURES = {"READY": 5, "REQ/S": 6, "CACHE": 5, "COMPUTE": 8, "HELD": 4}
"""Columns of figures, and how wide they are at least."""


@dataclass(frozen=True, slots=True)
class Row:
    """One service, as the table shows it.

    Attributes:
        state: ``ready``, ``asleep``, ``loading 45%``, or the reason of a failure.
        busy: something is going on that somebody may be waiting for.
        progress: how far it is, 0–1; None when that cannot be told.
        rate: requests per second, answers from the cache included; None when unknown.
        hit_share: answers from the cache, 0–1; None when there were none.
        compute_seconds: of one request at a worker, mean, without queueing.
        decision: the last decision of scaling and why.
    """

    service: str
    revision: str
    state: str
    busy: bool
    ready: int
    wanted: int
    rate: float | None = None
    hit_share: float | None = None
    compute_seconds: float | None = None
    held: int = 0
    decision: str = ""
    progress: float | None = None


class ServiceTable:
    """A rich renderable of all services."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE_COLUMNS
        options = options.update(width=max(1, options.max_width - _FREE_COLUMNS), height=None)
        if wide:
            yield from console.render(_in_one_row(self._rows), options)
            return
        heading, *lines = console.render_lines(_figures_only(self._rows), options)
        yield from [*heading, Segment.line()]
        for line, row in zip(lines, self._rows, strict=True):
            yield from [*line, Segment.line()]
            if row.decision:
                yield from console.render(Padding(_decision(row), (0, 0, 0, 2)), options)


def _in_one_row(rows: Sequence[Row]) -> Table:
    shown = _empty("SERVICE", "REVISION", "STATE", *_FIGURES)
    shown.expand = True
    shown.add_column("LAST DECISION", ratio=1, min_width=20, overflow="fold")
    for row in rows:
        shown.add_row(
            _words(row.service),
            _words(row.revision),
            _words(row.state + _bar(row.progress), _colour(row)),
            *(_figures(row)[heading] for heading in _FIGURES),
            _decision(row),
        )
    return shown


def _figures_only(rows: Sequence[Row]) -> Table:
    figures = [heading for heading in _FIGURES if heading != "COMPUTE"]
    shown = _empty("SERVICE", "STATE", *figures)
    for row in rows:
        shown.add_row(
            _words(row.service),
            _words(row.state, _colour(row)),
            *(_figures(row)[heading] for heading in figures),
        )
    return shown


def _empty(*headings: str) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        if heading in _FIGURES:
            width = _FIGURES[heading]
            shown.add_column(heading, justify="right", no_wrap=True, min_width=width)
        else:
            shown.add_column(heading, max_width=30)
    return shown


def _words(text: str, style: str = "") -> Text:
    # The column may be made narrower, unlike one of figures, but stays one line high.
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _figures(row: Row) -> dict[str, str]:
    return {
        "READY": f"{row.ready}/{row.wanted}",
        "REQ/S": _figure(row.rate, "{:.1f}"),
        "CACHE": _figure(row.hit_share, "{:.0%}"),
        "COMPUTE": _figure(row.compute_seconds, "{:.1f} ms", 1000),
        "HELD": str(row.held or ""),
    }


def _decision(row: Row) -> Text:
    shown = Text(row.decision, overflow="fold")
    shown.truncate(_DECISION_CHARACTERS, overflow="ellipsis")
    return shown


def _colour(row: Row) -> str:
    if row.busy:
        return "yellow"
    return {"ready": "green", "asleep": "blue"}.get(row.state, "red")


def _bar(progress: float | None) -> str:
    if progress is None:
        return ""
    filled = round(progress * _BAR_WIDTH)
    return " " + "━" * filled + "╌" * (_BAR_WIDTH - filled)


def _figure(value: float | None, form: str, factor: float = 1.0) -> str:
    return "–" if value is None else form.format(value * factor)
