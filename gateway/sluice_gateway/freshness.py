"""Whether a stored answer may be given: pure decisions over its age and what is allowed.

Times in seconds. Rules of the service: RFC 5861; words of the request: RFC 9111 §5.2.1. An answer
is bound to the weights that gave it, so a stale one is not wrong: it is only older than was meant.
"""

import math
from enum import Enum
from typing import Final

from sluice_api.wire import CacheRules
from sluice_gateway.head import Directives

EARLY: Final = 10.0
"""How many times the seconds it took to compute, before its end, an answer may be renewed; chance
would renew one earlier than that in 5 of 100 000 cases."""


class Use(Enum):
    """What an answer is good for."""

    FRESH = "fresh"
    STALE = "stale"
    """May be given now, and is renewed behind the caller's back."""
    ON_ERROR = "on_error"
    """May be given if a new one cannot be had."""
    NONE = "none"


def judge(age: float, ttl: float, rules: CacheRules, asked: Directives) -> Use:
    """What an answer is good for that was computed ``age`` ago and is fresh for ``ttl`` more."""
    young = asked.max_age is None or age <= asked.max_age
    if young and ttl > 0 and (asked.min_fresh is None or ttl >= asked.min_fresh):
        return Use.FRESH
    if young and asked.min_fresh is None and -ttl < _stale_allowed(rules, asked):
        return Use.STALE
    if -ttl < _stale_on_error(rules, asked):
        return Use.ON_ERROR
    return Use.NONE


def _stale_allowed(rules: CacheRules, asked: Directives) -> float:
    if asked.max_stale is not None:
        return asked.max_stale
    if asked.max_age is not None:
        return 0.0  # Who says how old it may be and nothing more wants it fresh.
    return rules.stale_while_revalidate_seconds


def _stale_on_error(rules: CacheRules, asked: Directives) -> float:
    if asked.stale_if_error is not None:
        return asked.stale_if_error
    if asked.max_age is not None or asked.min_fresh is not None:
        return -math.inf
    return rules.stale_if_error_seconds


def renew_early(ttl: float, seconds: float, chance: float) -> bool:
    """Whether this one reader of a fresh answer has it computed anew before its time.

    XFetch (Vattani et al., VLDB 2015): the more often an answer is asked for, the surer it is that
    one of its readers renews it in time, and hardly ever more than one.

    Args:
        seconds: what it took to compute.
        chance: drawn evenly from 0 to 1, for this reading alone.
    """
    if ttl >= seconds * EARLY:
        return False
    return -seconds * math.log(max(chance, 1e-12)) >= ttl
