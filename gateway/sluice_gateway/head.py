"""The head of a request: parsed once, checked strictly, remembered.

A keep-alive client sends the same head again and again, so parsing is a pure function of its bytes
behind an LRU cache. llhttp (through httptools) judges the syntax and refuses every framing that two
parsers could read differently; what it leaves open is refused here. Used by both edges:
``protocol`` and the ordinary routes in ``control``.
"""

import math
import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote

import httptools

from sluice_api import names
from sluice_api.call import Codec
from sluice_api.errors import ApiError
from sluice_api.routes import POST_ROUTES, V2_PREFIX, V2_SUFFIX, V2_VERSIONS
from sluice_api.shapes import v2

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
MAX_DEADLINE_MS: Final = 24 * 3600 * 1000

V2_ROUTE: Final = V2_PREFIX + "{name}" + V2_SUFFIX

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"authorization"))


class Route(NamedTuple):
    """An inference route: its path as metrics name it, and its codec."""

    path: str
    codec: Codec


_ROUTES: Final = {path.encode(): Route(path, codec) for path, codec in POST_ROUTES.items()}
_V2: Final = Route(V2_ROUTE, v2.CODEC)


class Directives(NamedTuple):
    """``Cache-Control`` of a request (RFC 9111 §5.2.1, RFC 5861 §4). Times in seconds.

    Attributes:
        max_stale: infinite where the caller names no time.
    """

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: int | None = None
    max_stale: float | None = None
    min_fresh: int | None = None
    stale_if_error: int | None = None


PLAIN: Final = Directives()
_FOR_EVER: Final = 10**9


class Head(NamedTuple):
    """What a request says before its body.

    Attributes:
        route: None when the path or the method is not an inference route's.
        model: the name in the path, for routes that carry it there.
        content_length: 0 as well when the body is chunked.
        refusal: code and message of what is wrong with it beyond its framing.
        takes_chunks: an answer of unknown length may be framed in chunks; HTTP/1.0 knows none.
    """

    method: bytes
    path: str
    route: Route | None
    model: str | None
    content_length: int
    chunked: bool
    keep_alive: bool
    expect_continue: bool
    request_id: bytes | None
    traceparent: bytes | None
    authorization: bytes | None
    deadline_seconds: float | None
    directives: Directives
    refusal: tuple[str, str] | None
    takes_chunks: bool = True


class _Collector:
    """httptools' callbacks for one head."""

    __slots__ = ("complete", "headers", "keep_alive", "parser", "target")

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.complete = False
        self.keep_alive = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()  # llhttp forgets it after the message.


@lru_cache(maxsize=1024)
def parse_head(raw: bytes) -> Head:
    """Parse a head, its final empty line included.

    Raises ApiError ``bad_http`` or ``headers_too_large``; the connection must then be closed,
    because where the next request begins cannot be trusted.
    """
    collected = _Collector()
    parser = collected.parser
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # An offer to upgrade may be ignored; the request is answered as HTTP/1.1.
    except httptools.HttpParserError as error:
        raise ApiError("bad_http", f"{error}.") from None
    if raw[: raw.find(b"\r\n")].count(b" ") != 2:
        raise ApiError("bad_http", "The request line is not METHOD TARGET HTTP/1.1.")
    if not collected.complete:
        raise ApiError("bad_http", "The head ends where none may end.")
    if len(collected.headers) > MAX_HEADERS:
        raise ApiError(
            "headers_too_large", f"Got {len(collected.headers)} headers, at most {MAX_HEADERS}."
        )
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise ApiError("bad_http", f"HTTP/{version} is not spoken here.")
    headers = _joined(collected.headers)
    if version == "1.1" and b"host" not in headers:
        raise ApiError("bad_http", "The Host header is missing.")
    chunked = b"transfer-encoding" in headers
    if chunked and (version == "1.0" or headers[b"transfer-encoding"].lower() != b"chunked"):
        raise ApiError("bad_http", "Transfer-Encoding must be chunked, in HTTP/1.1 only.")
    return _head(collected, headers, chunked)


def _joined(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name; repeated ones joined (RFC 9110 §5.3), but for those that may not be."""
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name in headers:
            if name in _ONCE:
                raise ApiError("bad_http", f"The header {name.decode()} is given twice.")
            value = headers[name] + b", " + value
        headers[name] = value
    return headers


def _head(
    collected: _Collector,
    headers: dict[bytes, bytes],
    chunked: bool,
) -> Head:
    method = collected.parser.get_method()
    path, route, model = _route(method, collected.target)
    request_id = headers.get(names.REQUEST_ID.encode())
    if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
        request_id = None
    traceparent = headers.get(b"traceparent")
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = None
    refusal = None
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        refusal = ("unsupported_media_type", f"Got Content-Encoding {encoding.decode('latin-1')}.")
    deadline, problem = _deadline(headers.get(names.DEADLINE_MS.encode()))
    return Head(
        method=method,
        path=path,
        route=route,
        model=model,
        content_length=int(headers.get(b"content-length", b"0")),
        chunked=chunked,
        keep_alive=collected.keep_alive,
        expect_continue=headers.get(b"expect", b"").lower() == b"100-continue",
        request_id=request_id,
        traceparent=traceparent,
        authorization=headers.get(b"authorization"),
        deadline_seconds=deadline,
        directives=_directives(headers.get(b"cache-control")),
        refusal=refusal or problem,
        takes_chunks=collected.parser.get_http_version() == "1.1",
    )


def _route(method: bytes, target: bytes) -> tuple[str, Route | None, str | None]:
    raw = target.split(b"?", 1)[0]
    path = raw.decode("latin-1")
    if method != b"POST":
        return path, None, None
    route = _ROUTES.get(raw)
    if route is not None:
        return path, route, None
    if path.startswith(V2_PREFIX) and path.endswith(V2_SUFFIX):
        model = unquote(path[len(V2_PREFIX) : -len(V2_SUFFIX)])
        if model and V2_VERSIONS not in path:  # Rare; the ordinary routes know versions.
            return path, _V2, model
    return path, None, None


def _deadline(value: bytes | None) -> tuple[float | None, tuple[str, str] | None]:
    if value is None:
        return None, None
    if not value.isdigit() or not 0 < int(value[:12]) <= MAX_DEADLINE_MS:
        shown = value[:40].decode("latin-1")
        return None, (
            "invalid_field",
            f"{names.DEADLINE_MS}: got {shown!r}, needs milliseconds from 1 to {MAX_DEADLINE_MS}.",
        )
    return int(value) / 1000, None


def _directives(value: bytes | None) -> Directives:
    """Unknown directives are ignored, as RFC 9111 asks."""
    if value is None:
        return PLAIN
    found = PLAIN
    for part in value.lower().split(b","):
        name, _, argument = part.strip().partition(b"=")
        if name == b"no-store":
            found = found._replace(no_store=True)
        elif name == b"no-cache":
            found = found._replace(no_cache=True)
        elif name == b"only-if-cached":
            found = found._replace(only_if_cached=True)
        elif name == b"max-age":
            found = found._replace(max_age=_seconds(argument, 0))
        elif name == b"max-stale":
            found = found._replace(max_stale=_seconds(argument, 0) if argument else math.inf)
        elif name == b"min-fresh":
            found = found._replace(min_fresh=_seconds(argument, _FOR_EVER))
        elif name == b"stale-if-error":
            found = found._replace(stale_if_error=_seconds(argument, 0))
    return found


def _seconds(argument: bytes, otherwise: int) -> int:
    """A time; what cannot be read is ``otherwise``, by which no answer is staler than was meant."""
    argument = argument.strip(b'"')
    return int(argument) if argument.isdigit() and len(argument) < 10 else otherwise
