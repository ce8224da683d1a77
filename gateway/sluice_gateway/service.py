"""One InferenceService, live: its workers, queue and counters, and what its answers follow from.

A service's *binding* is the object that cached answers hold on to: it is replaced whenever
revision, answer digest, cache rules or access change, and with it everything remembered becomes
void. A revision on trial is a second service under the same name, with a binding, workers and a
queue of its own, so that nothing of the two mixes. Made and kept by ``services``.
"""

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from sluice_api import names, wire
from sluice_api.call import REUSABLE, Call, Item
from sluice_api.routes import V2_PREFIX, V2_SUFFIX
from sluice_api.shapes.generated import is_sampled
from sluice_api.shapes.generation import leaves_open
from sluice_api.tasks import DETERMINISM, Determinism, Task
from sluice_gateway.admission import Admission, Refusal, Waiter
from sluice_gateway.auth import Tenant
from sluice_gateway.balance import Rules
from sluice_gateway.demand import Sighting, Tally
from sluice_gateway.endpoint import Endpoint, State
from sluice_gateway.endpoints import EndpointSet
from sluice_gateway.keys import TenantScope
from sluice_gateway.latencies import Latencies
from sluice_gateway.metrics import Sample, ServiceSeries
from sluice_gateway.retries import RetryBudget
from sluice_gateway.timers import TimerWheel
from sluice_gateway.trial import trial_of

GATHER_SECONDS: Final = 0.02
"""A sleeping service's first requests are told together: the first order is then for them all."""
WRITTEN: Final = frozenset((Task.TEXT_GENERATION, Task.CHAT))
"""Tasks whose items say by themselves whether chance had a part in them."""
UNFINISHED: Final = frozenset((Task.RELATION_EXTRACTION,))
"""Tasks whose inputs may lack what another service finds."""
AGEING_SECONDS: Final = 0.2
"""A queue this old is told to the scaler out of turn."""

REMOVED: Final = Refusal("model_not_found", "Removed", "The model was removed.", param="model")
TRIAL_OVER: Final = Refusal("model_failed", "Removed", "The revision on trial was removed.")
_REVISION: Final = names.REVISION.encode()
_RULES: Final = Rules()
_NO_OPERATOR: Final = Refusal(
    "no_operator",
    "NoOperator",
    "The model is asleep, and no operator runs that would wake it (NoOperator).",
    retry_after=10.0,
)

log = logging.getLogger(__name__)


class Changes(NamedTuple):
    """What following the table did.

    Attributes:
        came, gone: endpoints.
        waiting: requests in a queue that is not served any more.
    """

    came: list[Endpoint]
    gone: list[Endpoint]
    waiting: list[Waiter]


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """What an answer of a service follows from, beside the request. Compared by identity.

    Attributes:
        alone: no other revision shares the service's requests, so the same body may be given the
            same answer without choosing between revisions first.
        header: tells callers the revision; a whole line.
    """

    service: "Service"
    revision: str
    answer_digest: str
    cache: wire.CacheRules
    public: bool
    tenants: tuple[str, ...]
    alone: bool
    header: bytes

    def same_as(self, other: "Binding") -> bool:
        return (
            self.revision == other.revision
            and self.answer_digest == other.answer_digest
            and self.cache == other.cache
            and self.public == other.public
            and self.tenants == other.tenants
            and self.alone == other.alone
        )


class Service:
    """One InferenceService, live, or the revision of it that is on trial.

    Attributes:
        binding: see :class:`Binding`.
        canary: the revision on trial beside this one.
        stable: what this is on trial beside; None unless this is a canary.
        tasks: from the table, or learnt from the first ready worker; empty until then.
        dimensions: of embeddings, as its workers tell; None until then.
        ready_since: when it last got its first ready worker.
        shared_scope: the scope that all its callers share, where its owner lets them.
    """

    def __init__(
        self,
        spec: wire.Service,
        wheel: TimerWheel,
        urgent: "Callable[[Service], None]",
        stable: "Service | None" = None,
        rules: Rules = _RULES,
    ) -> None:
        now = time.monotonic()
        self.spec = spec
        self.limits = spec.limits
        self.tasks = spec.tasks
        self.namespace = spec.namespace
        self.name = spec.name
        self.v2_path = (V2_PREFIX + quote(spec.name) + V2_SUFFIX).encode()
        """Where its workers answer the V2 protocol."""
        self.shared_scope = TenantScope.service_wide(spec.namespace, spec.name)
        self.stable = stable
        self.canary: Service | None = None
        self.endpoints = EndpointSet(wheel, self._endpoints_changed, rules, lambda: bool(self.held))
        self.admission = Admission(self.endpoints, spec.limits, wheel, self._first_held)
        self.series = ServiceSeries()
        self.tally = Tally(now, lambda: urgent(self))
        self.retries = RetryBudget(now)
        self.latencies = Latencies()
        self.removed = False
        self.usual_seconds = 0.0
        """What a computation lasts, with its wait for a worker; 0 before there was one."""
        self.precomputed: dict[str, int] = {}
        """How many of the precomputed answers are in which state; written by ``precompute``."""
        self.ready_since = now
        self.dimensions: int | None = None
        self._wheel = wheel
        self._urgent = urgent
        self._learnt_tasks: list[Task] = []
        self._learnt_digest = ("", "")  # revision, digest
        self._draws: bool | None = None  # whether the model samples when not told; None: unknown
        self._was_ready = False
        self._unattended = False
        self.binding = self._bind()

    def __repr__(self) -> str:
        trial = f" canary={self.canary!r}" if self.canary is not None else ""
        return (
            f"<Service {self.namespace}/{self.name} {self.state} {self.endpoints!r} "
            f"{self.admission!r}{trial}>"
        )

    @property
    def revision(self) -> str:
        return self.spec.revision

    @property
    def state(self) -> Literal["ready", "starting", "asleep", "failed"]:
        if self.endpoints.ready:
            return "ready"
        if self.spec.failure is not None:
            return "failed"
        if self.unwakeable is not None:
            return "asleep"
        on_its_way = self.endpoints.all or self.held or self.spec.delay is not None
        return "starting" if on_its_way else "asleep"

    @property
    def reason(self) -> str:
        """Why nobody can answer, in one word for programs; empty where that is not known."""
        if self.endpoints.ready:
            return ""
        why = self.spec.failure or self.unwakeable or self.spec.delay
        return why.reason if why is not None else ""

    @property
    def trouble(self) -> str:
        """Why nobody can answer, in words for callers; empty where that is not known."""
        if self.endpoints.ready:
            return ""
        if self.spec.failure is not None:
            return self.spec.failure.message
        if (refusal := self.unwakeable) is not None:
            return refusal.message
        told = self.endpoints.mismatch()
        return told or (self.spec.delay.message if self.spec.delay is not None else "")

    @property
    def unwakeable(self) -> Refusal | None:
        """What who asks is told while it is asleep and no request wakes it."""
        return None if self.endpoints.all else self.admission.unwakeable

    @property
    def ready_endpoints(self) -> int:
        return len(self.endpoints.ready)

    @property
    def in_flight(self) -> int:
        return sum(each.in_flight - each.background for each in self.endpoints.all.values())

    @property
    def precompute(self) -> list[wire.Precomputed]:
        """What is to be there before anybody asks; a canary has its stable revision's list."""
        if not self.spec.cache.enabled or self.spec.cache.sharing != "service":
            return []
        return (self.stable or self).spec.precompute

    @property
    def held(self) -> int:
        return len(self.admission)

    @property
    def version(self) -> int:
        """Rises with every change of an endpoint's state."""
        return self.endpoints.version

    @property
    def settled(self) -> bool:
        """No worker is on its way to anything."""
        return all(e.state in (State.READY, State.MISMATCH) for e in self.endpoints.all.values())

    def oldest_held_seconds(self, now: float) -> float:
        return self.admission.oldest_seconds(now)

    def sightings(self) -> list[Sighting]:
        """The workers by revision, as probes see them; of other revisions too, in a roll-out."""
        found: defaultdict[str, list[Endpoint]] = defaultdict(list)
        for endpoint in self.endpoints.all.values():
            found[endpoint.revision].append(endpoint)
        return [_sighting(revision, endpoints) for revision, endpoints in found.items()]

    def tracks(self) -> "Iterator[Service]":
        """This and its canary."""
        yield self
        if self.canary is not None:
            yield self.canary

    def pick(self) -> "Service":
        """Whose turn it is: by its weight the canary's, while that has a ready worker."""
        trial = self.canary
        if trial is not None and trial.endpoints.ready:
            rules = self.spec.canary
            if rules is not None and random.random() * 100 < rules.weight:  # noqa: S311
                return trial
        return self

    def scope(self, tenant: Tenant) -> TenantScope:
        """Who shares cached answers with ``tenant``."""
        if self.spec.cache.sharing == "service":
            return self.shared_scope
        return tenant.scope

    def uncacheable(self, call: Call) -> bytes:
        """Why its answer may be neither stored nor shared, in a word for ``Cache-Status``, if so.

        What may be is known to follow from the call, and from what is loaded.
        """
        rules = self.binding.cache
        if not rules.enabled:
            return b"off"
        if not self.binding.answer_digest or not self.tasks:
            return b"no-digest"
        determinism = call.determinism
        drawn = determinism not in REUSABLE or (self._draws and leaves_open(call))
        if drawn and (rules.generation != "sampled" or determinism is Determinism.NEVER):
            return b"sampled"
        if rules.generation == "never" and _generates(call.task):
            return b"never"
        return b""

    def undecided(self, call: Call) -> bool:
        """Whether nobody knows yet if chance has a part in its answer: then nobody shares it."""
        if self.binding.cache.generation == "sampled":
            return False
        return self._draws is None and leaves_open(call)

    def keyed_as(self, call: Call) -> str:
        """The task as its keys have it.

        What may have been drawn has keys of its own, so that a service that keeps no such answers
        any more finds none.
        """
        task = call.task or ""
        if self.binding.cache.generation == "sampled" and (call.sampled or leaves_open(call)):
            return f"{task}, drawn"
        return task

    def judge(self, call: Call, items: list[Item]) -> bool:
        """Whether its answer, ``items``, may be stored; learns what the model does by itself."""
        if call.task not in WRITTEN:
            return True
        sampled = any(is_sampled(item) for item in items)
        if leaves_open(call):
            self._draws = sampled
        return not sampled or self.binding.cache.generation == "sampled"

    def took(self, seconds: float) -> None:
        """Learn how long a computation lasts, with its wait for a worker."""
        usual = self.usual_seconds
        self.usual_seconds = usual + 0.1 * (seconds - usual) if usual else seconds

    def attended(self, whether: bool) -> None:
        """Learn whether somebody reads the demand, who would wake it; who waits is told."""
        self._unattended = not whether
        self.admission.unwakeable = self._why_unwakeable()
        self.admission.pump()

    def update(self, spec: wire.Service) -> Changes:
        """Follow the table, and have the canary follow it."""
        trial = trial_of(spec)
        others = trial.endpoints if trial is not None else []
        tried = trial.revision if trial is not None else None
        mine = [entry for entry in spec.endpoints if entry.revision != tried]
        # A worker whose revision goes on trial, or passes it, changes sides as it stands: proven,
        # with what runs there.
        spare = self.endpoints.give_up(mine, spec.revision)
        before = self.canary
        if before is not None:
            spare |= before.endpoints.give_up(others, trial.revision if trial else "")
        if trial is None:
            self.canary = None
        elif before is None:
            rules = self.endpoints.rules
            self.canary = Service(trial, self._wheel, self._urgent, stable=self, rules=rules)
        came = self._follow(spec, mine, spare)
        waiting: list[Waiter] = []
        if self.canary is not None and trial is not None:
            came += self.canary._follow(trial, others, spare)
        elif before is not None:
            waiting = before._leave(TRIAL_OVER)
        for endpoint in spare.values():
            endpoint.retire()
        return Changes(came, list(spare.values()), waiting)

    def remove(self) -> Changes:
        """Out of the table, with its canary."""
        gone = [e for track in self.tracks() for e in track.endpoints.give_up([], "").values()]
        waiting = [waiter for track in self.tracks() for waiter in track._leave(REMOVED)]
        for endpoint in gone:
            endpoint.retire()
        return Changes([], gone, waiting)

    def sample(self) -> Sample:
        states = {str(state): 0 for state in State if state is not State.GONE}
        for endpoint in self.endpoints.all.values():
            states[str(endpoint.state)] += 1
        self.series.ejections = self.endpoints.ejections
        self.series.prefixes = self.endpoints.prefixes
        self.series.queue = self.admission.series
        track = "stable" if self.stable is None else "canary"
        labels = (self.namespace, self.name, track)
        return Sample(
            labels,
            self.series,
            self.in_flight,
            self.held,
            states,
            self.precomputed,
            self.admission.waiting.tenants(),
        )

    # ---------------------------------------------------------------------------------------------

    def _follow(
        self, spec: wire.Service, endpoints: list[wire.Endpoint], spare: dict[str, Endpoint]
    ) -> list[Endpoint]:
        if spec.revision != self.spec.revision:
            self.dimensions = None
            self._draws = None
        self.spec = spec
        self.limits = self.admission.limits = spec.limits
        self.tasks = spec.tasks or self._learnt_tasks
        self.admission.failure = spec.failure
        self.admission.unwakeable = self._why_unwakeable()
        self.endpoints.digest_learnt = not spec.answer_digest
        came = self.endpoints.apply(endpoints, spec.revision, self._digest(), spare)
        self._rebind()
        return came

    def _why_unwakeable(self) -> Refusal | None:
        """What to tell who asks for it while there is no worker, if not to wait."""
        if (dormancy := self.spec.dormancy) is not None:
            return Refusal("asleep", dormancy.reason, dormancy.message)
        # What is on its way comes without an operator too.
        return _NO_OPERATOR if self._unattended and self.spec.delay is None else None

    def _leave(self, why: Refusal) -> list[Waiter]:
        """Serve nobody any more, all endpoints given up. Returns who waits, to be told ``why``."""
        self.removed = True
        self.admission.close()
        waiting = self.admission.drain()
        self.admission.ended = why  # For those who come back from a worker.
        self.endpoints.changed()
        return waiting

    def _digest(self) -> str:
        if self.spec.answer_digest:
            return self.spec.answer_digest
        revision, digest = self._learnt_digest
        return digest if revision == self.spec.revision else ""

    def _bind(self) -> Binding:
        return Binding(
            service=self,
            revision=self.spec.revision,
            answer_digest=self._digest(),
            cache=self.spec.cache,
            public=self.spec.public,
            tenants=tuple(self.spec.tenants),
            alone=self.canary is None and self.stable is None,
            header=b"%b: %b\r\n" % (_REVISION, self.spec.revision.encode()),
        )

    def _rebind(self) -> None:
        binding = self._bind()
        if not binding.same_as(self.binding):
            self.binding = binding

    def _endpoints_changed(self) -> None:
        now = time.monotonic()
        ready = bool(self.endpoints.ready)
        if ready:
            self._learn(self.endpoints.ready[0])
        if ready != self._was_ready:
            self._was_ready = ready
            if ready:
                self.ready_since = now
            log.info(
                "service readiness changed",
                extra={
                    "service": f"{self.namespace}/{self.name}",
                    "revision": self.revision,
                    "ready": ready,
                },
            )
        self.admission.readiness_changed(ready, now)

    def _learn(self, endpoint: Endpoint) -> None:
        """What the table leaves open, the first ready worker of the revision says for all."""
        told = endpoint.readiness
        if told is None or told.revision != self.spec.revision:
            return
        self._learnt_tasks = told.tasks
        self.tasks = self.spec.tasks or told.tasks
        self.dimensions = told.dimensions
        if told.answer_digest:
            self.tally.answer_digests[told.revision] = told.answer_digest
            if not self.spec.answer_digest:
                self._learnt_digest = (told.revision, told.answer_digest)
                self.endpoints.answer_digest = told.answer_digest
                self.endpoints.digest_learnt = True
        self._rebind()

    def _first_held(self) -> None:
        if self.endpoints.ready:
            self._wheel.after(AGEING_SECONDS, self._ageing)
        else:
            self._wheel.after(GATHER_SECONDS, self._tell_of_the_held)
            for endpoint in self.endpoints.all.values():
                endpoint.nudge()  # Nobody may have asked them for a while.

    def _tell_of_the_held(self) -> None:
        if self.held:
            self._urgent(self)

    def _ageing(self) -> None:
        if self.oldest_held_seconds(time.monotonic()) >= AGEING_SECONDS:
            self._urgent(self)


def _sighting(revision: str, endpoints: list[Endpoint]) -> Sighting:
    tasks = next((list(e.told.tasks) for e in endpoints if e.told and e.told.tasks), [])
    return Sighting(revision, tasks, [_seen(endpoint) for endpoint in endpoints])


def _seen(endpoint: Endpoint) -> wire.WorkerSeen:
    ready, told = endpoint.state is State.READY, endpoint.told
    seen = wire.WorkerSeen(address=endpoint.pool.host, ready=ready, in_flight=endpoint.in_flight)
    if told is not None:
        seen.answer_digest = told.answer_digest
        if not ready:
            seen.phase, seen.progress = told.phase, told.progress
    if not ready:
        seen.message = endpoint.message
    return seen


def _generates(task: Task | None) -> bool:
    return task is not None and DETERMINISM[task] is Determinism.GENERATION
