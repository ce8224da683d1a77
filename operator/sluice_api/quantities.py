"""Durations and amounts as people write them (``90s``, ``500m``, ``4Gi``) and as programs use them.

The resource holds durations as strings, as the rules for Kubernetes APIs ask; everything behind
it computes in seconds. The same spelling is accepted by Go and by CEL's ``duration()``.
"""

import re
from fractions import Fraction
from typing import Final

DURATION_PATTERN: Final = "^([0-9]{1,5}(ms|s|m|h)){1,4}$"
"""At most five digits a unit: no sum of four can exceed what CEL's durations hold."""

_UNITS_MS: Final = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_WHOLE: Final = re.compile(DURATION_PATTERN, re.ASCII)
_PART: Final = re.compile(r"([0-9]+)(ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds meant by ``text``, exact to the millisecond.

    Raises ValueError when ``text`` is not a duration.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration such as 500ms, 90s, 1m30s or 2h")
    return sum(int(count) * _UNITS_MS[unit] for count, unit in _PART.findall(text)) / 1000


def format_duration(seconds: float) -> str:
    """The shortest spelling of ``seconds``: two units at most where they suffice; ``0s`` for none.

    Rounds to the millisecond. Raises ValueError below zero.
    """
    if seconds < 0:
        raise ValueError(f"a duration cannot be negative: {seconds}")
    rest = round(seconds * 1000)
    parts = []
    for unit, size in _UNITS_MS.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


QUANTITY_PATTERN: Final = "^([0-9]{1,12}([.][0-9]{1,6})?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
"""Amounts of CPU, memory and storage as Kubernetes writes them; what nobody needs is left out."""

_QUANTITY: Final = re.compile(QUANTITY_PATTERN, re.ASCII)
_SUFFIXES: Final = {
    "m": Fraction(1, 1000),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
}


def parse_quantity(text: str) -> Fraction:
    """The exact amount meant by ``text``, in cores or bytes: ``500m``, ``0.5``, ``2Gi``.

    Raises ValueError when ``text`` is not a quantity.
    """
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 4Gi")
    number, _, suffix = found.groups()
    return Fraction(number) * _SUFFIXES.get(suffix, Fraction(1))
