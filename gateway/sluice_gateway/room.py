"""The ready endpoints that have room now, as lists to draw from at random.

An endpoint enters and leaves in constant time, so that a request costs the same among 2 endpoints
and among 1 000, also when nearly all are full. Owned by ``endpoints``; read by the policies of
``balance``.
"""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

E = TypeVar("E", bound=Hashable)


class Roster(Generic[E]):
    """A set that is a list as well. Its order means nothing."""

    __slots__ = ("_places", "members")

    def __init__(self) -> None:
        self.members: list[E] = []
        self._places: dict[E, int] = {}

    def __repr__(self) -> str:
        return f"<Roster of {len(self.members)}>"

    def __contains__(self, member: E) -> bool:
        return member in self._places

    def put(self, member: E) -> None:
        if member not in self._places:
            self._places[member] = len(self.members)
            self.members.append(member)

    def drop(self, member: E) -> None:
        place = self._places.pop(member, None)
        if place is None:
            return
        last = self.members.pop()
        if last is not member:  # The last one takes the place that became free.
            self.members[place] = last
            self._places[last] = place

    def replace(self, members: Iterable[E]) -> None:
        self.members = list(members)
        self._places = {member: place for place, member in enumerate(self.members)}
