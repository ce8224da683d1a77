"""How a process is told what to do: a table of options, each a flag and a variable, read by words.

A flag wins over its variable, the variable over the default. Gateway and worker each have a table
of :class:`Option`; their documentation is checked against it.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sluice_api.quantities import format_duration, parse_duration

MEBIBYTE: Final = 1024 * 1024


class SettingsError(ValueError):
    """A setting has a value that is not allowed; the message names it, the value and the fix."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting.

    Attributes:
        field: its key in what :func:`read_options` returns.
        variable: None for what only makes sense on a command line.
        default: as text, read like any other; None when there is none.
        read: makes the value from text; raises ValueError that says what is allowed.
        optional: None is its value when it is not given and has no default.
    """

    field: str
    flag: str
    variable: str | None
    default: str | None
    read: Callable[[str], Any]
    help: str
    optional: bool = False


def read_options(
    program: str,
    description: str,
    options: Sequence[Option],
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The value of every option by its field. Raises :class:`SettingsError`."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, exit_on_error=False, allow_abbrev=False
    )
    for option in options:
        variable = f" [{option.variable}]" if option.variable else ""
        default = f" (default {option.default})" if option.default else ""
        told = option.help.replace("%", "%%") + variable + default
        if option.read is switch:
            parser.add_argument(
                option.flag, dest=option.field, action=argparse.BooleanOptionalAction, help=told
            )
        else:
            parser.add_argument(option.flag, dest=option.field, metavar="VALUE", help=told)
    try:
        given, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise SettingsError(f"{error}. See {program} --help.") from None
    if unknown:
        raise SettingsError(f"{unknown[0]}: this flag is not known. See {program} --help.")
    return {
        option.field: _value(option, getattr(given, option.field), environment)
        for option in options
    }


def _value(option: Option, given: str | bool | None, environment: Mapping[str, str]) -> Any:
    if isinstance(given, bool):
        return given
    text, source = given, option.flag
    if text is None and option.variable is not None and environment.get(option.variable):
        text, source = environment[option.variable], option.variable
    if text is None:
        text = option.default
    if text is None:
        if option.optional:
            return None
        name = option.variable or option.flag
        raise SettingsError(f"{name}: required. Set it, or give {option.flag}: {option.help}.")
    try:
        return option.read(text)
    except ValueError as error:
        raise SettingsError(f"{source}: got {text!r}, needs {error}.") from None


# Readers ------------------------------------------------------------------------------------------


def text(value: str) -> str:
    if not value.strip():
        raise ValueError("a text that is not empty")
    return value


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number within both bounds."""

    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return read


def mebibytes(low: int, high: int) -> Callable[[str], int]:
    """Bytes, given as a whole number of mebibytes."""
    read = whole(low, high)
    return lambda value: read(value) * MEBIBYTE


def duration(low: float, high: float) -> Callable[[str], float]:
    """Seconds, given as a duration such as ``90s`` within both bounds."""

    def read(value: str) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError:
            raise ValueError("a duration such as 500ms, 90s or 1m30s") from None
        if not low <= seconds <= high:
            raise ValueError(f"a duration from {format_duration(low)} to {format_duration(high)}")
        return seconds

    return read


def choice(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return value

    return read


def switch(value: str) -> bool:
    """On the command line ``--flag`` and ``--no-flag``."""
    return choice("true", "false")(value) == "true"
