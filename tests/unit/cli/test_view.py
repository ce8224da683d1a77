"""What is printed, where, and how often."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sluice_cli.up.settings import LogLevel
from sluice_cli.up.table import Row
from sluice_cli.up.view import Budget, LiveView, PlainView, choose_view

READY = Row("minilm", "abc", "ready", False, 1, 1, 12.34, 0.5, 0.0042, 0, "12.3 req/s")
LOADING = Row("minilm", "abc", "loading 10%", True, 0, 1, held=3, progress=0.1)


def _err(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_what_a_script_waits_for_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(LogLevel.INFO)
    view.event("minilm", "minilm-1 starts")
    view.say("ready http://127.0.0.1:8080")
    captured = capsys.readouterr()
    assert captured.out == "ready http://127.0.0.1:8080\n"
    assert captured.err == "minilm       minilm-1 starts\n"


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (LogLevel.DEBUG, ["event", "detail", "! problem", "| line"]),
        (LogLevel.INFO, ["event", "! problem", "| line"]),
        (LogLevel.WARNING, ["! problem"]),
    ],
)
def test_log_levels(level: LogLevel, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(level)
    view.event("m", "event")
    view.detail("m", "detail")
    view.problem("m", "problem")
    view.line("m", "line")
    assert [line.removeprefix("m").strip() for line in _err(capsys)] == shown


def test_progress_is_told_when_it_changes_its_kind_and_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = PlainView(LogLevel.INFO)
    view.show([LOADING], 0.0)
    view.show([replace(LOADING, state="loading 20%")], 1.0)
    view.show([replace(LOADING, state="warming")], 2.0)
    view.show([replace(LOADING, state="warming")], 7.5)
    view.show([READY], 8.0)
    assert [line.split(maxsplit=1)[1] for line in _err(capsys)] == [
        "loading 10% (0/1 ready, 3 held)",
        "warming (0/1 ready, 3 held)",
        "warming (0/1 ready, 3 held)",
    ]


def test_a_child_that_writes_too_much_is_cut_and_others_are_not() -> None:
    budget = Budget(limit=2)
    assert [budget.take("a", 1.0) for _ in range(4)] == [
        None,
        None,
        "… more lines this second are left out",
        "",
    ]
    assert budget.take("b", 1.0) is None
    assert budget.take("a", 2.0) is None


def test_a_live_view_prints_lines_above_its_table_and_survives_markup() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, no_color=True)
    with LiveView(LogLevel.INFO, console) as view:
        view.show([READY], 0.0)
        view.line("minilm-1", "[/red] is no markup")
        view.problem("minilm", "[bold]boom")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "| [/red] is no markup" in text
    assert "[bold]boom" in text


def test_a_live_view_leaves_stdout_to_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveView(LogLevel.INFO, console) as view:
        view.show([READY], 0.0)
        view.say("ready http://127.0.0.1:8080")
    assert capsys.readouterr().out == "ready http://127.0.0.1:8080\n"


def test_the_view_follows_the_option_and_else_the_terminal() -> None:
    assert isinstance(choose_view(True, LogLevel.INFO), LiveView)
    for live in (False, None):  # Under pytest stderr is no terminal.
        assert not isinstance(choose_view(live, LogLevel.INFO), LiveView)
