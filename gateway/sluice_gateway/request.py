"""A request as an edge hands it in, and the answer that the edge gets for it.

``protocol`` and ``control.inference`` make a :class:`Request`, and are its :class:`Caller`;
``dispatch`` takes it. The gateway itself asks through an :class:`OwnCaller`.
"""

import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from sluice_api.errors import ApiError, render
from sluice_gateway.auth import Tenant
from sluice_gateway.cache_status import CACHE_STATUS
from sluice_gateway.head import Head
from sluice_gateway.upstream import EVENT_STREAM

JSON: Final = b"application/json"
STREAM_HEADERS: Final = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
"""Proxies on the way must neither keep a stream nor gather it."""

log = logging.getLogger(__name__)


class Answer(msgspec.Struct, eq=False):
    """What goes back. ``headers`` are whole lines, each with its CRLF, framing not included.

    Attributes:
        error: what the body says in words, where it tells of an error.
        fresh_for: told to the gateway itself alone: how many seconds longer the oldest of what came
            from the cache is fresh, negative where it is stale; None where nothing did.
    """

    status: int
    content_type: bytes
    headers: bytes
    body: bytes
    error: ApiError | None = None
    fresh_for: float | None = None

    def beside(self, lines: bytes) -> "Answer":
        """The same answer with more headers."""
        if not lines:
            return self
        return Answer(self.status, self.content_type, self.headers + lines, self.body)


class Caller(Protocol):
    """The edge's side of a request."""

    def answer(self, answer: Answer) -> None:
        """Called exactly once, perhaps before the request was handed over completely.

        Raises ApiError, nothing having been written, where the answer is none for this caller.
        """
        ...

    def begin(self, answer: Answer) -> bool:
        """Called instead of :meth:`answer` where the answer is a stream; the body is its beginning.

        Returns what :meth:`send` returns.
        """
        ...

    def send(self, data: bytes) -> bool:
        """More of the stream. False: no more now; ``Exchange.resume`` is called when there may."""
        ...

    def end(self) -> None:
        """The stream is complete."""
        ...

    def break_off(self, data: bytes) -> None:
        """The stream is not complete: send ``data``, and close so that it does not look so."""
        ...


class OwnCaller:
    """The gateway itself as a caller. A stream is answered when it has ended.

    Args:
        on_answer: told the one answer.
    """

    def __init__(self, on_answer: Callable[[Answer], None]) -> None:
        self.answer = on_answer
        self._begun: Answer | None = None

    def begin(self, answer: Answer) -> bool:
        self._begun = answer
        return True

    def send(self, data: bytes) -> bool:
        return True

    def end(self) -> None:
        assert self._begun is not None
        self.answer(self._begun)

    def break_off(self, data: bytes) -> None:
        self.answer(Answer(502, EVENT_STREAM, b"", data))


class Request(msgspec.Struct, eq=False):
    """A complete request for an inference route. ``received`` is on the monotonic clock.

    Attributes:
        background: the gateway's own; it is no demand and in no count of requests.
        tenant: who asks, once that is known.
        limit_lines: headers that tell a caller with limits what is left of them.
        counted: has the edge count the body for as long as this is referred to.
    """

    head: Head
    body: bytes
    caller: Caller
    id: bytes
    received: float
    background: bool = False
    tenant: Tenant | None = None
    limit_lines: bytes = b""
    counted: object = None


def give(request: Request, answer: Answer) -> int:
    """Answer ``request``: with an error where ``answer`` cannot be given. Returns the status."""
    caller = request.caller
    try:
        try:
            caller.answer(answer)
        except ApiError as error:
            answer = error_answer(error, request)
            caller.answer(answer)
        except Exception:
            log.exception("answer failed", extra={"request_id": request.id.decode()})
            answer = error_answer(bug(), request)
            caller.answer(answer)
    except Exception:  # It took some of an answer: it must not wait for the rest of it.
        log.exception("answer failed", extra={"request_id": request.id.decode()})
        caller.break_off(b"")
    return answer.status


def bug() -> ApiError:
    """What a caller is told of an exception that nobody foresaw."""
    return ApiError("internal_error", "The request could not be handled.")


def error_answer(error: ApiError, request: Request) -> Answer:
    """``error`` in the shape that callers of the request's path expect."""
    rendered = render(error, path=request.head.path, request_id=request.id.decode("latin-1"))
    content_type = JSON
    lines = []
    for name, value in rendered.headers:
        if name == "content-type":
            content_type = value.encode()
        else:
            lines.append(b"%b: %b\r\n" % (name.encode(), value.encode()))
    if error.code == "not_cached":
        lines.append(CACHE_STATUS + b"; detail=only-if-cached\r\n")
    # Where it was raised is of no more use, and has the request, which has who gets the answer.
    error.__traceback__ = error.__context__ = None
    return Answer(rendered.status, content_type, b"".join(lines), rendered.body, error)
