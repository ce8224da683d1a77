"""Whether the watches' cache is right: compared with a list, at the start and every few minutes.

kopf tells what changes, but not what vanished while a watch was broken (after 410 Gone it lists
anew and says nothing of objects that are no longer there), nor that a watch has gone silent. A
list of metadata finds both. The first audit that finds nothing missing is the operator's first
sync. Run by ``app``.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Protocol

from sluice_operator.api_errors import ApiError
from sluice_operator.instruments import Instruments
from sluice_operator.kinds import Kind, Watched
from sluice_operator.state import Key
from sluice_operator.store import Address, Store

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 300.0
ROUND_SECONDS: Final = 5.0
ROUNDS: Final = 8
"""So many rounds may a watch be behind a list before it counts as dead."""
LOOK_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 2.0


class WatchDead(Exception):
    """A watch does not deliver what a list shows; only a new process helps."""


class Lister(Protocol):
    """What is needed of the cluster."""

    def list_metadata(
        self, kind: Kind, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[dict[str, Any]]: ...


class Auditor:
    """Compares the store with the cluster.

    Args:
        changed: called with a service one of whose objects turned out to be gone.
    """

    def __init__(
        self,
        store: Store,
        lister: Lister,
        watched: Sequence[Watched],
        changed: Callable[[Key], None],
        instruments: Instruments,
    ) -> None:
        self._store = store
        self._lister = lister
        self._watched = watched
        self._changed = changed
        self._instruments = instruments
        self._hurry = asyncio.Event()
        self.synced = asyncio.Event()
        self.done_at: float | None = None

    def __repr__(self) -> str:
        return f"<Auditor {'synced' if self.synced.is_set() else 'not synced'}>"

    def listed_anew(self) -> None:
        """A watch began from the start: what vanished before that, it will not tell. Audit soon."""
        if self.synced.is_set():
            self._hurry.set()

    async def run(self) -> None:
        """Audit until cancelled. Raises WatchDead."""
        while True:
            try:
                for each in self._watched:
                    await self.audit(each)
            except ApiError as error:
                log.warning("audit put off", extra={"error": str(error)})
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self.done_at = asyncio.get_running_loop().time()
            if not self.synced.is_set():
                log.info("synced", extra={"services": len(self._store)})
                self._instruments.synced.set(1)
                self.synced.set()
            await self._pause()

    async def _pause(self) -> None:
        self._hurry.clear()
        try:
            async with asyncio.timeout(PERIOD_SECONDS):
                await self._hurry.wait()
                await asyncio.sleep(RETRY_SECONDS)  # the new list is being taken in
        except TimeoutError:
            pass

    async def audit(self, watched: Watched) -> None:
        """Correct the store for one kind. Raises ApiError or WatchDead."""
        before = self._store.uids(watched.kind.name)
        listed = await self._list(watched)
        for address, uid in before.items():
            if listed.get(address, ("", ""))[0] != uid:
                self._forget(address, uid)
        await self._delivered(watched, listed)

    async def _list(self, watched: Watched) -> dict[Address, tuple[str, str]]:
        found = {}
        async for metadata in self._lister.list_metadata(
            watched.kind, watched.label_selector, watched.field_selector
        ):
            address = Address(watched.kind.name, metadata.get("namespace", ""), metadata["name"])
            found[address] = (metadata["uid"], metadata["resourceVersion"])
        return found

    def _forget(self, address: Address, uid: str) -> None:
        if not self._store.holds(address, uid):
            return  # the watch said so meanwhile
        self._instruments.findings.labels(address.kind, "gone").inc()
        log.info("object was gone", extra={"object": "/".join(address)})
        for key in self._store.remove(address, uid):
            self._changed(key)

    async def _delivered(self, watched: Watched, listed: dict[Address, tuple[str, str]]) -> None:
        """Wait until the watch has brought what was listed and still is there."""
        late = self._late(listed)
        for _ in range(ROUNDS):
            try:
                async with asyncio.timeout(ROUND_SECONDS):
                    while late := self._late(late):  # noqa: ASYNC110 - deliveries make no sign
                        await asyncio.sleep(LOOK_SECONDS)
            except TimeoutError:
                now = await self._list(watched)  # what was deleted meanwhile will never come
                late = {a: was for a, was in late.items() if now.get(a, ("", ""))[0] == was[0]}
            else:
                return
        kind, first = watched.kind.name, "/".join(next(iter(late), ("nothing",)))
        self._instruments.findings.labels(kind, "late").inc(len(late))
        raise WatchDead(f"the watch of {kind} does not bring {len(late)} objects, as {first}")

    def _late(self, listed: dict[Address, tuple[str, str]]) -> dict[Address, tuple[str, str]]:
        return {a: was for a, was in listed.items() if not self._store.holds(a, *was)}
