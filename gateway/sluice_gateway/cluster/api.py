"""Calls to the Kubernetes API server, as the pod's own ServiceAccount.

The one module of the gateway that speaks to it: a connection for each call, over asyncio's
streams, read by httptools (``docs/decisions`` says why no HTTP client). ``watch`` lists and watches
through it, ``readers`` has tokens reviewed.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import httptools

CALL_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 3.0
TOKEN_SECONDS: Final = 60.0
"""The kubelet writes a new token long before the old one ends; it is read again this often."""
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
READ_BYTES: Final = 256 * 1024
_MAX_TOLD: Final = 300


class Unreachable(Exception):
    """The API server gave no usable answer; the text says why."""


class Refused(Exception):
    """The API server answered with an error.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class ApiServer:
    """One API server.

    Args:
        host: name or address, IPv6 without brackets.
        folder: holds ``ca.crt`` and ``token``, as the kubelet mounts them.
    """

    def __init__(self, host: str, port: int, folder: Path) -> None:
        self._host = host
        self._port = port
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._folder = folder
        self._tls: ssl.SSLContext | None = None
        self._token = ""
        self._token_read_at = float("-inf")

    def __repr__(self) -> str:
        return f"<ApiServer https://{self._authority}>"

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """The body of a GET. Raises :class:`Unreachable` or :class:`Refused`."""
        return await self._call("GET", f"{path}?{urlencode(query)}", b"")

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of the answer to ``body``, JSON. Raises as :meth:`get` does."""
        return await self._call("POST", path, body)

    async def lines(
        self, path: str, query: Mapping[str, str], silence: float
    ) -> AsyncGenerator[bytes]:
        """The lines of a watch, the first one empty as soon as it is accepted.

        Args:
            silence: seconds without a byte after which the connection is taken to be dead.

        Raises as :meth:`get` does, also in the middle.
        """
        async with self._ask("GET", f"{path}?{urlencode(query)}", b"", silence) as answer:
            yield b""
            rest = b""
            async for piece in answer.pieces():
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line
                if len(rest) > MAX_EVENT_BYTES:
                    raise Unreachable(f"an event of more than {MAX_EVENT_BYTES} bytes")

    async def _call(self, method: str, target: str, body: bytes) -> bytes:
        try:
            async with (
                asyncio.timeout(CALL_SECONDS),
                self._ask(method, target, body, CALL_SECONDS) as answer,
            ):
                return b"".join([piece async for piece in answer.pieces()])
        except TimeoutError:
            raise Unreachable(f"no whole answer within {CALL_SECONDS:.0f} s") from None

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, target: str, body: bytes, silence: float
    ) -> AsyncIterator["_Answer"]:
        """The good answer to one request, on a connection of its own."""
        reader, writer = await self._connect()
        try:
            writer.write(self._head(method, target, len(body)) + body)
            answer = _Answer(reader, silence)
            await answer.begin()
            if answer.status == 401:
                self._token_read_at = float("-inf")  # Perhaps there is a new one already.
            if answer.status >= 300:
                raise Refused(answer.status, await answer.excerpt())
            yield answer
        except OSError as error:
            raise Unreachable(_why(error)) from None
        finally:
            writer.transport.abort()  # Nobody would wait for the end of a farewell in TLS.

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(self._host, self._port, ssl=self._context())
        except TimeoutError:
            raise Unreachable(f"no connection within {CONNECT_SECONDS:.0f} s") from None
        except OSError as error:
            raise Unreachable(f"cannot connect: {_why(error)}") from None

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            try:
                context = ssl.create_default_context(cafile=str(self._folder / "ca.crt"))
            except (OSError, ssl.SSLError) as error:
                raise Unreachable(f"{self._folder / 'ca.crt'}: {error}") from None
            # As client-go: many clusters' authorities lack extensions that RFC 5280 asks for.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            self._tls = context
        return self._tls

    def _head(self, method: str, target: str, length: int) -> bytes:
        return (
            f"{method} {target} HTTP/1.1\r\n"
            f"host: {self._authority}\r\n"
            f"authorization: Bearer {self._fresh_token()}\r\n"
            "accept: application/json\r\n"
            "content-type: application/json\r\n"
            f"content-length: {length}\r\n"
            "user-agent: sluice-gateway\r\n"
            "connection: close\r\n\r\n"
        ).encode("ascii")

    def _fresh_token(self) -> str:
        now = time.monotonic()
        if now - self._token_read_at > TOKEN_SECONDS:
            try:
                self._token = (self._folder / "token").read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Unreachable(f"{self._folder / 'token'}: {error}") from None
            self._token_read_at = now
        return self._token


class _Answer:
    """One answer, as it comes.

    Attributes:
        status: the HTTP status; 0 before :meth:`begin`.
    """

    def __init__(self, reader: asyncio.StreamReader, silence: float) -> None:
        self.status = 0
        self._reader = reader
        self._silence = silence
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._ended = False

    async def begin(self) -> None:
        """Until the head is there."""
        while not self.status:
            await self._feed()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises Unreachable when it does not end as it should."""
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if self._ended:
                return
            if not pieces:
                await self._feed()

    async def excerpt(self) -> str:
        """The beginning of a refusal's body, on one line."""
        body = b""
        async for piece in self.pieces():
            body += piece
            if len(body) > 4096:
                break
        return " ".join(body.decode("utf-8", "replace").split())[:_MAX_TOLD]

    async def _feed(self) -> None:
        try:
            async with asyncio.timeout(self._silence):
                data = await self._reader.read(READ_BYTES)
        except TimeoutError:
            raise Unreachable(f"silent for {self._silence:.0f} s") from None
        if not data:
            raise Unreachable("the connection ended in the middle of an answer")
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise Unreachable(f"not an HTTP answer: {error}") from None

    # httptools calls these.

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._ended = True


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
