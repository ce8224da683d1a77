"""Rates as people write them (``20/s``, ``600/m:50``): how many, in which time, how many at once.

Limits of tenants are written so, in the keys file and in the gateway's settings.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

SHORTEST_BURST_SECONDS: Final = 0.1
"""Gateways agree on what was used some times a second; a burst must last between two of them."""
FORM: Final = "a rate such as 20/s, 600/m or 5000/h, or 20/s:100 for 100 at once"

_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/([smh])(?::([1-9][0-9]{0,8}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """What may come in the long run, and at once.

    Attributes:
        text: as it was written.
        burst: how many may come at once after a pause; what comes faster than the rate uses it up.
    """

    text: str
    per_second: float
    burst: int

    def __str__(self) -> str:
        return f"{self.text.partition(':')[0]}, {self.burst} at once"


def parse_rate(text: str) -> Rate:
    """The rate meant by ``text``; without a burst, as many at once as its number says.

    Raises ValueError that says what is needed.
    """
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError(FORM)
    count = int(found[1])
    per_second = count / _UNITS[found[2]]
    burst = int(found[3] or count)
    least = math.ceil(per_second * SHORTEST_BURST_SECONDS)
    if burst < least:
        raise ValueError(f"a burst of {least} or more, what comes in {SHORTEST_BURST_SECONDS:g} s")
    return Rate(text, per_second, burst)
