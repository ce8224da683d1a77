"""When a stored answer may be given: by its age, by the service's rules, by the caller's words."""

import math
import random

import pytest

from sluice_api.wire import CacheRules
from sluice_gateway.freshness import EARLY, Use, judge, renew_early
from sluice_gateway.head import PLAIN, Directives

RULES = CacheRules(ttl_seconds=100, stale_while_revalidate_seconds=20, stale_if_error_seconds=50)


@pytest.mark.parametrize(
    ("ttl", "expected"),
    [
        (100, Use.FRESH),
        (0.001, Use.FRESH),
        (0, Use.STALE),
        (-19.9, Use.STALE),
        (-20, Use.ON_ERROR),
        (-49.9, Use.ON_ERROR),
        (-50, Use.NONE),
    ],
)
def test_by_the_rules_alone(ttl: float, expected: Use) -> None:
    assert judge(100 - ttl, ttl, RULES, PLAIN) is expected


@pytest.mark.parametrize(
    ("asked", "ttl", "expected"),
    [
        (Directives(max_age=30), 75, Use.FRESH),
        (Directives(max_age=30), 65, Use.NONE),
        (Directives(max_age=200), -1, Use.NONE),
        (Directives(max_age=200, max_stale=5), -1, Use.STALE),
        (Directives(max_age=30, max_stale=5), 65, Use.NONE),
        (Directives(max_stale=5), -4, Use.STALE),
        (Directives(max_stale=5), -6, Use.ON_ERROR),
        (Directives(max_stale=40), -39, Use.STALE),
        (Directives(max_stale=math.inf), -49, Use.STALE),
        (Directives(max_stale=0), -1, Use.ON_ERROR),
        (Directives(min_fresh=10), 10, Use.FRESH),
        (Directives(min_fresh=10), 9, Use.NONE),
        (Directives(min_fresh=10), -1, Use.NONE),
        (Directives(stale_if_error=30), -25, Use.ON_ERROR),
        (Directives(stale_if_error=30), -31, Use.NONE),
        (Directives(stale_if_error=0), -25, Use.NONE),
        (Directives(max_age=30, stale_if_error=0), 65, Use.ON_ERROR),
        (Directives(min_fresh=10, stale_if_error=30), 9, Use.ON_ERROR),
    ],
)
def test_by_what_the_caller_asks(asked: Directives, ttl: float, expected: Use) -> None:
    assert judge(100 - ttl, ttl, RULES, asked) is expected


def test_without_stale_times_nothing_stale_is_given() -> None:
    strict = CacheRules(stale_while_revalidate_seconds=0, stale_if_error_seconds=0)
    assert judge(100, 0, strict, PLAIN) is Use.NONE


def test_nobody_renews_what_has_long_to_go_or_cost_nothing() -> None:
    assert not renew_early(EARLY * 2, 2.0, 0.0)
    assert not renew_early(0.001, 0.0, 0.0)
    assert not renew_early(5, 1.0, 1.0)


def test_the_nearer_the_end_the_likelier_one_reader_renews() -> None:
    rng = random.Random(0)

    def share(ttl: float) -> float:
        return sum(renew_early(ttl, 1.0, rng.random()) for _ in range(20_000)) / 20_000

    for ttl in (4.0, 2.0, 1.0, 0.1):
        assert share(ttl) == pytest.approx(math.exp(-ttl), abs=0.02)
