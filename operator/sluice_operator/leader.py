"""Which replica may write: the one whose name stands in the Lease.

The identity is the pod's name, so that a restarted container takes its own lease back at once.
``check`` is the fence: it trusts the lease only until the renew deadline, which ends well before
another replica may take the lease, whatever happens to this process. The rules are those of
client-go's leader election; expiry is judged by our own clock alone, and only while we looked: when
all stood still together, or nobody reached the API server, the holder was not the silent one.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from sluice_api import names
from sluice_operator import kinds
from sluice_operator.api_errors import ApiError, Conflict, NotFound, NotLeader
from sluice_operator.kinds import Kind
from sluice_operator.state import Object

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 6.0
"""After so long without a sign of the holder, another replica takes over."""
RENEW_SECONDS: Final = 4.0
"""A holder that could not renew for so long holds itself for deposed, and another that could not
look for so long does not know whether it did."""
RETRY_SECONDS: Final = 1.0
CALL_SECONDS: Final = 1.5
RELEASE_SECONDS: Final = 4.0
"""For so long letting go is tried at the end; not long after, the lease runs out by itself."""
RELEASE_PAUSE_SECONDS: Final = 0.2


class Leases(Protocol):
    """What is needed of the cluster."""

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any]: ...
    async def create(
        self, kind: Kind, wanted: dict[str, Any], *, fenced: bool = True
    ) -> dict[str, Any]: ...
    async def replace(
        self, kind: Kind, wanted: dict[str, Any], *, fenced: bool = True
    ) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """What the lease said, and when by our clock that was first seen."""

    said: tuple[str, str]
    at: float


class Leader:
    """This replica's candidacy.

    Args:
        identity: the pod's name.
        on_change: called with True when this replica begins to lead, with False when it ceases.
    """

    def __init__(
        self, leases: Leases, namespace: str, identity: str, on_change: Callable[[bool], None]
    ) -> None:
        self._leases = leases
        self._namespace = namespace
        self._identity = identity
        self._on_change = on_change
        self._leading = False
        self._valid_until = 0.0
        self._sighting: Sighting | None = None
        self._looked_at = 0.0
        self._lease: dict[str, Any] | None = None  # as last written by us

    def __repr__(self) -> str:
        holder = self._sighting.said[0] if self._sighting else "nobody yet"
        return f"<Leader {self._identity}: {'leading' if self._leading else f'after {holder}'}>"

    @property
    def leading(self) -> bool:
        return self._leading

    def check(self) -> None:
        """The fence before each write. Raises NotLeader."""
        if not self._leading or self._now() >= self._valid_until:
            raise NotLeader(f"{self._identity} does not hold the lease")

    async def run(self) -> None:
        """Try to lead, and to go on leading, until cancelled; then let go of the lease."""
        try:
            while True:
                await self._step()
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            await self._release()

    async def _step(self) -> None:
        patience = CALL_SECONDS
        if self._leading and self._now() > self._valid_until:
            self._lead(False)  # we stood still; nobody else may have taken it all the same
        if self._leading:
            patience = min(patience, max(0.0, self._valid_until - self._now()))
        sent = self._now()
        try:
            async with asyncio.timeout(patience):
                held = await self._try()
        except (ApiError, TimeoutError) as error:
            log.warning("lease not reached", extra={"error": str(error) or "no answer in time"})
            held = self._leading and self._now() < self._valid_until
        else:
            self._valid_until = sent + RENEW_SECONDS if held else 0.0
        self._lead(held)

    def _lead(self, held: bool) -> None:
        if held == self._leading:
            return
        self._leading = held
        log.info("leading" if held else "not leading", extra={"identity": self._identity})
        self._on_change(held)

    async def _try(self) -> bool:
        """Renew or take the lease; whether it is ours now."""
        if self._leading and self._lease is not None:
            try:
                return await self._write(self._lease)
            except (Conflict, NotFound):
                self._lease = None  # somebody else wrote it, or a write of ours got no answer
        try:
            lease = await self._leases.get(kinds.LEASE, self._namespace, names.LEASE)
        except NotFound:
            return await self._write(None)
        if not self._free(lease):
            return False
        try:
            return await self._write(lease)
        except (Conflict, NotFound):
            return False

    def _free(self, lease: Object) -> bool:
        """Whether the lease is nobody's, ours, or of one who has fallen silent."""
        spec = lease.get("spec") or {}
        said = (spec.get("holderIdentity") or "", spec.get("renewTime") or "")
        before, self._looked_at = self._looked_at, self._now()
        if self._sighting is None or self._sighting.said != said:
            self._sighting = Sighting(said, self._looked_at)
        elif (blind := self._looked_at - before) > RENEW_SECONDS:
            log.info("holder is given its time anew", extra={"not_looked_for": round(blind, 1)})
            self._sighting = Sighting(said, self._looked_at)
        if said[0] in ("", self._identity):
            return True
        lasts = float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
        return self._now() >= self._sighting.at + lasts

    async def _write(self, lease: Object | None) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = dict((lease or {}).get("spec") or {})
        spec = before | {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "renewTime": now,
        }
        if before.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(before.get("leaseTransitions") or 0) + 1
        self._lease = await self._put(lease, spec)
        return True

    async def _put(self, lease: Object | None, spec: dict[str, Any]) -> dict[str, Any]:
        if lease is not None:
            changed = {**lease, "spec": spec}
            return await self._leases.replace(kinds.LEASE, changed, fenced=False)
        made = {
            "apiVersion": kinds.LEASE.api_version,
            "kind": kinds.LEASE.name,
            "metadata": {"namespace": self._namespace, "name": names.LEASE},
            "spec": spec,
        }
        return await self._leases.create(kinds.LEASE, made, fenced=False)

    async def _release(self) -> None:
        """Cease to lead; the next replica need not wait for the lease to run out."""
        lease, leading = self._lease, self._leading
        self._valid_until = 0.0
        self._lead(False)
        if not leading:
            return
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                while not await self._let_go(lease):
                    lease = None  # a write of ours may have got no answer: look at what stands
                    await asyncio.sleep(RELEASE_PAUSE_SECONDS)
        except TimeoutError:
            log.warning("lease not released", extra={"seconds": RELEASE_SECONDS})

    async def _let_go(self, lease: Object | None) -> bool:
        """Try to free the lease, as last seen; whether it is known not to be ours any more."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                if lease is None:
                    lease = await self._leases.get(kinds.LEASE, self._namespace, names.LEASE)
                spec = lease.get("spec") or {}
                if spec.get("holderIdentity") == self._identity:
                    freed = {**spec, "holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._put(lease, freed)
        except NotFound:
            return True
        except (ApiError, TimeoutError) as error:
            log.info("lease not let go yet", extra={"error": str(error) or "no answer in time"})
            return False
        return True

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
