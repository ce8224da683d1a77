"""Consistent hashing: which endpoint has a given prefix in its memory, as far as one can know.

Every gateway draws the same ring from the same endpoints, so they agree without talking; when one
endpoint comes or goes, only its share of the prefixes moves. ``endpoints`` owns a ring per service
that is asked for by prefix; ``prefix`` makes the keys.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterable
from hashlib import shake_128
from typing import Final, Generic, Protocol, TypeVar

POINTS: Final = 128
"""Of each endpoint on the ring; its share of the prefixes then differs by about a tenth."""
_unpack = struct.Struct(f">{POINTS}Q").unpack


class Member(Protocol):
    url: str

    def __hash__(self) -> int: ...


M = TypeVar("M", bound=Member)


class Ring(Generic[M]):
    """Follows a changing set of endpoints."""

    def __init__(self) -> None:
        self._points: list[int] = []
        self._owners: dict[int, M] = {}
        self._members: dict[M, tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"<Ring of {len(self._members)}>"

    def follow(self, members: Iterable[M]) -> None:
        """Consist of ``members`` from now on."""
        wanted = dict.fromkeys(members)
        gone = [member for member in self._members if member not in wanted]
        came = [member for member in wanted if member not in self._members]
        for member in gone:
            for point in self._members.pop(member):
                self._owners.pop(point, None)
        if gone:
            self._points = [point for point in self._points if point in self._owners]
        for member in came:
            points = self._members[member] = _unpack(
                shake_128(member.url.encode()).digest(8 * POINTS)
            )
            self._owners.update(dict.fromkeys(points, member))
            self._points.extend(points)
        if came:
            self._points.sort()

    def home(self, key: int) -> M | None:
        """The first endpoint at or after ``key``, a number of 64 bits; None on an empty ring."""
        points = self._points
        if not points:
            return None
        place = bisect_left(points, key)
        return self._owners[points[place if place < len(points) else 0]]
