"""What is wrong with a resource, said so that it can be put right without looking anything up.

Each problem is one line: where, what was given, what is allowed, and the fix. ``sluice_api.fields``
raises :class:`Refused` for a value, ``sluice_api.inference_service`` collects everything into one
:class:`SpecError`; the command line prints it as it is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_TOLD: Final = 20
"""Problems that one error lists; what is wrong with a file of thousands is seen in the first."""
MAX_FIELD: Final = 200
"""Characters of a field's path that a problem repeats."""


def shown(value: object) -> str:
    """``value`` as it stood in the file, shortened; never raises."""
    if isinstance(value, str):
        # A message is one line, whatever it quotes.
        text = (value if value.isprintable() else json.dumps(value)) or "an empty text"
    elif isinstance(value, dict):
        text = "a mapping"
    elif isinstance(value, list | tuple):
        text = "a list"
    elif value is None:
        text = "nothing"
    else:
        text = _plain(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: object) -> str:
    try:
        return json.dumps(value, default=str)
    except ValueError:  # Python writes no whole number of thousands of digits.
        return "a number of thousands of digits"


class Refused(ValueError):
    """One value does not fit. The text says what was given, what is allowed and the fix.

    Attributes:
        at: where in the value of the field, such as ``[1].task``; empty for all of it.
    """

    def __init__(self, got: object, allowed: str, fix: str = "", *, at: str = "") -> None:
        super().__init__(f"got {shown(got)}, allowed {allowed}.{' ' + fix if fix else ''}")
        self.at = at


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        source: the file, with document and line where that helps; empty where the service will do.
        service: ``namespace/name``; empty when the document does not say.
        field: dotted path, such as ``spec.scaling.minReplicas``; empty for the whole document.
        message: what was given, what is allowed, the fix.
    """

    source: str
    service: str
    field: str
    message: str

    def __str__(self) -> str:
        both = self.source and self.service
        where = f"{self.source} ({self.service})" if both else self.source or self.service
        field = self.field if len(self.field) <= MAX_FIELD else f"{self.field[: MAX_FIELD - 3]}..."
        return f"{where}: {field}: {self.message}" if field else f"{where}: {self.message}"


class SpecError(Exception):
    """Resources cannot be used. The text lists the problems, one a line, and how many there are.

    Attributes:
        problems: all of them.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        lines = [str(problem) for problem in problems[:MAX_TOLD]]
        if more := len(problems) - len(lines):
            lines.append(f"And {more} more {'problem' if more == 1 else 'problems'}.")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)
