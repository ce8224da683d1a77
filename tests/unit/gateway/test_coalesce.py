"""Many equal questions, one computation: who leads, who hears what, and when it is given up."""

import logging
from collections.abc import Callable

import pytest

from sluice_api.call import Item
from sluice_api.errors import ApiError
from sluice_gateway.coalesce import Flights, Result
from sluice_gateway.priority import Priority

ITEM = Item(b"{}", 1)
ERROR = ApiError("upstream_failed", "The worker failed.")


class Waiter:
    """Joins a flight and writes down what it hears."""

    def __init__(self, flights: Flights, key: bytes = b"k") -> None:
        self.heard: list[Result] = []
        self.abandoned = 0
        self.leads, self.leave = flights.join(key, self.heard.append, self._abandon)

    def _abandon(self) -> None:
        self.abandoned += 1


def test_the_first_leads_and_all_hear_one_result_in_order() -> None:
    flights = Flights()
    order: list[int] = []

    def note(number: int) -> Callable[[Result], None]:
        return lambda _: order.append(number)

    for number in range(1000):
        leads, _ = flights.join(b"k", note(number), lambda: None)
        assert leads == (number == 0)
    flights.land(b"k", ITEM)
    assert order == list(range(1000))
    assert repr(flights) == "<Flights 0 under way, 0 waiting>"


class Asker:
    """Of some urgency."""

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.hurried: list[Priority] = []

    def hurry(self, priority: Priority) -> None:
        self.priority = priority
        self.hurried.append(priority)


def test_a_leader_is_hurried_by_those_who_are_more_urgent() -> None:
    flights = Flights()
    leader = Asker(Priority.LOW)
    for asker in (leader, *(Asker(Priority(each)) for each in (2, 1, 1, 2, 0, 1))):
        flights.join(b"k", print, lambda: None, asker)
    assert leader.hurried == [Priority.NORMAL, Priority.HIGH]


def test_different_keys_do_not_meet() -> None:
    flights = Flights()
    one, two = Waiter(flights, b"1"), Waiter(flights, b"2")
    assert one.leads and two.leads
    flights.land(b"1", ITEM)
    assert (one.heard, two.heard) == ([ITEM], [])


def test_a_failure_reaches_all_and_the_next_to_ask_leads_again() -> None:
    flights = Flights()
    waiters = [Waiter(flights) for _ in range(3)]
    flights.land(b"k", ERROR)
    assert [waiter.heard for waiter in waiters] == [[ERROR]] * 3
    assert Waiter(flights).leads


def test_a_leader_that_leaves_keeps_the_computation_for_the_others() -> None:
    flights = Flights()
    leader, follower = Waiter(flights), Waiter(flights)
    leader.leave()
    assert leader.abandoned == 0 and not Waiter(flights).leads
    flights.land(b"k", ITEM)
    assert leader.heard == [] and follower.heard == [ITEM]


def test_the_last_to_leave_ends_the_computation_through_the_leader() -> None:
    flights = Flights()
    leader, follower = Waiter(flights), Waiter(flights)
    leader.leave()
    leader.leave()
    follower.leave()
    assert (leader.abandoned, follower.abandoned) == (1, 0)
    assert len(flights) == 0
    flights.land(b"k", ITEM)  # The computation came to its end all the same.
    assert leader.heard == follower.heard == []


def test_leaving_after_the_result_or_after_a_new_flight_began_changes_nothing() -> None:
    flights = Flights()
    old = Waiter(flights)
    flights.land(b"k", ITEM)
    new = Waiter(flights)
    old.leave()
    flights.land(b"k", ITEM)
    assert old.abandoned == new.abandoned == 0
    assert new.heard == [ITEM]


def test_a_waiter_may_join_anew_from_inside_its_result() -> None:
    flights = Flights()
    again: list[Waiter] = []
    flights.join(b"k", lambda _: again.append(Waiter(flights)), lambda: None)
    flights.land(b"k", ITEM)
    assert again[0].leads and again[0].heard == []


def test_a_waiter_may_make_another_leave_from_inside_its_result() -> None:
    flights = Flights()
    others: list[Waiter] = []
    flights.join(b"k", lambda _: others[0].leave(), lambda: None)
    others.append(Waiter(flights))
    flights.land(b"k", ITEM)
    assert others[0].heard == []
    assert repr(flights) == "<Flights 0 under way, 0 waiting>"


def test_one_broken_waiter_does_not_silence_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Result) -> None:
        raise RuntimeError("broken")

    flights = Flights()
    flights.join(b"k", broken, lambda: None)
    waiter = Waiter(flights)
    with caplog.at_level(logging.ERROR):
        flights.land(b"k", ITEM)
    assert waiter.heard == [ITEM]
    assert [record.message for record in caplog.records] == ["a waiter failed on its result"]


def test_waiters_are_bounded_and_leaving_makes_room() -> None:
    flights = Flights(limit=2)
    first, _ = Waiter(flights), Waiter(flights, b"other")
    with pytest.raises(ApiError, match="Too many") as caught:
        Waiter(flights)
    assert caught.value.code == "overloaded" and caught.value.retry_after
    first.leave()
    assert Waiter(flights).leads
