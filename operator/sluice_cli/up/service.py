"""One InferenceService in local mode: its file, its workers, and what is known about both.

``control.py`` owns the services and calls each in turn: take note, decide, plan, show. Everything
here happens on the loop, between two awaits, so nothing is locked.
"""

from collections import deque

from sluice_api import names, wire
from sluice_api.digests import revision_digest
from sluice_api.inference_service import InferenceService
from sluice_api.service_entry import service_entry
from sluice_api.tasks import Task
from sluice_cli.up import host
from sluice_cli.up.exits import Exit
from sluice_cli.up.instances import ALIVE, Crashes, Fleet, Phase, Wanted, after_crash
from sluice_cli.up.plan import CHANGED, Plan
from sluice_cli.up.state import Learnt, StateFolder
from sluice_cli.up.view import View
from sluice_cli.up.worker import Worker
from sluice_operator.plan import worker_environment
from sluice_operator.scaling.recommend import Decision, Recommender, WorkerCounts
from sluice_operator.scaling.rules import rules_of

MEMORY_HINT_BYTES = 1 << 30
"""What a worker is taken to need before one has been measured: the libraries, a small model."""
HOPELESS_CRASHES = 2
"""Ends without a known reason after which callers are not held any more: one may be an accident."""
MIN_RETRY_SECONDS = 1.0
_RECENT_RECORDS = 5


def template_of(service: InferenceService) -> str:
    """What a worker is started from: another template needs other workers.

    The revision alone is not enough: batching settings change no answer, but a running worker
    cannot take them over. Its longest backlog may stay, because the gateway keeps the deadline.
    """
    environment = worker_environment(service)
    environment.pop(names.ENV_MAX_BACKLOG, None)
    return f"{environment[names.ENV_REVISION]}.{revision_digest(environment)}"


def revision_in(template: str) -> str:
    return template.partition(".")[0]


class LocalService:
    """The state of one service.

    Attributes:
        spec: as its file says now.
        created: when it became known, in seconds since the epoch.
        template: of ``spec``; None once the service was removed.
        serving: template of the workers that get the requests.
        workers: every process that has not ended, by name.
        plan: the last one.
        recent: the gateway's last records of it.
    """

    def __init__(
        self, spec: InferenceService, state: StateFolder, view: View, now: float, *, created: int
    ) -> None:
        self.spec = spec
        self.created = created
        template = template_of(spec)
        self.template: str | None = template
        self.serving: str | None = None
        self.workers: dict[str, Worker] = {}
        self.plan = Plan([])
        self.recent: deque[wire.Demand] = deque(maxlen=_RECENT_RECORDS)
        self._specs = {template: spec}
        self._state = state
        self._view = view
        self._recommenders = {template: Recommender(rules_of(spec), now)}
        self._decisions: dict[str, Decision] = {}
        self._crashes: dict[str, Crashes] = {}
        self._failures: dict[str, Exit] = {}
        self._welcomed: set[str] = set()
        self._started = 0

    def __repr__(self) -> str:
        return f"<LocalService {self.key} {self.serving} {[*self.workers.values()]}>"

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def label(self) -> str:
        """How people and callers name it: the namespace only where it is not the default."""
        metadata = self.spec.metadata
        return metadata.name if metadata.namespace == names.DEFAULT_NAMESPACE else self.key

    @property
    def gone(self) -> bool:
        """Removed, and nothing of it runs any more."""
        return self.template is None and not self.workers

    @property
    def held(self) -> int:
        return self.recent[-1].held if self.recent else 0

    @property
    def tasks(self) -> list[Task]:
        return self._learnt().tasks

    @property
    def failure(self) -> Exit | None:
        """How a worker of the file's revision, else of the one that serves, ended unasked.

        None once another one of the same revision has become ready.
        """
        return self.failure_of(self.template) or self.failure_of(self.serving)

    def failure_of(self, template: str | None) -> Exit | None:
        return self._failures.get(template or "")

    @property
    def answers(self) -> bool:
        """The gateway has a worker for it now."""
        return bool(self.recent) and self.recent[-1].ready_endpoints > 0

    @property
    def settled(self) -> bool:
        """It sleeps, and nothing is to be done before somebody asks."""
        return not self.workers and not self.trying

    @property
    def trying(self) -> bool:
        """Workers are wanted, of whichever revision."""
        return any(decision.desired for decision in self._decisions.values())

    # What is wanted --------------------------------------------------------------------------

    def change(self, spec: InferenceService, now: float) -> None:
        """Take over a changed file."""
        before, template = self.template, template_of(spec)
        self.spec, self.template = spec, template
        self._forget_all_but(template, self.serving)
        self._specs[template] = spec
        self._recommenders.setdefault(template, Recommender(rules_of(spec), now))
        for recommender in self._recommenders.values():
            recommender.rules = rules_of(spec)
        # A change is a new chance, also for a model folder that was put right in the meantime.
        self._crashes.pop(template, None)
        self._failures.clear()
        if before != template:
            self._view.event(self.label, f"new revision {revision_in(template)}")

    def remove(self) -> None:
        self.template = None

    def observe(self, demand: wire.Demand, now: float) -> None:
        """Take one record of the gateway."""
        last = self.recent[-1].gateway if self.recent else demand.gateway
        self.recent.append(demand)
        for recommender in self._recommenders.values():
            if last != demand.gateway:
                recommender.forget(last)  # There is one gateway: this is a new process.
            recommender.observe(demand, now)

    def decide(self, now: float) -> None:
        """Ask scaling how many replicas each revision should have."""
        for template, recommender in self._recommenders.items():
            before = self._decisions.get(template)
            counts = self._counts(template, before.desired if before else 0)
            decision = self._decisions[template] = recommender.decide(counts, now)
            if before is None or before.desired != decision.desired:
                self._view.detail(self.label, str(decision))

    def _counts(self, template: str, ordered: int) -> WorkerCounts:
        alive = [w for w in self.workers.values() if w.template == template and w.phase in ALIVE]
        ready = sum(w.phase == Phase.READY for w in alive)
        crashes = self._crashes.get(template)
        return WorkerCounts(
            ordered=ordered,
            ready=ready,
            starting=len(alive) - ready,
            failed=max(0, ordered - ready) if crashes and crashes.count > 1 else 0,
            unschedulable=self.plan.unschedulable,
        )

    def wanted(self) -> Wanted:
        """What the plan should aim at."""
        replicas = {template: decision.desired for template, decision in self._decisions.items()}
        if self.template is not None and self.serving is not None:
            # A new revision must be able to carry at once what the old one carries.
            old = replicas.get(self.serving, 0)
            replicas[self.template] = max(replicas.get(self.template, 0), old)
        return Wanted(self.template, replicas, self.spec.spec.scaling.initial_replicas, self.why)

    @property
    def why(self) -> str:
        """The reason of the last decision."""
        decision = self._decisions.get(self.serving or self.template or "")
        return decision.reason if decision else ""

    @property
    def wanted_replicas(self) -> int:
        """Of the revision that serves, or will be the first to."""
        decision = self._decisions.get(self.serving or self.template or "")
        return decision.desired if decision and self.template else 0

    # What is there ---------------------------------------------------------------------------

    def fleet(self, now: float) -> Fleet:
        """The workers as the plan sees them."""
        return Fleet(
            self.serving,
            tuple(w.instance(now, outdated=self._outdated(w)) for w in self.workers.values()),
            self._crashes,
        )

    def next_name(self) -> tuple[str, int]:
        self._started += 1
        return f"{self.label}-{self._started}", self._started

    def environment(self, template: str) -> dict[str, str]:
        """The environment of a worker of ``template``, which serves or shall serve."""
        return {
            **worker_environment(self._specs[template]),
            names.ENV_WORKER_THREADS: str(self.threads),
            # It is out of the table before it is told to stop, and need not wait for that.
            names.ENV_DRAIN_GRACE: "200ms",
            names.ENV_DRAIN_TIMEOUT: "30s",
        }

    @property
    def threads(self) -> int:
        """Of one worker: as many as leave room for ``maxReplicas`` of them, where possible."""
        return max(1, host.cores() // self.spec.spec.scaling.max_replicas)

    def promote(self, template: str) -> None:
        """From now on ``template`` serves; what was known of others is forgotten."""
        self.serving = template
        self._forget_all_but(template)

    def _forget_all_but(self, *templates: str | None) -> None:
        by_template = (
            *(self._specs, self._recommenders, self._decisions),
            *(self._crashes, self._failures),
        )
        for known in by_template:
            for template in known.keys() - set(templates):
                del known[template]

    def take_note(self, now: float) -> None:
        """Learn from what the workers told, and forget those that have ended."""
        for worker in sorted(self.workers.values(), key=lambda w: w.number):
            if worker.exit is not None:
                del self.workers[worker.name]
                self._welcomed.discard(worker.name)
                self._bury(worker, now)
            elif worker.phase == Phase.READY:
                self._learn(worker)

    def _learn(self, worker: Worker) -> None:
        told = worker.readiness
        assert told is not None
        if worker.name not in self._welcomed:
            self._welcomed.add(worker.name)
            self._failures.pop(worker.template, None)
            assert worker.ready_at is not None
            seconds = worker.ready_at - worker.started_at
            for recommender in self._recommenders.values():
                recommender.started(seconds)
            self._view.event(self.label, f"{worker.name} is ready after {seconds:.1f} s")
        newest = all(
            w.number <= worker.number or w.phase != Phase.READY or w.revision != worker.revision
            for w in self.workers.values()
        )
        learnt = Learnt(told.answer_digest, told.tasks)
        known = self._state.recall(worker.revision)
        if newest and told.answer_digest and learnt != known:
            self._state.remember(worker.revision, learnt)
            if known.answer_digest and known.answer_digest != learnt.answer_digest:
                self._view.event(self.label, f"{CHANGED}: its old answers are not used")

    def _outdated(self, worker: Worker) -> bool:
        told = worker.readiness
        known = self._state.recall(worker.revision).answer_digest
        return bool(told and told.answer_digest and known and told.answer_digest != known)

    def _bury(self, worker: Worker, now: float) -> None:
        assert worker.exit is not None
        if worker.phase not in ALIVE:
            self._view.event(self.label, f"{worker.name} ended")
            return
        ready_seconds = now - worker.ready_at if worker.ready_at is not None else 0.0
        self.note_crash(worker.name, worker.template, worker.exit, ready_seconds, now)

    def note_crash(
        self, name: str, template: str, ended: Exit, ready_seconds: float, now: float
    ) -> None:
        """A worker of ``template`` ended unasked, after having been ready for so long."""
        crashes = after_crash(self._crashes.get(template), ready_seconds, now)
        self._crashes[template] = crashes
        self._failures[template] = ended
        when = f"in {crashes.backoff_seconds:.0f} s" if crashes.backoff_seconds else "now"
        self._view.problem(self.label, f"{name} {ended.describe()} – restart {when}")

    # What others see -------------------------------------------------------------------------

    def entry(self) -> wire.Service | None:
        """Its line in the gateway's table; None while there is nothing to say."""
        if self.serving is None or self.template is None:
            return None
        learnt = self._learnt()
        return service_entry(
            self.spec,
            created=self.created,
            # Its rules are those of the file now; its answers are those of what serves.
            revision=revision_in(self.serving),
            answer_digest=learnt.answer_digest,
            tasks=learnt.tasks,
            endpoints=[
                wire.Endpoint(url=w.url, revision=w.revision)
                for w in self.workers.values()
                if w.phase in ALIVE
            ],
            failure=self._failure_for_callers(),
        )

    def _failure_for_callers(self) -> wire.Failure | None:
        """Why a request would wait in vain; None while one that is held may soon be answered."""
        if not self.trying or any(w.phase == Phase.READY for w in self.workers.values()):
            return None  # Asleep, it is tried again when somebody asks.
        # During a rollout either of the two may still come to answer.
        if not all(self._hopeless(template) for template in (self.serving, self.template)):
            return None
        assert self.template is not None
        ended, crashes = self._failures[self.template], self._crashes[self.template]
        return wire.Failure(
            reason=ended.reason,
            message=ended.tell_callers(self.spec.spec.model.uri),
            retry_after_seconds=max(MIN_RETRY_SECONDS, crashes.backoff_seconds),
        )

    def _hopeless(self, template: str | None) -> bool:
        ended = self.failure_of(template)
        if ended is None or template is None:
            return False
        return ended.explained or self._crashes[template].count >= HOPELESS_CRASHES

    def worker_bytes(self) -> int:
        """Memory one more worker will need: as much as the largest there is."""
        sizes = [
            host.resident_bytes(w.pid) for w in self.workers.values() if w.phase == Phase.READY
        ]
        return max((size for size in sizes if size), default=MEMORY_HINT_BYTES)

    def _learnt(self) -> Learnt:
        return self._state.recall(revision_in(self.serving)) if self.serving else Learnt()
