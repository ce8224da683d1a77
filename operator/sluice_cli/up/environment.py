"""What a child's environment holds: all of ours but ``SLUICE_…``, and what its plan gives it.

``sluice up`` and its children read variables with one prefix, and one meant for us must not change
them. What passes on is listed here and in ``docs/local-mode.md``. Used when a child is started.
"""

from collections.abc import Iterable, Mapping

from sluice_api import names

_PREFIX = "SLUICE_"
WORKER_KNOBS = (names.ENV_LOG, names.ENV_WORKER_MAX_BODY, names.ENV_WORKER_TIMEOUT)
GATEWAY_KNOBS = (
    "SLUICE_GATEWAY_ACCESS_LOG",
    "SLUICE_GATEWAY_BODY_TIMEOUT",
    "SLUICE_GATEWAY_CACHE_MIB",
    "SLUICE_GATEWAY_CACHE_UNHEARD_FOR",
    "SLUICE_GATEWAY_CONNECT_TIMEOUT",
    "SLUICE_GATEWAY_CORS_CREDENTIALS",
    "SLUICE_GATEWAY_CORS_ORIGINS",
    "SLUICE_GATEWAY_HEAD_TIMEOUT",
    "SLUICE_GATEWAY_IDEMPOTENCY_MIB",
    "SLUICE_GATEWAY_IDEMPOTENCY_TTL",
    "SLUICE_GATEWAY_KEEP_ALIVE",
    "SLUICE_GATEWAY_LIMIT_INPUTS",
    "SLUICE_GATEWAY_LIMIT_REQUESTS",
    "SLUICE_GATEWAY_LIMIT_TOKENS",
    "SLUICE_GATEWAY_LOG_LEVEL",
    "SLUICE_GATEWAY_MAX_BODY_MIB",
    "SLUICE_GATEWAY_MAX_CONNECTIONS",
    "SLUICE_GATEWAY_MAX_RECEIVING_MIB",
    "SLUICE_GATEWAY_PROCESSES",
    "SLUICE_GATEWAY_REDIS_TIMEOUT",
    "SLUICE_GATEWAY_SLOW_START",
    "SLUICE_GATEWAY_WRITE_TIMEOUT",
)


def environment_of(
    planned: Mapping[str, str], knobs: Iterable[str], ours: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a child: ``planned`` wins over what it takes from ``ours``."""
    passed = {knob: ours[knob] for knob in knobs if knob in ours}
    foreign = {name: value for name, value in ours.items() if not name.startswith(_PREFIX)}
    return {**foreign, **passed, **planned}
