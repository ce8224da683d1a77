"""Events: posted aside, counted up instead of repeated, dropped rather than piled up."""

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry

from sluice_api import names
from sluice_operator import announce
from sluice_operator.announce import Announcer, event_name
from sluice_operator.api_errors import NotLeader, PermissionDenied
from sluice_operator.instruments import Instruments
from sluice_operator.kinds import Kind
from sluice_operator.steps import Event
from tests.support.fake_cluster import FakeCluster
from tests.support.virtual_time import in_virtual_time

SERVICE = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"namespace": "team", "name": "minilm", "uid": "u-1"},
}
ASLEEP = Event("Normal", "Asleep", "nobody asks")


class Board(FakeCluster):
    """Takes merges too, and can refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.merged: list[dict[str, Any]] = []
        self.refusal: Exception | None = None

    async def create(self, kind: Kind, wanted: Any, *, fenced: bool = True) -> dict[str, Any]:
        if self.refusal:
            raise self.refusal
        return await super().create(kind, wanted)

    async def merge(self, kind: Kind, namespace: str, name: str, change: Any) -> dict[str, Any]:
        self.merged.append(change)
        return {}


def announcer(board: Board) -> tuple[Announcer, CollectorRegistry]:
    registry = CollectorRegistry()
    return Announcer(board, "operator-a", Instruments(registry)), registry  # type: ignore[arg-type]


def dropped(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("sluice_operator_events_dropped_total") or 0


async def post_all(one: Announcer, seconds: float = 5.0) -> None:
    task = asyncio.get_running_loop().create_task(one.run())
    await asyncio.sleep(seconds)
    task.cancel()


@in_virtual_time
async def test_an_event_says_what_about_whom_and_by_whom() -> None:
    board = Board()
    one, _ = announcer(board)
    one.announce(SERVICE, ASLEEP)
    await post_all(one)
    event = board.read("Event", "team", event_name(SERVICE, ASLEEP))
    assert event["involvedObject"]["uid"] == "u-1"
    assert (event["type"], event["reason"], event["message"]) == ("Normal", "Asleep", "nobody asks")
    assert event["reportingInstance"] == "operator-a"


@in_virtual_time
async def test_the_same_news_counts_up() -> None:
    board = Board()
    one, _ = announcer(board)
    for _ in range(3):
        one.announce(SERVICE, ASLEEP)
    one.announce(SERVICE, Event("Normal", "Asleep", "another reason"))
    await post_all(one)
    assert len(board.objects) == 2
    assert [change["count"] for change in board.merged] == [2, 3]


@in_virtual_time
async def test_the_count_goes_on_after_another_operator() -> None:
    board = Board()
    for _ in range(2):
        one, _ = announcer(board)
        one.announce(SERVICE, ASLEEP)
        await post_all(one)
    assert [change["count"] for change in board.merged] == [2]


@in_virtual_time
async def test_too_many_are_dropped_and_counted() -> None:
    board = Board()
    one, registry = announcer(board)
    for number in range(announce.WAITING + 7):
        one.announce(SERVICE, Event("Normal", "Asleep", str(number)))
    assert dropped(registry) == 7
    await post_all(one, 10)
    assert len(board.objects) <= 50 + 10 * announce.PER_SECOND + 1


@in_virtual_time
async def test_refusals_end_nothing() -> None:
    board = Board()
    one, registry = announcer(board)
    board.refusal = PermissionDenied("create", "events", "no")
    one.announce(SERVICE, ASLEEP)
    await post_all(one)
    board.refusal = NotLeader()
    one.announce(SERVICE, ASLEEP)
    await post_all(one)
    board.refusal = None
    one.announce(SERVICE, ASLEEP)
    await post_all(one)
    assert len(board.objects) == 1
    assert dropped(registry) == 1
