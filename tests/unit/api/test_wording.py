"""Words of others in a message of ours."""

import pytest

from sluice_api.wording import sentence


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("the quota is used up", "the quota is used up."),
        ("Do not do this.", "Do not do this."),
        ("pod not found. not found..", "pod not found. not found."),
        (" a line with its end\r\n", "a line with its end."),
        ("roles must alternate user/assistant/...", "roles must alternate user/assistant/..."),
        ("and so on…", "and so on…"),
        ("No such model!", "No such model!"),
        ("Is it there?", "Is it there?"),
    ],
)
def test_what_was_said_ends_once(said: str, told: str) -> None:
    assert sentence(said) == told
