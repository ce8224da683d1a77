"""The queue: order, bounds, refusals with a time, and who gets a place that becomes free."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_gateway.admission import Admission
from sluice_gateway.endpoints import EndpointSet, Lease
from sluice_gateway.timers import TimerWheel
from tests.support.stub_worker import until


class Waiting:
    """A request that waits."""

    def __init__(self, deadline: float | None = None) -> None:
        self.since = time.monotonic()
        self.deadline = self.since + 30 if deadline is None else self.since + deadline
        self.excluded: frozenset[int] = frozenset()
        self.lease: Lease | None = None
        self.refusal: ApiError | None = None

    def granted(self, lease: Lease) -> None:
        self.lease = lease

    def endpoint_lost(self) -> None: ...
    def refused(self, error: ApiError) -> None:
        self.refusal = error


class Queue:
    """An admission over endpoints that need no socket: they are proven by hand."""

    def __init__(self, waiting: int = 100) -> None:
        self.wheel = TimerWheel(asyncio.get_running_loop())
        self.firsts = 0
        self.endpoints = EndpointSet(self.wheel, self._changed, lambda: self.admission.pump())
        self.admission = Admission(
            self.endpoints, wire.LimitRules(waiting=waiting), self.wheel, self._first
        )

    def _changed(self) -> None:
        if hasattr(self, "admission"):
            ready = bool(self.endpoints.ready)
            self.admission.readiness_changed(ready, time.monotonic())

    def _first(self) -> None:
        self.firsts += 1

    def worker(self, *limits: int) -> None:
        """Have one ready endpoint per limit."""
        entries = [
            wire.Endpoint(url=f"http://127.0.0.1:{port}", revision="r")
            for port in range(1, len(limits) + 1)
        ]
        self.endpoints.apply(entries, "r", "", {})
        for endpoint, limit in zip(self.endpoints.all.values(), limits, strict=True):
            readiness = wire.Readiness(
                phase=wire.Phase.READY,
                model="m",
                revision="r",
                capacity=wire.Capacity(limit=limit),
            )
            endpoint.proved(readiness, time.monotonic())

    def submit(self, deadline: float | None = None) -> Waiting:
        waiting = Waiting(deadline)
        self.admission.submit(waiting, time.monotonic())
        return waiting


@pytest.fixture
async def queue() -> Iterator[Queue]:  # type: ignore[misc]
    made = Queue()
    yield made
    made.wheel.close()


async def test_first_in_first_out(queue: Queue) -> None:
    queue.worker(2)
    requests = [queue.submit() for _ in range(5)]
    assert [bool(r.lease) for r in requests] == [True, True, False, False, False]
    for running, following in zip(requests[:3], requests[2:], strict=True):
        assert running.lease is not None
        running.lease.release()
        assert following.lease is not None
    assert queue.firsts == 1


async def test_new_endpoint_takes_the_oldest_at_once(queue: Queue) -> None:
    requests = [queue.submit() for _ in range(3)]
    assert queue.firsts == 1
    queue.worker(2)
    assert [bool(r.lease) for r in requests] == [True, True, False]


async def test_returned_request_is_first_again(queue: Queue) -> None:
    queue.worker(1)
    first, second = queue.submit(), queue.submit()
    assert first.lease is not None
    lease, first.lease = first.lease, None
    first.excluded = frozenset((lease.endpoint.incarnation,))
    queue.admission.return_to_head(first, time.monotonic())
    lease.release()
    # The only endpoint has failed it, so the place goes to the next; nobody else is held up.
    assert first.lease is None and second.lease is not None
    endpoint = lease.endpoint
    endpoint.not_ready("restarting")
    queue.worker(1)
    second.lease.release()
    assert first.lease is not None


async def test_bounded(queue: Queue) -> None:
    queue.admission.limits = wire.LimitRules(waiting=2)
    queue.submit(), queue.submit()
    with pytest.raises(ApiError) as refused:
        queue.submit()
    assert refused.value.code == "starting" and refused.value.retry_after
    queue.worker(1)
    queue.submit()
    with pytest.raises(ApiError) as refused:
        queue.submit()
    assert refused.value.code == "overloaded" and refused.value.retry_after


async def test_wait_beyond_the_deadline_is_refused_at_once(queue: Queue) -> None:
    queue.worker(1)
    queue.admission.took(2.0)
    queue.submit()
    queue.submit(deadline=2.5)
    with pytest.raises(ApiError) as refused:
        queue.submit(deadline=2.5)
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after == pytest.approx(4.0)


async def test_withdrawn_request_gets_nothing(queue: Queue) -> None:
    gone, stays = queue.submit(), queue.submit()
    queue.admission.withdraw(gone)
    queue.worker(1)
    assert gone.lease is None and stays.lease is not None
    assert queue.admission.oldest_seconds(time.monotonic()) == 0.0


async def test_endpoint_that_says_full_is_asked_again_later(queue: Queue) -> None:
    queue.worker(4)
    (endpoint,) = queue.endpoints.ready
    endpoint.full(0.05, time.monotonic())
    waiting = queue.submit()
    assert waiting.lease is None
    await until(lambda: waiting.lease is not None)


async def test_start_time_is_learnt(queue: Queue) -> None:
    before = queue.admission.start_seconds
    waiting = queue.submit()
    waiting.since -= 1.0
    queue.worker(1)
    assert queue.admission.start_seconds == pytest.approx((before + 1.0) / 2, abs=0.1)


async def test_nobody_is_held_for_a_model_that_failed(queue: Queue) -> None:
    held = queue.submit()
    failure = wire.Failure(reason="ModelNotFound", message="Gone.", retry_after_seconds=7)
    queue.admission.failure = failure
    queue.endpoints.apply([], "r", "", {})
    assert held.refusal is not None and len(queue.admission) == 0
    assert (held.refusal.code, held.refusal.message) == ("model_failed", "Gone.")
    with pytest.raises(ApiError) as refused:
        queue.submit()
    assert (refused.value.code, refused.value.retry_after) == ("model_failed", 7)
    queue.worker(4)
    assert queue.submit().lease is not None
