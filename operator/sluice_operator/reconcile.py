"""One service, from what is to what should be: observe, decide, plan, apply.

The queue calls :meth:`Reconciler.reconcile` whenever something about a service may have changed.
Everything it knows it reads anew, everything it does may be done again: a process that dies
between any two writes is continued by the next one. What the API server answers goes into the
store at once, so that the next look sees the writes of this one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from sluice_operator.api_errors import ApiError, NamespaceEnding, NotFound
from sluice_operator.contests import Contests
from sluice_operator.failures import Failure, contested_by, failure_of, shown
from sluice_operator.state import ChildKey, Key, Learnt, Object, Observed, Platform, Wanted
from sluice_operator.steps import Apply, Delete, Event, Plan, Rank, Scale, Step
from sluice_operator.store import Store
from sluice_operator.trim import trimmed
from sluice_operator.turns import LOOK_SECONDS, Turns, is_replaced

log = logging.getLogger(__name__)

BUSY_PASSES: Final = 12
"""So many writing passes in a row are more than any plan needs: somebody writes against us."""
BUSY_PAUSE_SECONDS: Final = 10.0


class Scaling(Protocol):
    """What is needed of the fleet; ``now`` is monotonic."""

    def decide(self, observed: Observed, now: float) -> Mapping[str, Wanted]: ...
    def learnt(self, key: Key) -> Learnt: ...
    def remove(self, key: Key) -> None: ...


class Writer(Protocol):
    """What is needed of the cluster."""

    async def apply_status(self, resource: Object, status: Mapping[str, Any]) -> dict[str, Any]: ...
    async def carry_out(self, step: Step) -> dict[str, Any] | None: ...


class Planner(Protocol):
    """``planning.plan_service``."""

    def __call__(
        self,
        observed: Observed,
        wanted: Mapping[str, Wanted],
        learnt: Learnt,
        platform: Platform,
        now: datetime,
    ) -> Plan: ...


class _Refused(NamedTuple):
    """What failed last, and the generation of the spec that was being carried out."""

    failure: Failure
    generation: int


class Reconciler:
    """Brings services nearer to what is wanted, one at a time.

    Args:
        platform: what holds for all services now.
        announce: has an Event posted.
        watch_stuck: told which pods of a service (name → uid) are stuck without saying why, and
            which Deployments (name → digest of the template, words) say that pods are refused.
    """

    def __init__(
        self,
        store: Store,
        scaling: Scaling,
        plan: Planner,
        writer: Writer,
        platform: Callable[[], Platform],
        announce: Callable[[Object, Event], None],
        watch_stuck: Callable[[Key, Mapping[str, str], Mapping[str, tuple[str, str]]], None],
    ) -> None:
        self._store = store
        self._scaling = scaling
        self._plan = plan
        self._writer = writer
        self._platform = platform
        self._announce = announce
        self._watch_stuck = watch_stuck
        self._turns = Turns()
        self._contests = Contests()
        self._failures: dict[Key, _Refused] = {}
        self._tries: dict[Key, int] = {}  # that failed in a row
        self._passes: dict[Key, int] = {}

    def __repr__(self) -> str:
        return f"<Reconciler {len(self._failures)} services refused, {self._turns!r}>"

    async def reconcile(self, key: Key) -> float | None:
        """Seconds after which to look again; None for only on an event.

        Raises ApiError when a write failed, NotLeader when it is no longer ours to write.
        """
        observed = self._store.observe(key)
        if observed is None:
            self._forget(key)
            return None
        plan = self._make_plan(observed)
        uids = {p["metadata"]["name"]: p["metadata"]["uid"] for p in observed.pods}
        stuck = {name: uid for name, uid in uids.items() if name in plan.watch_pods}
        self._watch_stuck(key, stuck, plan.refused)
        told = await self._tell(observed, plan)
        changed = await self._carry_out(observed, plan.steps)
        if told or changed:
            log.info("reconciled", extra=summary(key, plan, told))
        elif is_replaced(observed):
            self._turns.end(key)
        return self._next_look(key, plan, wrote=told or changed)

    def _make_plan(self, observed: Observed) -> Plan:
        """With the replicas that scaling wants; with the current worker image in its turn only."""
        platform = self._platform()
        if platform.upgrade_workers and not self._has_turn(observed):
            platform = replace(platform, upgrade_workers=False)
            plan = self._plan_for(observed, platform)
            return replace(plan, again_after=min(plan.again_after or LOOK_SECONDS, LOOK_SECONDS))
        return self._plan_for(observed, platform)

    def _has_turn(self, observed: Observed) -> bool:
        now = asyncio.get_running_loop().time()
        return self._turns.take(observed.key, now, sound=is_replaced(observed))

    def _plan_for(self, observed: Observed, platform: Platform) -> Plan:
        wanted = self._scaling.decide(observed, asyncio.get_running_loop().time())
        learnt = self._scaling.learnt(observed.key)
        return self._plan(observed, wanted, learnt, platform, datetime.now(UTC))

    async def _tell(self, observed: Observed, plan: Plan) -> bool:
        """Write the status, first of all, if it is to be another; then Events can be told."""
        stands = observed.resource.get("status") or {}
        status = plan.status
        refused = self._failures.get(observed.key)
        # An edit may have mended it: what was refused of the spec before is no news of this one.
        if refused is not None and refused.generation == _generation(observed):
            status = shown(status, refused.failure, stands, datetime.now(UTC))
        written = status != stands
        if written:
            try:
                self._store.put(await self._writer.apply_status(observed.resource, status))
            except NotFound:
                return False  # deleted; its watch event is on the way
            except NamespaceEnding:
                return False  # its namespace is gone, and has left it behind: no write reaches it
        overlaid = _messages(plan.status) - _messages(status)
        for event in plan.events:
            # What a refusal is told instead of is no news, each time that it is tried again.
            if event.message not in overlaid:
                self._announce(observed.resource, event)
        return written

    async def _carry_out(self, observed: Observed, steps: Iterable[Step]) -> bool:
        """Do the steps in order; whether anything changed that is seen already."""
        key, changed = observed.key, False
        now = asyncio.get_running_loop().time()
        try:
            for step in steps:
                repair = step if isinstance(step, Apply) and step.repairs else None
                if repair and self._contests.waits(key, repair, now):
                    continue
                after = await self._writer.carry_out(step)
                if after is not None:
                    put = self._store.put_scale if isinstance(step, Scale) else self._store.put
                    changed |= bool(put(after))
                if repair and after is not None and _differs(after, observed):
                    self._repaired(observed, repair, now)
        except NamespaceEnding:
            return False  # the service is about to go as well
        except ApiError as error:
            self._tries[key] = self._tries.get(key, 0) + 1
            if failure := failure_of(error, self._tries[key]):
                await self._show(key, _Refused(failure, _generation(observed)))
            raise
        self._tries.pop(key, None)
        if contested := self._contests.told(key, now):
            await self._show(key, _Refused(contested_by(contested), _generation(observed)))
        elif self._failures.pop(key, None):
            return True  # so that the status is written without it
        return changed

    def _repaired(self, observed: Observed, step: Apply, now: float) -> None:
        if self._contests.repaired(observed.key, step, now):
            metadata = step.object["metadata"]
            told = f"{step.object['kind']} {metadata['name']} is as it was: {step.repairs}."
            self._announce(observed.resource, Event("Normal", "Repaired", told))

    async def _show(self, key: Key, refused: _Refused) -> None:
        """Let the owner know what stands against the service."""
        news = self._failures.get(key) != refused
        self._failures[key] = refused
        observed = self._store.observe(key)
        if observed is None:
            return
        await self._tell(observed, self._make_plan(observed))
        if news:
            reason = refused.failure.reason or "ApiServerFails"
            self._announce(observed.resource, Event("Warning", reason, refused.failure.message))

    def _next_look(self, key: Key, plan: Plan, wrote: bool) -> float | None:
        """At once after a write, until there is nothing left to write; then when planning says."""
        if not wrote:
            self._passes.pop(key, None)
            rest = self._contests.rest(key, asyncio.get_running_loop().time())
            return min(filter(None, (plan.again_after, rest)), default=None)
        passes = self._passes[key] = self._passes.get(key, 0) + 1
        if passes < BUSY_PASSES:
            return 0.0
        self._passes[key] = 0
        log.warning("writes do not settle", extra=summary(key, plan, told=False))
        return BUSY_PAUSE_SECONDS

    def _forget(self, key: Key) -> None:
        """The service is gone; Kubernetes collects what belonged to it."""
        self._scaling.remove(key)
        self._watch_stuck(key, {}, {})
        self._failures.pop(key, None)
        self._tries.pop(key, None)
        self._passes.pop(key, None)
        self._turns.forget(key)
        self._contests.forget(key)


def _messages(status: Mapping[str, Any]) -> set[str]:
    return {one["message"] for one in status.get("conditions", ())}


def _generation(observed: Observed) -> int:
    return int(observed.resource["metadata"].get("generation", 0))


def _differs(child: Object, observed: Observed) -> bool:
    """Whether a child is another one than was observed, but for its status.

    What the API server or an admission webhook always writes otherwise than it was asked for seems
    to need repair for ever, and no write changes it: there is no fight, and no pods are replaced.
    """
    before = observed.children.get(ChildKey(child["kind"], child["metadata"]["name"]), {})
    return {**trimmed(child), "status": None} != {**before, "status": None}


def summary(key: Key, plan: Plan, told: bool) -> dict[str, Any]:
    """What one pass did, for the log."""
    fields: dict[str, Any] = {"service": str(key)}
    if plan.steps:
        fields["steps"] = ", ".join(described(step) for step in plan.steps)
    conditions = plan.status.get("conditions", ())
    ready = next((c for c in conditions if c.get("type") == "Ready"), None)
    if told and ready:
        fields["ready"] = f"{ready.get('status')}/{ready.get('reason')}"
    return fields


def described(step: Step) -> str:
    match step:
        case Apply():
            return f"{step.object['kind']} {step.object['metadata']['name']} ({step.why})"
        case Scale():
            return f"{step.deployment} to {step.replicas} ({step.why})"
        case Delete():
            return f"delete {step.kind} {step.name} ({step.why})"
        case Rank():
            return f"rank {step.pod} {step.cost}"
