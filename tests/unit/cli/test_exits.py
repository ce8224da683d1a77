"""How an end is explained to the person at the terminal, and to callers."""

import signal

import pytest

from sluice_api import names
from sluice_cli.up.exits import Exit


@pytest.mark.parametrize(
    ("ended", "reason", "text"),
    [
        (
            Exit(names.EXIT_MODEL_NOT_FOUND, "no such folder"),
            "ModelNotFound",
            "ModelNotFound, exit",
        ),
        (Exit(names.EXIT_MODEL_REJECTED), "ModelRejected", "ModelRejected, exit code 66"),
        (Exit(names.EXIT_BAD_CONFIGURATION), "InvalidSpec", "InvalidSpec, exit code 78"),
        (Exit(1, "boom"), "CrashLoop", "exit code 1: boom"),
        (Exit(0), "CrashLoop", "exit code 0"),
        (Exit(-signal.SIGSEGV, "INFO batch done"), "CrashLoop", "ended by SIGSEGV"),
    ],
)
def test_exits_are_explained(ended: Exit, reason: str, text: str) -> None:
    assert ended.reason == reason
    assert ended.describe().startswith(text)


@pytest.mark.parametrize(
    ("ended", "cause"),
    [
        (Exit(names.EXIT_MODEL_NOT_FOUND), "ModelNotFound"),
        (Exit(-signal.SIGKILL), "SIGKILL"),
        (Exit(1), "exit code 1"),
    ],
)
def test_the_cause_is_a_word_or_three(ended: Exit, cause: str) -> None:
    assert ended.cause == cause


def test_the_last_line_of_a_signalled_process_is_no_cause() -> None:
    ended = Exit(-signal.SIGKILL, "INFO batch done")
    assert ended.describe() == "ended by SIGKILL (out of memory, or killed by hand)"


@pytest.mark.parametrize("code", [64, 65, 66, 78, 1, -9])
def test_callers_learn_the_address_and_no_last_words(code: int) -> None:
    told = Exit(code, "there is no folder /srv/secret").tell_callers("python://model")
    assert "python://model" in told
    assert "/srv" not in told
