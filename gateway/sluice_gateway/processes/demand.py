"""The demand that all children see together, service by service.

Each child tells records as a gateway of its own would. A :class:`Track` adds them up and is what an
ordinary ``DemandFeed`` of the supervisor reads, so that whoever scales sees one gateway. What is
counted (arrivals, completions) is added as it comes; what is a state (held, in flight) is kept for
each child and goes with it.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from sluice_api import wire
from sluice_api.tasks import Task
from sluice_gateway.demand import Sighting, Tally

Key = tuple[str, str]
"""Namespace and name."""


class Share:
    """The last that one child told of a revision. ``at`` is on the monotonic clock."""

    __slots__ = ("at", "others", "record")

    def __init__(self, record: wire.Demand, others: list[wire.Demand], at: float) -> None:
        self.record = record
        self.others = others
        self.at = at

    def looks_like(self, other: "Share") -> bool:
        """Whether it says the same about workers."""
        mine, theirs = self.record, other.record
        return (
            mine.workers == theirs.workers
            and mine.tasks == theirs.tasks
            and mine.answer_digests == theirs.answer_digests
            and mine.ready_endpoints == theirs.ready_endpoints
            and [o.workers for o in self.others] == [o.workers for o in other.others]
        )


class Track:
    """One revision of one service, as all children see it."""

    def __init__(
        self, namespace: str, name: str, revision: str, now: float, on_step: Callable[[], None]
    ) -> None:
        self.namespace = namespace
        self.name = name
        self.revision = revision
        self.tally = Tally(now, on_step)
        self.version = 0
        self._shares: dict[int, Share] = {}

    def __repr__(self) -> str:
        return f"<Track {self.namespace}/{self.name} {self.revision} of {len(self._shares)}>"

    @property
    def tasks(self) -> list[Task]:
        return next((s.record.tasks for s in self._shares.values() if s.record.tasks), [])

    @property
    def ready_endpoints(self) -> int:
        """Of the child that sees most of them ready."""
        return max((share.record.ready_endpoints for share in self._shares.values()), default=0)

    @property
    def in_flight(self) -> int:
        return sum(share.record.in_flight for share in self._shares.values())

    @property
    def held(self) -> int:
        return sum(share.record.held for share in self._shares.values())

    @property
    def settled(self) -> bool:
        workers = (worker for share in self._shares.values() for worker in share.record.workers)
        return all(worker.ready for worker in workers)

    def oldest_held_seconds(self, now: float) -> float:
        ages = (
            share.record.oldest_held_seconds + now - share.at
            for share in self._shares.values()
            if share.record.held
        )
        return max(ages, default=0.0)

    def sightings(self) -> list[Sighting]:
        by_revision: dict[str, list[wire.Demand]] = {}
        for share in self._shares.values():
            for record in (share.record, *share.others):
                by_revision.setdefault(record.revision, []).append(record)
        return [_together(revision, records) for revision, records in by_revision.items()]

    def take(self, child: int, records: list[wire.Demand], now: float) -> None:
        """What ``child`` has told of this revision at one time, perhaps with workers of others."""
        tally = self.tally
        before = tally.arrivals
        own = [record for record in records if not record.workers_only]
        for record in own:
            tally.arrivals += record.arrivals
            tally.completions += record.completions
            tally.service_seconds += record.service_seconds
            tally.work_units += record.work_units
            tally.cache_hits += record.cache_hits
            tally.answer_digests |= record.answer_digests
        if own:
            # The last is the present; one before it tells of the rest that it ended.
            self._see(child, Share(own[-1], [r for r in records if r.workers_only], now))
        if before < tally.step_at <= tally.arrivals:
            tally.on_step()

    def forget(self, child: int) -> None:
        """The child is gone, and what was waiting in it."""
        if self._shares.pop(child, None) is not None:
            self.version += 1

    def _see(self, child: int, share: Share) -> None:
        before = self._shares.get(child)
        self._shares[child] = share
        if before is None or not share.looks_like(before):
            self.version += 1


class Tracks:
    """All revisions that answer or are on trial: those of the table, no others.

    Args:
        on_step: called for a track whose arrivals step up.
    """

    def __init__(self, on_step: Callable[[Track], None]) -> None:
        self._on_step = on_step
        self._by_name: dict[Key, list[Track]] = {}

    def __repr__(self) -> str:
        return f"<Tracks of {len(self._by_name)} services>"

    def all(self) -> list[Track]:
        return [track for tracks in self._by_name.values() for track in tracks]

    def put(self, spec: wire.Service, now: float) -> None:
        key = (spec.namespace, spec.name)
        known = {track.revision: track for track in self._by_name.get(key, [])}
        wanted = [spec.revision]
        if spec.canary is not None:
            wanted.append(spec.canary.revision)
        self._by_name[key] = [
            known.get(revision) or self._make(key, revision, now) for revision in wanted
        ]

    def remove(self, key: Key) -> None:
        self._by_name.pop(key, None)

    def keys(self) -> Iterable[Key]:
        return list(self._by_name)

    def take(self, child: int, records: list[wire.Demand], now: float) -> Track | None:
        """Add up what ``child`` told; the track it counts for, None for a service that is gone."""
        main = next((record for record in records if not record.workers_only), None)
        if main is None:
            return None
        tracks = self._by_name.get((main.namespace, main.service))
        if tracks is None:
            return None
        # What was counted just before a revision changed counts for the one that answers now.
        track = next((t for t in tracks if t.revision == main.revision), tracks[0])
        track.take(child, records, now)
        return track

    def forget(self, child: int) -> None:
        for track in self.all():
            track.forget(child)

    def _make(self, key: Key, revision: str, now: float) -> Track:
        track = Track(*key, revision, now, lambda: self._on_step(track))
        return track


def _together(revision: str, records: list[wire.Demand]) -> Sighting:
    tasks = next((record.tasks for record in records if record.tasks), [])
    workers: dict[tuple[str, int], wire.WorkerSeen] = {}
    for record in records:
        # Outside a cluster workers share an address; all children list them in one order.
        met: Counter[str] = Counter()
        for worker in record.workers:
            key = (worker.address, met[worker.address])
            met[worker.address] += 1
            workers[key] = _both(workers[key], worker) if key in workers else worker
    return Sighting(revision, tasks, list(workers.values()))


def _both(one: wire.WorkerSeen, other: wire.WorkerSeen) -> wire.WorkerSeen:
    """One worker as two children see it: ready if it is to one of them."""
    better = other if other.ready and not one.ready else one
    return msgspec.structs.replace(better, in_flight=one.in_flight + other.in_flight)
