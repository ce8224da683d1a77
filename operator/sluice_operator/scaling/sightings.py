"""What gateways saw of one service's workers: their digests, tasks, progress and load.

``fleet`` keeps one of these per service; ``planning`` reads the sum as :class:`state.Learnt`.
Nobody but a gateway can reach a worker, so this is all the operator knows beside the pods.
"""

from sluice_api import wire
from sluice_api.tasks import Task
from sluice_operator.state import Learnt

PROGRESS_STEPS = 20
"""A twentieth of a download is worth telling."""


class Sightings:
    """The last word of each gateway.

    Attributes:
        gateways: those that know the service, each with the revisions that it has asked.
    """

    def __init__(self) -> None:
        self.gateways: dict[str, set[str]] = {}
        self._digests: dict[str, str] = {}
        self._tasks: dict[str, tuple[Task, ...]] = {}
        self._workers: dict[tuple[str, str], list[wire.WorkerSeen]] = {}  # gateway, revision
        self._told: dict[tuple[str, str], object] = {}

    def __repr__(self) -> str:
        return f"<Sightings {len(self._workers)} views, digests={self._digests}>"

    def observe(self, record: wire.Demand) -> bool:
        """Take one record; True when there is something in it that people should be told."""
        news = False
        asked = self.gateways.setdefault(record.gateway, set())
        if not record.workers_only:
            asked.add(record.revision)
        for revision, digest in record.answer_digests.items():
            if digest and self._digests.get(revision) != digest:
                self._digests[revision] = digest
                news = True
        for worker in record.workers:
            if worker.answer_digest and record.revision not in self._digests:
                self._digests[record.revision] = worker.answer_digest
                news = True
        tasks = tuple(record.tasks)
        if tasks and self._tasks.get(record.revision) != tasks:
            self._tasks[record.revision] = tasks
            news = True
        return self._see(record) or news

    def _see(self, record: wire.Demand) -> bool:
        view = (record.gateway, record.revision)
        if not record.workers:
            self._workers.pop(view, None)
            return self._told.pop(view, None) is not None
        self._workers[view] = record.workers
        told = tuple(sorted(map(_notable, record.workers)))
        if self._told.get(view) == told:
            return False
        self._told[view] = told
        return True

    def forget(self, gateway: str) -> bool:
        """A gateway is gone; True if it had told something."""
        self.gateways.pop(gateway, None)
        views = [view for view in self._workers if view[0] == gateway]
        for view in views:
            del self._workers[view]
            self._told.pop(view, None)
        return bool(views)

    def retain(self, revisions: frozenset[str]) -> None:
        """Forget what was told about other revisions."""
        for known in (self._digests, self._tasks):
            for revision in known.keys() - revisions:
                del known[revision]
        for view in [view for view in self._workers if view[1] not in revisions]:
            del self._workers[view]
            self._told.pop(view, None)
        for asked in self.gateways.values():
            asked &= revisions

    def aware(self, revision: str) -> int:
        """How many gateways would ask workers of ``revision``."""
        return sum(revision in asked for asked in self.gateways.values())

    def learnt(self) -> Learnt:
        """The sum over the gateways."""
        workers: dict[str, wire.WorkerSeen] = {}
        for seen in self._workers.values():
            for worker in seen:
                before = workers.get(worker.address)
                workers[worker.address] = _join(before, worker) if before else worker
        return Learnt(dict(self._digests), dict(self._tasks), workers)


def _join(one: wire.WorkerSeen, other: wire.WorkerSeen) -> wire.WorkerSeen:
    """Two gateways' views of a worker: who has got further with it has probed it later."""
    further = max(one, other, key=lambda seen: (seen.ready, seen.progress or 0.0))
    return wire.WorkerSeen(
        address=one.address,
        ready=further.ready,
        in_flight=one.in_flight + other.in_flight,
        phase=further.phase,
        progress=further.progress,
        message=further.message,
        answer_digest=further.answer_digest or one.answer_digest or other.answer_digest,
    )


def _notable(worker: wire.WorkerSeen) -> tuple[str, ...]:
    progress = "" if worker.progress is None else str(int(worker.progress * PROGRESS_STEPS))
    phase = worker.phase.value if worker.phase else ""
    parts = (worker.address, str(worker.ready), phase, progress, worker.message)
    return (*parts, worker.answer_digest)
