"""What the watches do not show: Events of stuck pods, and nodes that have fallen silent.

Asked for only while there is a reason to: ``reconcile`` names the pods whose state alone does not
say what they wait for, the store the nodes whose pods became unready without their kubelet's word.
Run by ``app``; what it finds goes into the store.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sluice_operator import kinds
from sluice_operator.api_errors import ApiError, NotFound
from sluice_operator.kinds import Kind
from sluice_operator.state import Key, Object
from sluice_operator.store import Store

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 2.0
LONGEST_PAUSE_SECONDS: Final = 60.0
"""Pods that stay stuck and bring nothing new are asked about ever more rarely, down to this."""
PODS_AT_ONCE: Final = 20
"""Most pods asked about in one period; the others have their turn in the next ones."""


class Source(Protocol):
    """What is needed of the cluster."""

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any]: ...
    async def pod_warnings(self, namespace: str, uid: str) -> list[tuple[str, str]]: ...


@dataclass(slots=True)
class _Stuck:
    """Pods of a service (name → uid), when they are due, and the pause after that; seconds."""

    pods: Mapping[str, str]
    due: float = 0.0
    pause: float = PERIOD_SECONDS


class Evidence:
    """Looks after stuck pods and silent nodes.

    Args:
        changed: called with each service about which something new was found.
    """

    def __init__(self, store: Store, source: Source, changed: Callable[[Key], None]) -> None:
        self._store = store
        self._source = source
        self._changed = changed
        self._stuck: dict[Key, _Stuck] = {}
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Evidence of {len(self._stuck)} services with stuck pods>"

    def watch(self, key: Key, pods: Mapping[str, str]) -> None:
        """Ask about these pods (name → uid) of a service from now on, and about no other."""
        known = self._stuck.get(key)
        if pods:
            if known is None or known.pods != pods:
                self._stuck[key] = _Stuck(pods)
                self._wake.set()
        elif known is not None:
            del self._stuck[key]
            self._store.warn(key, {})

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except ApiError as error:
                log.warning("evidence not found", extra={"error": str(error)})
            try:
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def look(self) -> None:
        """Ask once. Raises ApiError."""
        await self._look_at_nodes()
        now, asked = self._now(), 0
        due = sorted((one.due, key) for key, one in self._stuck.items() if one.due <= now)
        for _, key in due:
            if asked >= PODS_AT_ONCE:
                return
            if (stuck := self._stuck.get(key)) is not None:  # not freed while others were asked
                asked += await self._look_at_pods(key, stuck)

    async def _look_at_pods(self, key: Key, stuck: _Stuck) -> int:
        """Ask about the pods of one service; how many that were."""
        found = {}
        chosen = list(stuck.pods.items())[:PODS_AT_ONCE]
        for name, uid in chosen:
            if warnings := await self._source.pod_warnings(key.namespace, uid):
                found[name] = tuple(warnings)
        if self._stuck.get(key) is not stuck:
            return len(chosen)  # somebody else is stuck now, or nobody
        if self._store.warn(key, found):
            stuck.pause = PERIOD_SECONDS
            self._changed(key)
        else:
            stuck.pause = min(2 * stuck.pause, LONGEST_PAUSE_SECONDS)
        stuck.due = self._now() + stuck.pause
        return len(chosen)

    async def _look_at_nodes(self) -> None:
        suspects = self._store.suspect_nodes()
        lost = set()
        for name in suspects:
            try:
                node = await self._source.get(kinds.NODE, None, name)
            except NotFound:
                lost.add(name)
            else:
                if is_silent(node):
                    lost.add(name)
        if self._store.lose_nodes(frozenset(lost)):
            for key in self._store.services_on(suspects | lost):
                self._changed(key)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def is_silent(node: Object) -> bool:
    """Whether the control plane has not heard from the node's kubelet for a while."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "Unknown" for c in conditions)
