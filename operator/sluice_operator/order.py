"""Watch events in the order in which they were read.

kopf has a task for each object. Of what it reads at once, as after a moment in which the process
was busy, an old pod's end may be brought before the last of several news of the pod that replaced
it, and whoever looked in between would see a service without workers. ``handlers`` gives what kopf
brings to :class:`InOrder`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import kopf

from sluice_operator.store import number_of

log = logging.getLogger(__name__)

QUIET_TURNS: Final = 12
"""When kopf has brought nothing for so many turns of the event loop, nothing is on its way: it
takes some five for an object, and three more for each further event of it."""
MOST_TURNS: Final = 60
"""Nothing is held back for longer, however much comes."""


class InOrder:
    """Holds events back for some turns of the event loop, and hands them on by their versions.

    Args:
        take: called with each event.
    """

    def __init__(self, take: Callable[[kopf.RawEvent], None]) -> None:
        self._take = take
        self._held: list[kopf.RawEvent] = []
        self._turns = self._quiet = 0

    def __repr__(self) -> str:
        return f"<InOrder, {len(self._held)} events held>"

    def add(self, event: kopf.RawEvent) -> None:
        """Have an event handed on soon."""
        self._held.append(event)
        self._quiet = 0
        if len(self._held) == 1:
            self._turns = 0
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turns += 1
        self._quiet += 1
        if self._quiet < QUIET_TURNS and self._turns < MOST_TURNS:
            asyncio.get_running_loop().call_soon(self._turn)
            return
        held, self._held = self._held, []
        for event in sorted(held, key=_version):
            try:
                self._take(event)
            except (
                Exception
            ):  # the others are to be taken in all the same; the audit finds this one
                log.exception("event not taken in", extra={"object": event["object"].get("kind")})


def _version(event: kopf.RawEvent) -> int:
    return number_of(event["object"]["metadata"].get("resourceVersion", ""))
