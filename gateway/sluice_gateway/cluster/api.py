"""Calls to the Kubernetes API server, as the pod's own ServiceAccount.

The one module of the gateway that speaks to it, and the one that imports aiohttp: the official
client would cost more memory than everything the gateway knows of a thousand services
(``docs/decisions``). ``watch`` lists and watches through it, ``readers`` has tokens reviewed.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import aiohttp

CALL_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 3.0
TOKEN_SECONDS: Final = 60.0
"""The kubelet writes a new token long before the old one ends; it is read again this often."""
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
CLOSING_TURNS: Final = 3
"""Of the event loop: a TLS connection that was cut in the middle of a watch ends only then."""
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
    """One API server, one session. Must be closed.

    Args:
        host: name or address, IPv6 without brackets.
        folder: holds ``ca.crt`` and ``token``, as the kubelet mounts them.
    """

    def __init__(self, host: str, port: int, folder: Path) -> None:
        self._base = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._folder = folder
        self._session: aiohttp.ClientSession | None = None
        self._token = ""
        self._token_read_at = float("-inf")

    def __repr__(self) -> str:
        return f"<ApiServer {self._base} {'open' if self._session else 'closed'}>"

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """The body of a GET. Raises :class:`Unreachable` or :class:`Refused`."""
        return await self._call("GET", path, query, None)

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of the answer to ``body``, JSON. Raises as :meth:`get` does."""
        return await self._call("POST", path, {}, body)

    async def lines(
        self, path: str, query: Mapping[str, str], silence: float
    ) -> AsyncIterator[bytes]:
        """The lines of a watch, the first one empty as soon as it is accepted.

        Args:
            silence: seconds without a byte after which the connection is taken to be dead.

        Raises as :meth:`get` does, also in the middle.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        try:
            async with self._open().get(
                self._base + path, params=query, headers=self._headers(), timeout=timeout
            ) as answer:
                await self._check(answer)
                yield b""
                try:
                    async for line in _split(answer.content):
                        yield line
                finally:
                    # Nobody would wait for the end of a farewell in TLS.
                    if answer.connection is not None and answer.connection.transport is not None:
                        answer.connection.transport.abort()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(_why(error)) from None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            for _ in range(CLOSING_TURNS):
                await asyncio.sleep(0)

    async def _call(
        self, method: str, path: str, query: Mapping[str, str], body: bytes | None
    ) -> bytes:
        try:
            async with (
                asyncio.timeout(CALL_SECONDS),
                self._open().request(
                    method, self._base + path, params=query, data=body, headers=self._headers()
                ) as answer,
            ):
                await self._check(answer)
                return await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(_why(error)) from None

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status == 401:
            self._token_read_at = float("-inf")  # Perhaps there is a new one already.
        if answer.status >= 300:
            text = (await answer.content.read(4096)).decode("utf-8", "replace")
            raise Refused(answer.status, " ".join(text.split())[:_MAX_TOLD])

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            try:
                context = ssl.create_default_context(cafile=str(self._folder / "ca.crt"))
            except (OSError, ssl.SSLError) as error:
                raise Unreachable(f"{self._folder / 'ca.crt'}: {error}") from None
            # As client-go: many clusters' authorities lack extensions that RFC 5280 asks for.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            connector = aiohttp.TCPConnector(ssl=context, limit=0)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    def _headers(self) -> dict[str, str]:
        now = time.monotonic()
        if now - self._token_read_at > TOKEN_SECONDS:
            try:
                self._token = (self._folder / "token").read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Unreachable(f"{self._folder / 'token'}: {error}") from None
            self._token_read_at = now
        return {
            "authorization": f"Bearer {self._token}",
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": "sluice-gateway",
        }


async def _split(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines; the reader's own are bounded by a buffer that one big slice exceeds."""
    rest = b""
    async for data in content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > MAX_EVENT_BYTES:
            raise Unreachable(f"an event of more than {MAX_EVENT_BYTES} bytes")


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
