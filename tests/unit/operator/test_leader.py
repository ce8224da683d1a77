"""Leadership: one holder at a time, a fence that outlives nobody's lease, a quick way back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sluice_api import names
from sluice_operator import kinds
from sluice_operator.api_errors import NotLeader, Unavailable
from sluice_operator.app import STOP_SECONDS
from sluice_operator.leader import CALL_SECONDS, LEASE_SECONDS, RENEW_SECONDS, Leader
from tests.support.fake_cluster import FakeCluster
from tests.support.virtual_time import in_virtual_time

NAMESPACE = "sluice-system"


class Line:
    """A replica's way to the API server, which can be cut."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.cut = False
        self.hangs = False
        self.deaf = False
        """Calls arrive, and their answers do not come back."""
        self.calls = 0

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._cluster, name)

        async def through(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.hangs:
                await asyncio.sleep(1e6)
            if self.cut:
                raise Unavailable(name, "leases", "connection refused")
            answer = await call(*args, **options)
            if self.deaf:
                await asyncio.sleep(1e6)
            return answer

        return through


class Replica:
    """A candidate, and when it began and ceased to lead."""

    def __init__(self, cluster: FakeCluster, identity: str) -> None:
        self.line = Line(cluster)
        self.changes: list[tuple[float, bool]] = []
        self.leader = Leader(self.line, NAMESPACE, identity, self._note)
        self.task: asyncio.Task[None] | None = None

    def _note(self, leading: bool) -> None:
        self.changes.append((now(), leading))

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.leader.run())

    async def stop(self) -> None:
        """End as on SIGTERM."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])

    async def die(self) -> None:
        """End as on SIGKILL: nothing more is said."""
        self.line.hangs = True
        await self.stop()

    def may_write(self) -> bool:
        try:
            self.leader.check()
        except NotLeader:
            return False
        return True


def now() -> float:
    return asyncio.get_running_loop().time()


async def holder(cluster: FakeCluster) -> str:
    lease = await cluster.get(kinds.LEASE, NAMESPACE, names.LEASE)
    return str(lease["spec"]["holderIdentity"])


@in_virtual_time
async def test_one_of_two_leads_and_the_other_waits() -> None:
    cluster = FakeCluster()
    first, second = Replica(cluster, "a"), Replica(cluster, "b")
    first.start()
    await asyncio.sleep(0.5)
    second.start()
    await asyncio.sleep(60)
    assert first.may_write()
    assert not second.may_write()
    assert second.changes == []
    assert await holder(cluster) == "a"
    await first.stop()
    await second.stop()


@in_virtual_time
async def test_letting_go_hands_over_within_two_seconds() -> None:
    cluster = FakeCluster()
    first, second = Replica(cluster, "a"), Replica(cluster, "b")
    first.start()
    await asyncio.sleep(0.5)
    second.start()
    await asyncio.sleep(10)
    ended = now()
    await first.stop()
    await asyncio.sleep(5)
    assert [leading for _, leading in first.changes] == [True, False]
    assert second.changes[0][0] - ended <= 2.0
    await second.stop()


async def two(cluster: FakeCluster) -> tuple[Replica, Replica]:
    """One that leads, and one that waits."""
    first, second = Replica(cluster, "a"), Replica(cluster, "b")
    first.start()
    await asyncio.sleep(0.5)
    second.start()
    await asyncio.sleep(10)
    return first, second


@in_virtual_time
@pytest.mark.parametrize("trouble", ["cut", "hangs"])
async def test_letting_go_is_tried_again_while_the_api_server_is_slow(trouble: str) -> None:
    cluster = FakeCluster()
    first, second = await two(cluster)
    setattr(first.line, trouble, True)
    ending = asyncio.create_task(first.stop())
    await asyncio.sleep(2)
    setattr(first.line, trouble, False)
    repaired = now()
    await ending
    await asyncio.sleep(5)
    assert second.changes[0][0] - repaired <= CALL_SECONDS + 2.0
    await second.stop()


@in_virtual_time
async def test_a_lease_that_was_just_being_renewed_is_let_go_all_the_same() -> None:
    cluster = FakeCluster()
    first, second = await two(cluster)
    first.line.deaf = True
    await asyncio.sleep(1)  # a renewal has arrived, and its answer has not
    assert first.may_write()
    first.line.deaf = False
    ended = now()
    await first.stop()
    assert await holder(cluster) == ""
    await asyncio.sleep(5)
    assert second.changes[0][0] - ended <= 2.0
    await second.stop()


@in_virtual_time
async def test_letting_go_ends_although_nobody_answers() -> None:
    cluster = FakeCluster()
    first, second = await two(cluster)
    first.line.hangs = True
    ended = now()
    await first.stop()
    assert now() - ended <= STOP_SECONDS
    await second.stop()


@in_virtual_time
async def test_what_another_holds_is_not_let_go() -> None:
    cluster = FakeCluster()
    first, second = await two(cluster)
    first.line.cut = True
    loop: Any = asyncio.get_running_loop()
    loop.skip(60)  # stopped, and resumed only to end
    await asyncio.sleep(0)
    lease = await cluster.get(kinds.LEASE, NAMESPACE, names.LEASE)
    lease["spec"]["holderIdentity"] = "b"
    await cluster.replace(kinds.LEASE, lease)
    first.line.cut = False
    await first.stop()
    assert await holder(cluster) == "b"
    await second.stop()


@in_virtual_time
async def test_a_holder_that_dies_is_replaced_when_its_lease_is_over_and_not_before() -> None:
    cluster = FakeCluster()
    first, second = Replica(cluster, "a"), Replica(cluster, "b")
    first.start()
    await asyncio.sleep(0.5)
    second.start()
    await asyncio.sleep(10)
    died = now()
    await first.die()
    await asyncio.sleep(20)
    took = second.changes[0][0] - died
    assert LEASE_SECONDS - 1.0 <= took <= 8.0
    await second.stop()


@in_virtual_time
async def test_a_restarted_container_takes_its_own_lease_back_at_once() -> None:
    cluster = FakeCluster()
    before, other = Replica(cluster, "a"), Replica(cluster, "b")
    before.start()
    await asyncio.sleep(0.5)
    other.start()
    await asyncio.sleep(10)
    await before.die()
    after = Replica(cluster, "a")
    began = now()
    after.start()
    await asyncio.sleep(30)
    assert after.changes == [(began, True)]
    assert other.changes == []
    await after.stop()
    await other.stop()


@in_virtual_time
async def test_the_fence_falls_before_another_may_take_the_lease() -> None:
    cluster = FakeCluster()
    first, second = Replica(cluster, "a"), Replica(cluster, "b")
    first.start()
    await asyncio.sleep(0.5)
    second.start()
    await asyncio.sleep(10)
    first.line.cut = True
    both, fenced_at = False, None
    for _ in range(2000):
        await asyncio.sleep(0.01)
        both = both or (first.may_write() and second.may_write())
        if fenced_at is None and not first.may_write():
            fenced_at = now()
    assert not both
    assert fenced_at is not None
    # The last write may take as long as the difference, and still end first.
    assert second.changes[0][0] - fenced_at >= LEASE_SECONDS - RENEW_SECONDS - 1.0
    assert [leading for _, leading in first.changes] == [True, False]
    first.line.cut = False
    await asyncio.sleep(10)
    assert second.may_write()
    assert not first.may_write()
    await first.stop()
    await second.stop()


@in_virtual_time
async def test_an_api_server_that_hangs_costs_the_lease_in_time() -> None:
    cluster = FakeCluster()
    replica = Replica(cluster, "a")
    replica.start()
    await asyncio.sleep(5)
    hung = now()
    replica.line.hangs = True
    await asyncio.sleep(20)
    assert replica.changes[1][1] is False
    assert replica.changes[1][0] - hung <= RENEW_SECONDS + 0.01
    replica.line.hangs = False
    await asyncio.sleep(3)
    assert replica.may_write()
    await replica.stop()


@in_virtual_time
async def test_a_short_outage_costs_nothing() -> None:
    cluster = FakeCluster()
    replica = Replica(cluster, "a")
    replica.start()
    await asyncio.sleep(5)
    replica.line.cut = True
    await asyncio.sleep(RENEW_SECONDS - 1.5)
    assert replica.may_write()
    replica.line.cut = False
    await asyncio.sleep(10)
    assert replica.changes == [(1000.0, True)]
    await replica.stop()


@in_virtual_time
async def test_a_process_that_was_stopped_and_resumed_may_not_write() -> None:
    cluster = FakeCluster()
    replica = Replica(cluster, "a")
    replica.start()
    await asyncio.sleep(5)
    loop: Any = asyncio.get_running_loop()
    loop.skip(60)
    assert not replica.may_write()
    await replica.stop()


@in_virtual_time
async def test_replicas_that_stood_still_together_keep_their_leader() -> None:
    cluster = FakeCluster()
    first, second = await two(cluster)
    loop: Any = asyncio.get_running_loop()
    for _ in range(3):
        first.changes.clear()
        loop.skip(9)
        resumed = now()
        assert not first.may_write()
        await asyncio.sleep(10)
        assert [leading for _, leading in first.changes] == [False, True]
        assert first.changes[1][0] - resumed < 0.1, "at once"
    assert second.changes == []
    await first.stop()
    await second.stop()


@in_virtual_time
async def test_one_that_could_not_look_does_not_take_the_holder_for_silent() -> None:
    """As when nobody reaches the API server: who is first to do so again need not be the leader."""
    cluster = FakeCluster()
    first, second = await two(cluster)
    first.line.cut = True
    await asyncio.sleep(1.5)  # The other sees the last renewal.
    second.line.cut = True
    await asyncio.sleep(20)
    second.line.cut = False
    await asyncio.sleep(2)
    first.line.cut = False
    await asyncio.sleep(20)
    assert first.may_write()
    assert second.changes == []
    await first.stop()
    await second.stop()


@in_virtual_time
async def test_an_empty_lease_of_the_chart_is_free() -> None:
    cluster = FakeCluster()
    metadata = {"namespace": NAMESPACE, "name": names.LEASE}
    cluster.put({"apiVersion": kinds.LEASE.api_version, "kind": "Lease", "metadata": metadata})
    replica = Replica(cluster, "a")
    replica.start()
    await asyncio.sleep(0.5)
    assert replica.may_write()
    await replica.stop()


@in_virtual_time
async def test_renewing_costs_one_call_a_second() -> None:
    cluster = FakeCluster()
    replica = Replica(cluster, "a")
    replica.start()
    await asyncio.sleep(5.5)
    before = replica.line.calls
    await asyncio.sleep(100)
    assert replica.line.calls - before == 100
    await replica.stop()


@in_virtual_time
async def test_nobody_may_write_before_the_first_lease() -> None:
    replica = Replica(FakeCluster(), "a")
    with pytest.raises(NotLeader):
        replica.leader.check()
