"""The most that a service may be told to keep, hold or wait for.

Said once: the resource (``inference_service``) and the gateway's table of services (``wire``) both
allow so much, whoever wrote the table. What is the least is each one's own.
"""

from typing import Final

MAX_WAITING: Final = 100_000
"""Requests that wait in one gateway."""
MAX_PRECOMPUTED: Final = 64
MAX_TENANTS: Final = 256

LONGEST_KEPT: Final = "720h"
"""Of an answer: while it is fresh, and again while it is stale."""
LONGEST_WAIT: Final = "1h"
LONGEST_STREAM: Final = "24h"
LONGEST_HEDGE: Final = "1m"
