"""One HTTP exchange as the worker sees it: the head of a request, its body, a response.

Between raw ASGI (``app``) and the routes, so that neither knows the other's shapes.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from sluice_api import names, request_ids
from sluice_api.errors import ApiError, render

T = TypeVar("T")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_DEADLINE_SECONDS = 3600.0
BODY_SECONDS = 30.0
"""How long the body of a request may take to arrive."""
LINGER_SECONDS = 1.0
"""How long a client that is refused may go on sending before its connection is closed."""


class ClientGone(Exception):
    """The client closed the connection; nobody is left to answer."""


class Broken(Exception):
    """A streamed answer ends here, before its end: the caller was told in the stream."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer depends on beside its call.

    Attributes:
        model: the name the answer carries.
        deadline: when the caller stops waiting, in monotonic seconds.
        tenant: who shares computed beginnings with whom; empty where the gateway did not say.
        wants_item: a stream is to carry what the gateway keeps.
    """

    model: str
    deadline: float
    request_id: str = ""
    tenant: bytes = b""
    wants_item: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's body, and the seconds of the whole worker it took."""

    body: bytes
    service_seconds: float


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body."""

    method: str
    path: str
    request_id: str
    headers: dict[bytes, bytes]
    received: float
    """Monotonic seconds."""


@dataclass(slots=True)
class Response:
    """An answer ready to be sent."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = field(
        default_factory=lambda: [("content-type", "application/json")]
    )
    service_seconds: float = 0.0
    parts: AsyncGenerator[bytes, None] | None = None
    """What follows ``body`` bit by bit; None for an answer that is complete."""


def json_response(status: int, value: Any) -> Response:
    return Response(status, msgspec.json.encode(value))


def head_of(scope: Message, now: float) -> Head:
    """The head of an ASGI request; of repeated headers the last counts."""
    headers = dict(scope["headers"])
    request_id = request_ids.accept(headers.get(names.REQUEST_ID.encode()))
    return Head(scope["method"], scope["path"], request_id, headers, now)


def refusal(error: ApiError, head: Head) -> Response:
    """The answer that tells the caller of ``error``."""
    rendered = render(error, path=head.path, request_id=head.request_id, with_fix=True)
    return Response(rendered.status, rendered.body, rendered.headers)


def deadline_of(head: Head, default_seconds: float) -> float:
    """When the caller stops waiting, in monotonic seconds."""
    text = head.headers.get(names.DEADLINE_MS.encode())
    if text is None:
        return head.received + default_seconds
    if not text.isdigit() or len(text) > 15:
        raise ApiError(
            "invalid_field",
            f"{names.DEADLINE_MS}: got {text.decode('latin-1')[:40]!r}, "
            "needs a whole number of milliseconds.",
            param=names.DEADLINE_MS,
        )
    return head.received + min(int(text) / 1000, MAX_DEADLINE_SECONDS)


async def read_body(head: Head, receive: Receive, limit_bytes: int) -> bytes:
    """The whole body. Counts bytes as they come, whatever the headers promised.

    Raises ApiError (``body_too_large``, ``unsupported_media_type``, ``request_timeout``) and
    :class:`ClientGone`.
    """
    encoding = head.headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        raise ApiError(
            "unsupported_media_type",
            f"Content-Encoding: got {encoding.decode('latin-1')[:40]!r}.",
        )
    promised = head.headers.get(b"content-length", b"")
    if promised.isdigit() and int(promised[:18]) > limit_bytes:
        raise _too_large(limit_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise ApiError(
            "request_timeout", f"The body did not arrive within {BODY_SECONDS:.0f} s."
        ) from None


async def linger(receive: Receive) -> None:
    """Take what a client that has its answer is still sending, and forget it.

    A connection that is closed with unread bytes is reset, and the answer may be lost with it.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass


async def attend(work: Coroutine[Any, Any, T], receive: Receive, *, seconds: float) -> T:
    """The result of ``work``, unless the caller leaves or ``seconds`` pass: then it is cancelled.

    Raises ClientGone, and ApiError ``deadline_exceeded``, beside whatever ``work`` raises.
    """
    working = asyncio.create_task(work, name="answer")
    leaving = asyncio.create_task(_until_left(receive), name="disconnect")
    try:
        await asyncio.wait(
            {working, leaving}, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED
        )
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientGone
        raise ApiError("deadline_exceeded", "The deadline passed while the request waited.")
    finally:
        leaving.cancel()
        working.cancel()


async def relay(parts: AsyncGenerator[bytes, None], receive: Receive, send: Send) -> None:
    """Send ``parts`` as they come; when the caller leaves, they are closed at once.

    Raises ClientGone, beside whatever ``parts`` raise.
    """
    leaving = asyncio.create_task(_until_left(receive), name="disconnect")
    try:
        while True:
            coming = asyncio.ensure_future(anext(parts, b""))
            await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                coming.cancel()
                await asyncio.wait({coming})
                raise ClientGone
            part = coming.result()
            await send({"type": "http.response.body", "body": part, "more_body": bool(part)})
            if not part:
                return
    finally:
        leaving.cancel()
        await parts.aclose()


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError("body_too_large", f"The body may have at most {limit_bytes} bytes.")
