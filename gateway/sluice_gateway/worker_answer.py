"""A worker's answer as ``upstream`` reads it: what its head says, and its body.

The parser reads a head once; the next ones of the same form are compared with it.
Whoever asked a worker (``forward``, ``hedging``, ``probing``) is handed an :class:`UpstreamAnswer`.
"""

import re
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Final

import msgspec

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


class UpstreamAnswer(msgspec.Struct, eq=False):
    """A worker's answer. What a worker may leave out of its head is None, or empty.

    Attributes:
        digest: of what it has loaded.
        limit: how many requests it wants at most.
        service: seconds that it computed.
        retry_after: seconds after which to ask again.
    """

    status: int
    body: bytes
    digest: str = ""
    limit: int | None = None
    service: float | None = None
    retry_after: float | None = None

    def __repr__(self) -> str:
        return f"<UpstreamAnswer {self.status} {len(self.body)} bytes>"


def read_answer(
    status: int, headers: dict[bytes, bytes], body: bytes, spelling: Spelling = _LOWER_CASE
) -> UpstreamAnswer:
    """The answer with ``headers``, which are by their names as ``spelling`` has them."""
    retry_after = None
    if status != 200:
        retry_after = _seconds(headers.get(spelling.retry_after_ms), 0.001) or _seconds(
            headers.get(spelling.retry_after), 1.0
        )
    return UpstreamAnswer(
        status,
        body,
        headers.get(spelling.answer_digest, b"").decode("latin-1"),
        _limit(headers.get(spelling.capacity, b"")),
        _seconds(headers.get(spelling.service_time), 1.0),
        retry_after,
    )


class AnswerForm:
    """How a worker's good answers begin: each like the last, but for the values of a few lines.

    Learnt from the head of one that the parser has read; see :func:`form_of`. An answer that is
    here in one piece and has the same form need not be parsed again.
    """

    __slots__ = (
        "_digest",
        "_head",
        "_length",
        "_limit",
        "_match",
        "_places",
        "_request_id",
        "_service",
        "_values",
    )

    def __init__(self, pattern: re.Pattern[bytes], head: bytes, digest: str) -> None:
        self._match = pattern.match
        self._places = pattern.groupindex
        self._digest = digest
        self._length = 0
        self._limit: int | None = None
        self._request_id: bytes | None = None
        self._service: float | None = None
        self._head = b""
        self._values: tuple[bytes, ...] = (b"",) * pattern.groups
        self._note(head)

    def __repr__(self) -> str:
        return f"<AnswerForm {self._head!r}>"

    def read(self, data: bytes, expected_id: bytes) -> UpstreamAnswer | None:
        """The answer to ``expected_id`` that ``data`` is; None where it may be anything else."""
        if data[: len(self._head)] != self._head and not self._note(data):
            return None
        body = data[len(self._head) :]
        given = self._request_id
        if len(body) != self._length or (given != expected_id and given is not None):
            return None
        return UpstreamAnswer(200, body, self._digest, self._limit, self._service)

    def _note(self, data: bytes) -> bool:
        """Go by the head of ``data`` from now on, if it has this form."""
        found = self._match(data)
        if found is None:
            return False
        before, values = self._values, found.groups()
        for name, place in self._places.items():
            value = values[place - 1]
            if value != before[place - 1]:
                if name == "id":
                    self._request_id = value
                elif name == "service":
                    self._service = _seconds(value, 1.0)
                elif name == "limit":
                    self._limit = int(value)
                else:
                    self._length = int(value)
        self._head, self._values = data[: found.end()], values
        return True


_CHANGING: Final = {
    b"content-length": rb"(?P<length>[0-9]{1,15})",
    b"date": rb"[ -~]{1,40}",
    _LOWER_CASE.request_id: rb"(?P<id>[!-~]{1,255})",
    _LOWER_CASE.service_time: rb"(?P<service>[0-9.]{1,20})",
    # Of what it tells, the limit alone is of use here; the rest is another in each answer.
    _LOWER_CASE.capacity: rb"(?P<limit>[1-9][0-9]{0,8});[0-9]{1,9};[0-9]{1,9}(?:\.[0-9]{1,9})?",
}
"""The lines that differ from answer to answer, each with what its value must look like then."""
_CHANGING_LINE: Final = re.compile(
    rb"\r\n(%b): ([^\r\n]+)(?=\r\n[^ \t])" % b"|".join(_CHANGING), re.IGNORECASE
)


def form_of(data: bytes, digest: str) -> AnswerForm | None:
    """The form of a whole answer that was read, kept the connection and was no stream.

    None where other answers could not be read by it without a parser: another status than 200, a
    body without a length, a line twice.
    """
    head = data[: data.find(b"\r\n\r\n") + 4]
    names, pattern, position = [], b"", 0
    for line in _CHANGING_LINE.finditer(head):
        names.append(line[1].lower())
        pattern += re.escape(head[position : line.start(2)]) + _CHANGING[names[-1]]
        position = line.end(2)
    once = len(names) == len(set(names)) and b"content-length" in names
    if not once or not head.startswith(b"HTTP/1.1 200 "):
        return None
    compiled = re.compile(pattern + re.escape(head[position:]))
    return AnswerForm(compiled, head, digest) if compiled.fullmatch(head) else None


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
