"""When everything of a service or of a tenant was last thrown away.

An epoch is part of every key, so answers from before it are never found again, in whatever layer
they lie, and nothing has to be searched for or deleted. ``invalidation`` tells the gateways of each
other's; the last one wins, and none is ever taken back.
"""

from binascii import hexlify
from collections.abc import Iterable
from typing import Final, Literal

from sluice_gateway.keys import Keyring

Kind = Literal["service", "tenant", "everything"]

MAX_AGE_MS: Final = 62 * 86_400_000
"""Older ones need not be known: what they are about has expired, by two days of clocks apart."""
MAX_KEPT: Final = 10_000
"""Epochs that are kept; of more, the older half becomes one of everything."""


class Epochs:
    """Epochs by field: a name that tells nothing to who can read Redis.

    An epoch is the time of the invalidation in milliseconds since the Unix epoch.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._at: dict[bytes, int] = {}
        self._known: dict[tuple[str, bytes], int] = {}
        self._everything = frozenset(self.fields("everything", b""))
        self._floor = 0
        self.version = 0
        """Changes with every epoch: for whoever keeps answers without keys; 0 before the first."""

    def __bool__(self) -> bool:
        """Whether there is any: as long as there is none, nobody need ask."""
        return bool(self._at)

    def __contains__(self, field: bytes) -> bool:
        """Whether an epoch of its own is kept for it."""
        return field in self._at

    def of(self, service: str, scope: bytes) -> bytes:
        """The part of a key that the epochs of a service and a tenant's scope are."""
        if not self._at:
            return b""
        service_at, tenant_at = self._last("service", service.encode()), self._last("tenant", scope)
        # Without any, as if there were none at all: others' epochs change nothing here.
        return b"%d.%d" % (service_at, tenant_at) if service_at or tenant_at else b""

    def fields(self, kind: Kind, name: bytes) -> list[bytes]:
        """Where its epoch stands, under each secret of the ring."""
        message = b"sluice epoch %b:%b" % (kind.encode(), name)
        return [hexlify(mac(message)) for mac in self._keyring.naming]

    def advance(self, at: int, fields: list[bytes]) -> int:
        """Raise all fields to one epoch, later than what any of them had; returns it."""
        at = max([at, *(self._get(field) + 1 for field in fields)])
        self.raise_to(at, fields)
        return at

    def raise_to(self, at: int, fields: Iterable[bytes]) -> bool:
        """Take over an epoch; False when none of the fields knew less."""
        older = [field for field in fields if self._get(field) < at]
        for field in older:
            self._at[field] = at
        if older:
            if not self._everything.isdisjoint(older):
                self._at.update(dict.fromkeys(self._everything, at))
                self._floor = at
                self._drop([field for field, own in self._at.items() if own < at])
            self._changed()
        return bool(older)

    def prune(self, now_ms: int) -> None:
        """Forget what is too old to matter, and the older half of what is too many.

        The latter become older than an epoch of everything, so what they made void stays so; the
        price is that nothing else from before it is found again either.
        """
        self._drop([field for field, at in self._at.items() if at <= now_ms - MAX_AGE_MS])
        if len(self._at) > MAX_KEPT:
            middle = sorted(self._at.values())[-MAX_KEPT // 2]
            # One that is as old as that is dropped too, or many of one time would all stay.
            self.raise_to(middle + 1, self._everything)

    def missing(self, others: dict[bytes, int], now_ms: int) -> dict[bytes, int]:
        """What is known here and not to ``others``, old ones left aside."""
        return {
            field: at
            for field, at in self._at.items()
            if at > others.get(field, 0) and at > now_ms - MAX_AGE_MS
        }

    def _last(self, kind: Kind, name: bytes) -> int:
        known = self._known.get((kind, name))
        if known is None:
            if len(self._known) >= 10_000:
                self._known.clear()
            at = [self._get(field) for field in self.fields(kind, name)]
            known = self._known[kind, name] = max(at)
        return known

    def _get(self, field: bytes) -> int:
        return max(self._at.get(field, 0), self._floor)

    def _drop(self, fields: list[bytes]) -> None:
        if fields:
            for field in fields:
                del self._at[field]
            self._floor = max((self._at.get(field, 0) for field in self._everything), default=0)
            self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._known.clear()

    def __repr__(self) -> str:
        return f"<Epochs {len(self._at)}>"
