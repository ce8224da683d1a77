"""The head of a request: what it says, parsed and checked strictly.

Parsing is a pure function of its bytes, so that ``known_heads`` may remember what was read. llhttp
(through httptools) judges the syntax and refuses every framing that two parsers could read
differently; what it leaves open is refused here. Used by both edges: ``protocol`` and ``fallback``.
"""

import math
import re
from typing import Final, NamedTuple
from urllib.parse import unquote

import httptools
import msgspec
from msgspec.structs import replace

from sluice_api import names, request_ids
from sluice_api.call import Codec
from sluice_api.errors import ApiError
from sluice_api.routes import POST_ROUTES, V2_PREFIX, V2_SUFFIX, V2_VERSIONS
from sluice_api.shapes import v2
from sluice_gateway.priority import WORDS, Priority

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
_TLS: Final = b"\x16"
"""What a client's first record begins with, and no request."""
MAX_EMPTY_LINES: Final = 2
"""Before a request; RFC 9112 §2.2 has at least one ignored."""
MAX_DEADLINE_MS: Final = 24 * 3600 * 1000
MAX_LENGTH_DIGITS: Final = 20
"""llhttp bounds the number, not the zeros before it."""

V2_ROUTE: Final = V2_PREFIX + "{name}" + V2_SUFFIX

REQUEST_ID: Final = names.REQUEST_ID.encode()
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_ONCE = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"content-type",
        b"idempotency-key",
        b"inference-header-content-length",
    )
)
_HOST = re.compile(rb"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)
_VISIBLE = re.compile(rb"[\x21-\x7e]{1,255}")
_JSON = re.compile(
    rb"application/(?:[a-z0-9.+-]+\+)?json(?P<parameters>(?:[ \t]*;[^;]*)*)", re.IGNORECASE
)
_CHARSET = re.compile(rb';[ \t]*charset[ \t]*=[ \t]*"?([^";]*)', re.IGNORECASE)
_UTF8 = frozenset((b"utf-8", b"utf8", b"us-ascii", b"ascii"))


class Route(NamedTuple):
    """An inference route: its path as metrics name it, and its codec."""

    path: str
    codec: Codec


_ROUTES: Final = {path.encode(): Route(path, codec) for path, codec in POST_ROUTES.items()}
_V2: Final = Route(V2_ROUTE, v2.CODEC)
_BINARY: Final = names.INFERENCE_JSON_BYTES.encode()


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


class Refusal(NamedTuple):
    """Why a request is refused for its head alone.

    Attributes:
        header: the one at fault.
    """

    code: str
    message: str
    header: str


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says before its body.

    Attributes:
        target: what is asked for, from its path on.
        route: None when the path or the method is not an inference route's.
        model: the name in the path, for routes that carry it there.
        content_length: 0 as well when the body is chunked.
        keep_alive: another request may follow; never in HTTP/1.0, where both sides have to say so.
        expect_continue: the client may hold its body back until it is told to send it, or not to.
        refusal: code, message and header of what is wrong with it beyond its framing.
        priority: what it asks for; its tenant may be allowed less.
        takes_chunks: an answer of unknown length may be framed in chunks; HTTP/1.0 knows none.
        origin: the page that a browser sends this for.
        idempotency_key: equal requests with the same key are one request.
        json_bytes: how much of the body is JSON, where tensors follow it as bytes.
    """

    method: bytes
    target: bytes
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
    refusal: Refusal | None
    takes_chunks: bool = True
    origin: bytes | None = None
    idempotency_key: bytes | None = None
    json_bytes: int | None = None
    priority: Priority = Priority.NORMAL

    def refused(self) -> ApiError:
        """What :attr:`refusal` says, for who asked."""
        assert self.refusal is not None
        return ApiError(self.refusal.code, self.refusal.message, param=self.refusal.header)


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


def find_end(data: bytes, searched: int) -> int:
    """Where the head at the beginning of ``data`` ends, or 0 where more of it must come.

    Args:
        searched: so many of its bytes have been here before, without an end; a head that comes in
            small pieces is not searched anew with each.

    Raises:
        ApiError: ``headers_too_large``, or ``bad_http`` for lines that end without CR.
    """
    found = data.find(b"\r\n\r\n", searched - 3 if searched > 3 else 0)
    end = found + 4 if found >= 0 else 0
    if (end or len(data)) > MAX_HEAD_BYTES:
        raise ApiError("headers_too_large", f"The head has more than {MAX_HEAD_BYTES} bytes.")
    if end:
        return end
    if data[:1] == _TLS:
        raise ApiError("bad_http", "This port speaks HTTP without TLS; its address is http://.")
    if data.find(b"\n\n", max(searched - 1, 0)) >= 0:
        raise ApiError("bad_http", "Lines must end with CRLF.")
    return 0


def count_empty_line(before: int) -> int:
    """One more empty line before a request, behind ``before``. Raises ApiError ``bad_http``."""
    if before >= MAX_EMPTY_LINES:
        raise ApiError("bad_http", f"More than {MAX_EMPTY_LINES} empty lines before a request.")
    return before + 1


def parse_head(raw: bytes) -> Head:
    """Parse a head, its final empty line included.

    Raises ApiError ``bad_http``, ``headers_too_large`` or ``method_not_allowed``; the connection
    must then be closed, because where the next request begins cannot be trusted.
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
    if not _HOST.fullmatch(headers.get(b"host", b"")):
        raise ApiError("bad_http", "The Host header is not the name of a host.")
    chunked = b"transfer-encoding" in headers
    if chunked and (version == "1.0" or headers[b"transfer-encoding"].lower() != b"chunked"):
        raise ApiError("bad_http", "Transfer-Encoding must be chunked, in HTTP/1.1 only.")
    if len(headers.get(b"content-length", b"")) > MAX_LENGTH_DIGITS:
        raise ApiError("bad_http", f"Content-Length has more than {MAX_LENGTH_DIGITS} digits.")
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
    target = _target(method, collected.target, headers.get(b"host"))
    path, route, model = _route(method, target)
    new = collected.parser.get_http_version() == "1.1"
    # RFC 9110 §10.1.1: HTTP/1.0 knows no expectations.
    expect = headers.get(b"expect", b"").lower() if new else b""
    deadline, problem = _deadline(headers.get(names.DEADLINE_MS.encode()))
    priority, unknown = _priority(headers.get(names.PRIORITY.encode()))
    return Head(
        method=method,
        target=target,
        path=path,
        route=route,
        model=model,
        content_length=int(headers.get(b"content-length", b"0")),
        chunked=chunked,
        keep_alive=collected.keep_alive and new,
        expect_continue=expect != b"",
        request_id=request_id(headers.get(REQUEST_ID)),
        traceparent=traceparent(headers.get(b"traceparent")),
        authorization=headers.get(b"authorization"),
        deadline_seconds=deadline,
        directives=_directives(headers.get(b"cache-control")),
        refusal=_unmet(expect)
        or _medium(headers, path)
        or problem
        or unknown
        or _unfit_key(headers),
        takes_chunks=new,
        origin=headers.get(b"origin"),
        idempotency_key=headers.get(names.IDEMPOTENCY_KEY.encode()),
        json_bytes=_json_bytes(headers),
        priority=priority,
    )


def request_id(given: bytes | None) -> bytes | None:
    """What is ``given`` as the id, where it may be one."""
    return given if given is not None and request_ids.harmless(given) else None


def traceparent(given: bytes | None) -> bytes | None:
    """What is ``given`` as the trace context, where it may be one."""
    return given if given is not None and _TRACEPARENT.fullmatch(given) else None


def _target(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """What is asked for, from its path on (RFC 9112 §3.2). Raises ApiError."""
    if method == b"CONNECT":
        raise ApiError("method_not_allowed", "This is no proxy: CONNECT is not served.")
    if absolute := _ABSOLUTE.fullmatch(target):
        authority, rest = absolute.groups()
        if host is not None and authority.lower() != host.lower():
            raise ApiError("bad_http", "The request line and the Host header name two hosts.")
        target = rest if rest.startswith(b"/") else b"/" + rest
    if not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*"):
        raise ApiError("bad_http", "The request line names no path.")
    if not target.isascii() or b"#" in target:
        raise ApiError("bad_http", "The path must be ASCII, without a fragment.")
    return target


def routed(head: Head, path: str) -> Head:
    """``head`` for the inference route at ``path``, whose escapes are resolved.

    Raises ApiError ``route_not_found``.
    """
    route = _ROUTES.get(path.encode())
    model = None
    if route is None and path.startswith(V2_PREFIX) and path.endswith(V2_SUFFIX):
        route, model = _V2, path[len(V2_PREFIX) : -len(V2_SUFFIX)]
    if route is None:
        raise ApiError("route_not_found", f"There is nothing at {path}.")
    return replace(head, path=path, route=route, model=model)


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


def _unmet(expect: bytes) -> Refusal | None:
    if expect in (b"", b"100-continue"):
        return None
    message = f"Got Expect: {_quoted(expect)}, which is not known here."
    return Refusal("expectation_failed", message, "Expect")


def _medium(headers: dict[bytes, bytes], path: str) -> Refusal | None:
    """What is wrong with the form of the body, if anything is.

    A body that does not say what it is, is taken for JSON. One that says it is something else must
    not be: pages of any site may post texts and forms without asking, but not JSON.
    """
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        message = f"Got Content-Encoding {_quoted(encoding)}."
        return Refusal("unsupported_media_type", message, "Content-Encoding")
    kind = headers.get(b"content-type", b"")
    # Tensors may follow the JSON as bytes, on V2's routes alone.
    if not kind or (path.startswith(V2_PREFIX) and b"octet-stream" in kind and _BINARY in headers):
        return None
    match = _JSON.fullmatch(kind)
    if match is None:
        message = f"Got Content-Type {_quoted(kind)}."
        return Refusal("unsupported_media_type", message, "Content-Type")
    charset = _CHARSET.search(match["parameters"])
    if charset is not None and charset[1].strip().lower() not in _UTF8:
        message = f"Got the charset {_quoted(charset[1])}; JSON is UTF-8."
        return Refusal("unsupported_media_type", message, "Content-Type")
    return None


def _unfit_key(headers: dict[bytes, bytes]) -> Refusal | None:
    key = headers.get(names.IDEMPOTENCY_KEY.encode())
    if key is not None and not _VISIBLE.fullmatch(key):
        return _unfit("Idempotency-Key", key, "allowed 1 to 255 visible ASCII characters")
    if _BINARY in headers and _json_bytes(headers) is None:
        allowed = "allowed how many bytes of the body are JSON"
        return _unfit("Inference-Header-Content-Length", headers[_BINARY], allowed)
    return None


def _unfit(header: str, value: bytes, allowed: str) -> Refusal:
    return Refusal("invalid_field", f"{header}: got {_quoted(value)}, {allowed}.", header)


def _json_bytes(headers: dict[bytes, bytes]) -> int | None:
    value = headers.get(_BINARY)
    return int(value) if value is not None and value.isdigit() and len(value) < 12 else None


def _quoted(value: bytes) -> str:
    return repr(value[:80].decode("latin-1"))


def _deadline(value: bytes | None) -> tuple[float | None, Refusal | None]:
    if value is None:
        return None, None
    if len(value) > 12 or not value.isdigit() or not 0 < int(value) <= MAX_DEADLINE_MS:
        needed = f"needs milliseconds from 1 to {MAX_DEADLINE_MS}"
        return None, _unfit(names.DEADLINE_MS, value, needed)
    return int(value) / 1000, None


def _priority(value: bytes | None) -> tuple[Priority, Refusal | None]:
    if value is None:
        return Priority.NORMAL, None
    word = value.decode("latin-1")
    priority = WORDS.get(word.lower())
    if priority is None:
        return Priority.NORMAL, _unfit(names.PRIORITY, value, f"needs one of {', '.join(WORDS)}")
    return priority, None


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
