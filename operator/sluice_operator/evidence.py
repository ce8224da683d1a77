"""What the watches do not show: Events of stuck and refused pods, nodes that have fallen silent.

Asked for only while there is a reason to: ``reconcile`` names the pods whose state alone does not
say what they wait for and the Deployments that say that pods are refused, the store the nodes whose
pods became unready without their kubelet's word.
Run by ``app``; what it finds goes into the store.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sluice_operator import kinds
from sluice_operator.api_errors import ApiError, NotFound
from sluice_operator.kinds import Kind
from sluice_operator.state import Key, Object, Refusal
from sluice_operator.store import Store

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 2.0
LONGEST_PAUSE_SECONDS: Final = 60.0
"""Pods that stay stuck and bring nothing new are asked about ever more rarely, down to this."""
_CREATING: Final = "Error creating: "
"""How such an Event begins, if it does not say before that it stands for several."""
PODS_AT_ONCE: Final = 20
"""Most pods asked about in one period; the others have their turn in the next ones."""


class Source(Protocol):
    """What is needed of the cluster."""

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any]: ...
    async def pod_warnings(self, namespace: str, uid: str) -> list[tuple[str, str]]: ...
    async def refused_pods(self, namespace: str, deployment: str) -> tuple[str, str] | None: ...


@dataclass(slots=True)
class _Stuck:
    """What of a service is stuck, when it is due, and the pause after that; seconds.

    Attributes:
        pods: name → uid.
        refused: Deployment's name → digest of its template, and what it says.
        known: of these Deployments.
    """

    pods: Mapping[str, str]
    refused: Mapping[str, tuple[str, str]]
    known: dict[str, Refusal] = field(default_factory=dict)
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

    def watch(
        self,
        key: Key,
        pods: Mapping[str, str],
        refused: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """Ask about these of a service from now on, and about nothing else.

        Args:
            pods: name → uid.
            refused: Deployment's name → digest of its template, and what it says.
        """
        refused = refused or {}
        before = self._stuck.get(key)
        if pods or refused:
            if before is None or (before.pods, before.refused) != (pods, refused):
                known = before.known if before else {}
                self._stuck[key] = _Stuck(
                    pods, refused, {name: known[name] for name in refused if name in known}
                )
                self._wake.set()
        elif before is not None:
            del self._stuck[key]
            self._store.warn(key, {})
            self._store.refuse(key, {})

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
                asked += await self._look_at_service(key, stuck)

    async def _look_at_service(self, key: Key, stuck: _Stuck) -> int:
        """Ask about what is stuck of one service; how many questions that were."""
        found = {}
        chosen = list(stuck.pods.items())[:PODS_AT_ONCE]
        for name, uid in chosen:
            if warnings := await self._source.pod_warnings(key.namespace, uid):
                found[name] = tuple(warnings)
        known = {}
        for deployment, (template, _) in stuck.refused.items():
            told = await self._source.refused_pods(key.namespace, deployment)
            if refusal := refusal_from(told, template, stuck.known.get(deployment)):
                known[deployment] = refusal
        asked = len(chosen) + len(stuck.refused)
        if self._stuck.get(key) is not stuck:
            return asked  # somebody else is stuck now, or nobody
        stuck.known = known
        news = [self._store.warn(key, found), self._store.refuse(key, known)]
        if any(news):
            self._changed(key)
        is_old = any(known[name].template != stuck.refused[name][0] for name in known)
        if any(news) or is_old:  # then the words that count are about to come
            stuck.pause = PERIOD_SECONDS
        else:
            stuck.pause = min(2 * stuck.pause, LONGEST_PAUSE_SECONDS)
        stuck.due = self._now() + stuck.pause
        return asked

    async def _look_at_nodes(self) -> None:
        lost = set()
        for name in self._store.suspect_nodes():
            try:
                node = await self._source.get(kinds.NODE, None, name)
            except NotFound:
                lost.add(name)
            else:
                if is_silent(node):
                    lost.add(name)
        for key in self._store.lose_nodes(frozenset(lost)):
            self._changed(key)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def refusal_from(
    told: tuple[str, str] | None, template: str, before: Refusal | None
) -> Refusal | None:
    """What is known of refused pods after another look; None for nothing.

    Args:
        told: ReplicaSet and message of the newest Event.
        template: digest of the Deployment's template now.
    """
    if told is None:
        return before
    replica_set, message = told
    if before and before.template != template and before.replica_set == replica_set:
        return before  # those of the new template have not been refused yet
    _, _, words = message.rpartition(_CREATING)
    # Each try has a pod name of its own, which is no news.
    words = re.sub(rf"({re.escape(replica_set)}-)[a-z0-9]+", r"\1", words)
    return Refusal(template, replica_set, words)


def is_silent(node: Object) -> bool:
    """Whether the control plane has not heard from the node's kubelet for a while."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "Unknown" for c in conditions)
