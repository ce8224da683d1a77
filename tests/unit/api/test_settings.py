"""The reader of options: who wins, what is missing, and that a refusal says what is allowed."""

from typing import Any

import pytest

from sluice_api.settings import (
    Option,
    SettingsError,
    choice,
    duration,
    mebibytes,
    read_options,
    switch,
    text,
    whole,
)

OPTIONS = (
    Option("name", "--name", "X_NAME", None, text, "who"),
    Option("wait", "--wait", "X_WAIT", "2s", duration(0.5, 60), "how long"),
    Option("loud", "--loud", "X_LOUD", "false", switch, "100 % volume"),
    Option("memory", "--memory", "X_MEMORY", "1", mebibytes(0, 8), "how much"),
    Option("mood", "--mood", None, None, choice("good", "bad"), "how", optional=True),
    Option("fd", "--fd", None, None, whole(3, 9), "a socket", optional=True),
)


def read(*arguments: str, **environment: str) -> dict[str, Any]:
    return read_options("x", "X.", OPTIONS, ["--name", "n", *arguments], environment)


def test_defaults() -> None:
    assert read() == {
        "name": "n",
        "wait": 2.0,
        "loud": False,
        "memory": 2**20,
        "mood": None,
        "fd": None,
    }


def test_flag_over_variable_over_default() -> None:
    assert read(X_WAIT="1m")["wait"] == 60
    assert read("--wait", "500ms", X_WAIT="1m")["wait"] == 0.5
    assert read(X_LOUD="true")["loud"] is True
    assert read("--no-loud", X_LOUD="true")["loud"] is False
    assert read("--loud", X_LOUD="nonsense")["loud"] is True
    assert read(X_WAIT="")["wait"] == 2.0  # An empty variable is none.


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["--wait", "5"], {}, "--wait: got '5', needs a duration such as 500ms, 90s or 1m30s."),
        (["--wait", "2m"], {}, "--wait: got '2m', needs a duration from 500ms to 1m."),
        ([], {"X_LOUD": "maybe"}, "X_LOUD: got 'maybe', needs one of true, false."),
        ([], {"X_MEMORY": "9"}, "X_MEMORY: got '9', needs a whole number from 0 to 8."),
        (["--name", " "], {}, "--name: got ' ', needs a text that is not empty."),
        (["--mood", "so"], {}, "--mood: got 'so', needs one of good, bad."),
        (["--moo", "good"], {}, "--moo: this flag is not known. See x --help."),
        (["--fd"], {}, "See x --help."),
    ],
)
def test_refusals(arguments: list[str], environment: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(*arguments, **environment)
    assert str(refused.value).endswith(told)


def test_what_is_required_is_named_by_variable_and_flag() -> None:
    with pytest.raises(SettingsError, match=r"X_NAME: required\..* give --name: who"):
        read_options("x", "X.", OPTIONS, [], {})


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "how long [X_WAIT] (default 2s)" in shown and "100 % volume" in shown
