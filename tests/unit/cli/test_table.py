"""The live table at the widths terminals have: every figure, whole, whatever else must go."""

import io

import pytest
from rich.console import Console

from sluice_cli.up.table import Row, ServiceTable

READY = Row("minilm", "4f1c22aa90b1", "ready", False, 1, 1, 12.34, 0.5, 0.0042, 0, "12.3 req/s")
LOADING = Row("minilm-2", "4f1c22aa90b1", "loading 10%", True, 0, 1, held=3, progress=0.1)
FAILED = Row(
    "team-with-a-long-name/classifier-with-a-long-name",
    "77aa0b1c2d3e",
    "ready, 77aa0b1c2d3e: ModelDownloadFailed",
    False,
    10,
    10,
    1234.5,
    held=1203,
    decision="ModelDownloadFailed, exit code 65: [bold]no route to the hub[/bold]",
)
FIGURES = ("1/1", "12.3", "50%", "0/1", "10/10", "1234.5", "1203", "READY", "REQ/S", "HELD")


def _lines(width: int, *rows: Row) -> list[str]:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(ServiceTable(rows))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_figure_is_cut_at_any_width(width: int) -> None:
    lines = _lines(width, READY, LOADING, FAILED)
    words = " ".join(lines).split()
    assert [figure for figure in FIGURES if figure not in words] == []
    assert "–" in words, "unknown is not zero"
    assert max(map(len, lines)) <= width - 4, "the terminal writes ^C behind the last row"


def test_at_80_columns_the_decision_stands_below_its_service() -> None:
    lines = _lines(80, READY, LOADING, FAILED)
    assert lines[0].split() == ["SERVICE", "STATE", "READY", "REQ/S", "CACHE", "HELD"]
    assert lines[1].split() == ["minilm", "ready", "1/1", "12.3", "50%"]
    assert lines[2] == "  12.3 req/s"
    assert lines[3].split() == ["minilm-2", "loading", "10%", "0/1", "–", "–", "3"]
    assert lines[4].startswith("team-with-a-long-name/")
    assert "[bold]no route" in " ".join(lines[5:])


def test_at_160_columns_a_service_is_one_row_with_its_bar() -> None:
    heading, ready, loading = _lines(160, READY, LOADING)
    assert heading.endswith("LAST DECISION")
    assert ready.split()[1] == "4f1c22aa90b1"
    assert "4.2 ms" in ready
    assert ready.endswith("12.3 req/s")
    assert "loading 10% ━╌╌╌╌╌╌╌╌╌" in loading


@pytest.mark.parametrize("width", [80, 160])
def test_the_words_of_a_failing_worker_do_not_fill_the_screen(width: int) -> None:
    assert len(_lines(width, Row("m", "r", "CrashLoop", False, 0, 1, decision="x " * 900))) < 12
