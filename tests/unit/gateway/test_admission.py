"""The queue: order, bounds, refusals with a time, and who gets a place that becomes free."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec import structs

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_gateway.admission import Admission, Refusal
from sluice_gateway.endpoint import Lease
from sluice_gateway.endpoints import EndpointSet
from sluice_gateway.priority import Priority
from sluice_gateway.timers import Timer, TimerWheel
from tests.support.stub_worker import until


class Waiting:
    """A request that waits."""

    def __init__(
        self,
        deadline: float | None = None,
        tenant: bytes = b"a",
        priority: Priority = Priority.NORMAL,
    ) -> None:
        self.since = self.queued_at = time.monotonic()
        self.deadline = self.since + 30 if deadline is None else self.since + deadline
        self.excluded: frozenset[int] = frozenset()
        self.tenant = tenant
        self.weight = 1
        self.units = 1
        self.affinity = None
        self.priority = priority
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
        self.endpoints = EndpointSet(self.wheel, self._changed)
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

    def submit(
        self,
        deadline: float | None = None,
        tenant: bytes = b"a",
        priority: Priority = Priority.NORMAL,
    ) -> Waiting:
        waiting = Waiting(deadline, tenant, priority)
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


def rounds(queue: Queue, seconds: float, count: int, now: float, together: int = 1) -> float:
    """Have requests take so long, ``together`` at a time; when the last of them ended."""
    for _ in range(count):
        now += seconds
        for _ in range(together):
            queue.admission.took(seconds, now)
    return now


async def test_wait_beyond_the_deadline_is_refused_at_once(queue: Queue) -> None:
    queue.worker(1)
    rounds(queue, 2.0, 10, now=0.0)
    queue.submit()
    queue.submit(deadline=2.5)
    with pytest.raises(ApiError) as refused:
        queue.submit(deadline=2.5)
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after == pytest.approx(4.0)


async def test_a_slow_beginning_refuses_nobody(queue: Queue) -> None:
    queue.worker(16)
    now = rounds(queue, 8.0, 1, now=0.0, together=16)
    for after in range(8):
        requests = [queue.submit() for _ in range(99)]
        assert not [request for request in requests if request.refusal], f"{after} rounds later"
        for request in requests:
            queue.admission.withdraw(request)
            if request.lease is not None:
                request.lease.release()
        now = rounds(queue, 0.02, 1, now, together=16)


async def test_workers_that_stood_still_make_nobody_wait_in_advance(queue: Queue) -> None:
    queue.worker(16)
    now = rounds(queue, 0.1, 100, now=0.0, together=16)
    before = queue.admission.predicted_wait(160)
    assert before == pytest.approx(1.0)
    now = rounds(queue, 9.0, 1, now, together=16)  # All that was on its way.
    now = rounds(queue, 0.1, 1, now, together=16)
    assert queue.admission.predicted_wait(160) < 1.5 * before
    now = rounds(queue, 0.1, 12, now, together=16)
    assert queue.admission.predicted_wait(160) == pytest.approx(before, rel=0.1)
    rounds(queue, 0.9, 20, now, together=16)
    assert queue.admission.predicted_wait(160) == pytest.approx(9.0, rel=0.2), "they are slow now"


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


async def test_of_two_that_say_full_the_first_to_have_room_is_asked_first(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.worker(1, 1)
    now, at = time.monotonic(), queue.wheel.at
    moments: list[float] = []

    def noted(moment: float, callback: Callable[[], None]) -> Timer:
        moments.append(moment)
        return at(moment, callback)

    monkeypatch.setattr(queue.wheel, "at", noted)
    one, two, waiting = queue.submit(), queue.submit(), queue.submit()
    assert one.lease is not None and two.lease is not None
    one.lease.endpoint.full(5.0, now)
    one.lease.release()
    two.lease.endpoint.full(4.0, now)
    two.lease.release()
    assert waiting.lease is None and moments == [now + 5.0, now + 4.0]


async def test_who_waits_is_served_when_another_has_given_up_on_a_full_worker(
    queue: Queue,
) -> None:
    queue.worker(1)
    running, waiting = queue.submit(), queue.submit()
    assert running.lease is not None
    # As a request does whose own deadline comes before the time that the worker names.
    running.lease.endpoint.full(0.05, time.monotonic())
    running.lease.release()
    assert waiting.lease is None
    await until(lambda: waiting.lease is not None)


async def test_who_comes_back_to_an_empty_queue_is_told_of(queue: Queue) -> None:
    queue.worker(1)
    request = queue.submit()
    assert request.lease is not None and queue.firsts == 0
    lease, request.lease = request.lease, None
    lease.endpoint.not_ready("draining")
    lease.release()
    queue.admission.return_to_head(request, time.monotonic())
    assert queue.firsts == 1
    queue.worker(1)
    assert request.lease is not None


async def test_a_worker_that_proves_itself_again_teaches_nothing_about_starts(
    queue: Queue,
) -> None:
    queue.worker(1)
    before = queue.admission.start_seconds
    (endpoint,) = queue.endpoints.ready
    endpoint.failed(time.monotonic(), "reset", prove=True)
    waiting = queue.submit()
    waiting.since -= 1.0
    queue.worker(1)
    assert waiting.lease is not None and queue.admission.start_seconds == before
    endpoint.unresponsive("the connection was refused")
    again = queue.submit()
    again.since -= 1.0
    queue.worker(1)
    assert queue.admission.start_seconds < before


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
    for said in ("Gone", "Gone.."):
        queue.admission.failure = structs.replace(failure, message=said)
        with pytest.raises(ApiError, match=r"^Gone\.$"):
            queue.submit()
    with pytest.raises(ApiError) as refused:
        queue.submit()
    assert (refused.value.code, refused.value.retry_after) == ("model_failed", 7)
    assert queue.admission.series.refusals == {(Priority.NORMAL, "failed"): 4}
    queue.worker(4)
    assert queue.submit().lease is not None


async def test_nobody_is_held_for_a_model_that_no_request_wakes(queue: Queue) -> None:
    held = queue.submit()
    queue.admission.unwakeable = Refusal("no_operator", "NoOperator", "Asleep", retry_after=7)
    queue.admission.pump()
    assert held.refusal is not None and len(queue.admission) == 0
    with pytest.raises(ApiError) as refused:
        queue.submit()
    for error in (held.refusal, refused.value):
        assert (error.code, error.message, error.retry_after) == ("no_operator", "Asleep.", 7)
    assert queue.admission.series.refusals == {(Priority.NORMAL, "asleep"): 2}
    starting = wire.Endpoint(url="http://127.0.0.1:1", revision="r")
    queue.endpoints.apply([starting], "r", "", {})
    coming = queue.submit()
    assert coming.refusal is None and len(queue.admission) == 1, "one comes without being woken"
    queue.endpoints.give_up([], "r")
    queue.endpoints.apply([], "r", "", {})
    assert coming.refusal is not None


async def test_a_place_goes_to_another_tenant_than_the_one_with_many(queue: Queue) -> None:
    queue.worker(1)
    flood = [queue.submit(tenant=b"flood") for _ in range(50)]
    other = queue.submit(tenant=b"other")
    turns = 0
    while other.lease is None:
        running = next(each for each in flood if each.lease and each.lease.holder)
        assert running.lease is not None
        running.lease.release()
        turns += 1
    assert turns <= 2


async def test_a_full_queue_has_room_for_who_has_less_in_it(queue: Queue) -> None:
    queue.worker(1)
    queue.admission.limits = wire.LimitRules(waiting=10)
    flood = [queue.submit(tenant=b"flood") for _ in range(11)]
    other = queue.submit(tenant=b"other")
    assert other.refusal is None
    assert [each for each in flood if each.refusal] == flood[-1:], "its newest makes room"
    refusal = flood[-1].refusal
    assert refusal is not None and refusal.code == "overloaded" and refusal.retry_after
    with pytest.raises(ApiError, match="10 requests are waiting"):
        queue.submit(tenant=b"flood")
    urgent = queue.submit(tenant=b"flood", priority=Priority.HIGH)
    assert urgent.refusal is None and len(queue.admission) == 10
    series = queue.admission.series
    assert series.refusals == {
        (Priority.NORMAL, "displaced"): 2,
        (Priority.NORMAL, "full"): 1,
    }


async def test_who_may_go_nowhere_does_not_hold_up_who_comes_later(queue: Queue) -> None:
    queue.worker(2)
    (endpoint,) = queue.endpoints.ready
    failed = Waiting()
    failed.excluded = frozenset((endpoint.incarnation,))
    queue.admission.return_to_head(failed, time.monotonic())
    assert failed.lease is None
    assert queue.submit().lease is not None
    assert len(queue.admission) == 1


async def test_expired_work_is_never_given_to_a_worker(queue: Queue) -> None:
    queue.worker(1)
    running, late, next_one = queue.submit(), queue.submit(), queue.submit()
    late.deadline = time.monotonic() - 0.001
    assert running.lease is not None
    running.lease.release()
    assert late.lease is None and next_one.lease is not None
    assert late.refusal is not None and late.refusal.code == "deadline_exceeded"
    assert "(phase: queue)" in late.refusal.message


async def test_a_bound_on_waiting_counts_from_when_there_is_a_worker(queue: Queue) -> None:
    queue.admission.limits = wire.LimitRules(queue_timeout_seconds=0.05)
    first, second = queue.submit(), queue.submit()
    passed: list[bool] = []
    queue.wheel.after(0.06, lambda: passed.append(True))
    await until(lambda: bool(passed))
    assert len(queue.admission) == 2, "a model that starts is waited for with another bound"
    ready_at = time.monotonic()
    queue.worker(1)
    assert first.lease is not None and second.refusal is None
    await until(lambda: second.refusal is not None)
    assert time.monotonic() - ready_at >= 0.05
    assert second.refusal is not None and second.refusal.code == "overloaded"
    assert "limits.queueTimeout" in second.refusal.message and second.refusal.retry_after
    assert len(queue.admission) == 0
    first.lease.release()
    assert second.lease is None
    assert queue.admission.series.refusals == {(Priority.NORMAL, "timeout"): 1}


async def test_who_leaves_the_queue_is_not_timed_any_more(queue: Queue) -> None:
    queue.admission.limits = wire.LimitRules(queue_timeout_seconds=0.05)
    queue.worker(1)
    running, served, gone = queue.submit(), queue.submit(), queue.submit()
    queue.admission.withdraw(gone)
    assert running.lease is not None
    running.lease.release()
    assert served.lease is not None
    assert repr(queue.wheel) == "<TimerWheel 0 pending>"


async def test_how_long_requests_waited_is_counted_by_priority(queue: Queue) -> None:
    queue.worker(1)
    running = queue.submit(priority=Priority.LOW)
    queue.submit(priority=Priority.LOW)
    assert running.lease is not None
    running.lease.release()
    counted = {each: sum(waits.buckets) for each, waits in queue.admission.series.waits.items()}
    assert counted == {Priority.HIGH: 0, Priority.NORMAL: 0, Priority.LOW: 1}


async def test_time_at_a_worker_is_no_waiting(queue: Queue) -> None:
    queue.worker(1)
    first = queue.submit()
    first.since -= 100.0  # It came long ago, and a worker had it all the time.
    assert first.lease is not None
    first.lease.endpoint.full(0.01, time.monotonic())
    first.lease.release()
    queue.admission.return_to_head(first, time.monotonic())
    await until(lambda: sum(queue.admission.series.waits[Priority.NORMAL].buckets) == 1, 30)
    assert queue.admission.series.waits[Priority.NORMAL].seconds < 60
