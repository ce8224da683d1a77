"""A worker's answer as ``upstream`` reads it: what its head says, and its body.

Whoever asked a worker (``forward``, ``hedging``, ``probing``) is handed an :class:`UpstreamAnswer`.
"""

from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Final

from sluice_api import names
from sluice_api.wire import parse_capacity


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a worker writes the names of the headers that are read here."""

    answer_digest: bytes = names.ANSWER_DIGEST.encode()
    capacity: bytes = names.CAPACITY.encode()
    content_length: bytes = b"content-length"
    content_type: bytes = b"content-type"
    request_id: bytes = names.REQUEST_ID.encode()
    retry_after: bytes = b"retry-after"
    retry_after_ms: bytes = names.RETRY_AFTER_MS.encode()
    service_time: bytes = names.SERVICE_TIME.encode()
    transfer_encoding: bytes = b"transfer-encoding"


_LOWER_CASE: Final = Spelling()


@lru_cache(maxsize=64)
def spelling_of(given: tuple[bytes, ...]) -> Spelling:
    """Of a head with the names ``given``: a worker has the same in each of its answers."""
    written = {name.lower(): name for name in given}
    return Spelling(*(written.get(name, name) for name in astuple(_LOWER_CASE)))


class UpstreamAnswer:
    """A worker's answer. Header values a worker may leave out are None.

    Args:
        headers: by their names, as ``spelling`` has them.
    """

    __slots__ = ("body", "digest", "limit", "retry_after", "service", "status")

    def __init__(
        self,
        status: int,
        headers: dict[bytes, bytes],
        body: bytes,
        spelling: Spelling = _LOWER_CASE,
    ) -> None:
        self.status = status
        self.body = body
        self.digest = headers.get(spelling.answer_digest, b"").decode("latin-1")
        self.limit = _limit(headers.get(spelling.capacity, b""))
        self.service = _seconds(headers.get(spelling.service_time), 1.0)
        self.retry_after: float | None = None
        if status != 200:
            self.retry_after = _seconds(headers.get(spelling.retry_after_ms), 0.001) or _seconds(
                headers.get(spelling.retry_after), 1.0
            )

    def __repr__(self) -> str:
        return f"<UpstreamAnswer {self.status} {len(self.body)} bytes>"


@lru_cache(maxsize=1024)
def _limit(capacity: bytes) -> int | None:
    """How many requests the worker wants at most, from its capacity header."""
    parsed = parse_capacity(capacity.decode("latin-1"))
    return parsed.limit if parsed is not None else None


def _seconds(value: bytes | None, unit: float) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value) * unit
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86400 else None
