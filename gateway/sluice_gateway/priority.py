"""How urgent a request is, by its own word and its tenant's configuration.

``head`` reads the word, ``auth`` knows what a tenant may claim, ``fair_queue`` goes by the result.
"""

from enum import IntEnum
from typing import Final


class Priority(IntEnum):
    """A class of requests; the lower number goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2

    @property
    def word(self) -> str:
        """As headers, settings and metrics spell it."""
        return self.name.lower()


WORDS: Final = {priority.word: priority for priority in Priority}


def granted(asked: Priority, ceiling: Priority) -> Priority:
    """What a request gets that asks for ``asked``: nobody rises above the tenant's ceiling."""
    return asked if asked > ceiling else ceiling
