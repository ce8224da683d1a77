"""Reads the demand stream of every gateway pod, for ever, and brings it to the fleet.

Run by ``app`` in every replica of the operator. One task per gateway; which ones there are comes
from the EndpointSlices of their admin Service. A gateway that cannot be read is *unheard*: its
share is unknown, never zero, until its pod has gone.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from sluice_api import wire
from sluice_operator.awareness import Gateways
from sluice_operator.fleet import Fleet
from sluice_operator.metrics import ScalingInstruments
from sluice_operator.scaling.demand import SILENCE_SECONDS
from sluice_operator.state import Object

RETRY_SECONDS: Final = 0.25
REFUSED_RETRY_SECONDS: Final = 2.0
"""After 401 or 403: the token or the gateway's settings are wrong, not the moment."""
LOOK_SECONDS: Final = 1.0
"""How often the gateways are counted although no slice has changed."""
DEAF_SECONDS: Final = 60.0
"""For so long no gateway must have been heard before every service's status says so."""
HEARING_SECONDS: Final = 10.0
"""For so long one must have been heard again before it no longer does."""
MAX_LINE_BYTES: Final = 2 * 2**20
_CHUNK_BYTES: Final = 256 * 1024

log = logging.getLogger(__name__)

_decode_lines = msgspec.json.Decoder(wire.Demand).decode_lines


class Garbled(Exception):
    """What a gateway sends is no demand."""


@dataclass(slots=True)
class _Gateway:
    """One gateway pod.

    Attributes:
        ready: takes requests, as its pod says.
        names: the process that speaks from there; none before its first record.
        heard_at: when the stream last brought something or was opened; None if never.
    """

    url: str
    ready: bool = False
    task: asyncio.Task[None] | None = None
    names: list[str] = field(default_factory=list)
    heard_at: float | None = None
    trouble: str = ""


class DemandFeed:
    """Follows the gateways.

    Attributes:
        deaf: why no gateway can be heard, once that has lasted; empty while one is, or none is
            ready.

    Args:
        addresses: URL of every gateway's admin port → whether its pod is ready; asked for whenever
            :meth:`look` says.
        token_file: read anew for every connection, because it is rotated; None sends no token.
        turned: called when :attr:`deaf` has changed.
    """

    def __init__(
        self,
        fleet: Fleet,
        addresses: Callable[[], Mapping[str, bool]],
        token_file: Path | None,
        instruments: ScalingInstruments,
        turned: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._addresses = addresses
        self._token_file = token_file
        self._instruments = instruments
        self._turned = turned
        self._clock = clock
        self.deaf = ""
        self._steady_at = clock()
        self._gateways: dict[str, _Gateway] = {}
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        heard = sum(self._is_heard(gateway) for gateway in self._gateways.values())
        return f"<DemandFeed {heard} of {len(self._gateways)} gateways heard>"

    def look(self) -> None:
        """A slice has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Follow whoever is there, for ever; ends every stream when cancelled."""
        client = aiohttp.ClientSession(
            read_bufsize=_CHUNK_BYTES, trust_env=False, auto_decompress=False
        )
        async with client as session, asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                self._sync(group, session)
                self._count()
                try:
                    # Not wait_for: Python 3.11's forgets a cancellation that comes with the event.
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    def _sync(self, group: asyncio.TaskGroup, session: aiohttp.ClientSession) -> None:
        present = self._addresses()
        for url in self._gateways.keys() - present.keys():
            gone = self._gateways.pop(url)
            if gone.task is not None:
                gone.task.cancel()
            self._forget(gone)
            log.info("gateway gone", extra={"gateway": url})
        for url, ready in present.items():
            gateway = self._gateways.setdefault(url, _Gateway(url))
            gateway.ready = ready
            if gateway.task is None:
                following = self._follow(gateway, session)
                gateway.task = group.create_task(following, name=f"demand {url}")

    def _forget(self, gateway: _Gateway) -> None:
        for name in gateway.names:
            self._fleet.forget_gateway(name)
        gateway.names = []
        gateway.heard_at = None

    def _count(self) -> None:
        heard = sum(self._is_heard(gateway) for gateway in self._gateways.values())
        # One that never was ready nor heard has no requests.
        unheard = sum(g.ready and not self._is_heard(g) for g in self._gateways.values())
        serving = sum(g.ready and self._is_heard(g) for g in self._gateways.values())
        self._fleet.set_gateways(Gateways(heard, unheard, serving))
        self._instruments.gateways(heard, unheard)
        self._judge(not heard and unheard > 0)

    def _judge(self, deaf: bool) -> None:
        now = self._clock()
        if deaf == bool(self.deaf):
            self._steady_at = now
        elif now - self._steady_at >= (DEAF_SECONDS if deaf else HEARING_SECONDS):
            # Why is asked once: what is written into every status must not change with the weather.
            whys = (g.trouble for g in self._gateways.values() if g.ready and g.trouble)
            self.deaf = next(whys, "none has spoken yet") if deaf else ""
            log.log(
                logging.ERROR if deaf else logging.INFO,
                "no gateway is heard" if deaf else "gateways are heard again",
                extra={"why": self.deaf},
            )
            self._turned()

    def _is_heard(self, gateway: _Gateway) -> bool:
        return gateway.heard_at is not None and (
            self._clock() - gateway.heard_at <= 2 * SILENCE_SECONDS
        )

    async def _follow(self, gateway: _Gateway, session: aiohttp.ClientSession) -> None:
        while True:
            pause, cause, why = RETRY_SECONDS, "broken", "the stream ended"
            try:
                await self._read(gateway, session)
            except aiohttp.ClientResponseError as error:
                cause, why = "refused", f"HTTP status {error.status}"
                if error.status in (401, 403):
                    pause = REFUSED_RETRY_SECONDS
            except TimeoutError:
                cause, why = "silent", f"nothing for {SILENCE_SECONDS:g} s"
            except aiohttp.ClientConnectorError as error:
                cause, why = "refused", str(error)
                if error.os_error.errno == errno.ECONNREFUSED:
                    self._forget(gateway)  # The process has ended, and its requests with it.
            except (aiohttp.ClientError, OSError) as error:
                why = str(error) or type(error).__name__
            except (Garbled, msgspec.MsgspecError, UnicodeDecodeError) as error:
                cause, why, pause = "garbled", str(error), REFUSED_RETRY_SECONDS
            self._instruments.feed_failed(cause)
            if gateway.trouble != why:
                gateway.trouble = why
                log.log(
                    # One that is on its way in or out is not ready, and nothing is wrong.
                    logging.WARNING if gateway.ready else logging.INFO,
                    "demand stream broke",
                    extra={"gateway": gateway.url, "cause": cause, "why": why},
                )
            await asyncio.sleep(pause)

    async def _read(self, gateway: _Gateway, session: aiohttp.ClientSession) -> None:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS
        )
        async with session.get(
            f"{gateway.url}/internal/demand",
            timeout=timeout,
            headers=self._headers(),
            allow_redirects=False,
        ) as response:
            if response.status != 200:
                response.release()
                raise aiohttp.ClientResponseError(
                    response.request_info, response.history, status=response.status
                )
            gateway.heard_at = self._clock()
            gateway.trouble = ""
            log.info("demand stream open", extra={"gateway": gateway.url})
            rest = b""
            async for chunk in response.content.iter_any():
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    raise Garbled(f"a line is longer than {MAX_LINE_BYTES} bytes")
                if newline:
                    self._take(gateway, whole)

    def _take(self, gateway: _Gateway, lines: bytes) -> None:
        now = gateway.heard_at = self._clock()
        count = 0
        for record in _decode_lines(lines):
            if not gateway.names or record.gateway != gateway.names[-1]:
                self._introduce(gateway, record.gateway)
            self._fleet.observe(record, now)
            count += 1
        self._instruments.received(count)

    def _introduce(self, gateway: _Gateway, name: str) -> None:
        """A process speaks that has not done so before: whatever spoke from there has ended."""
        self._forget(gateway)
        gateway.names, gateway.heard_at = [name], self._clock()

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        token = self._token_file.read_text().strip()
        return {"Authorization": f"Bearer {token}"}


def admin_addresses(slices: Iterable[Object], port: int) -> dict[str, bool]:
    """URL of the admin port of every gateway in its EndpointSlices → whether its pod is ready.

    One that is on its way out is followed to its end: it still has requests.
    """
    found = {}
    for part in slices:
        for endpoint in part.get("endpoints") or ():
            for address in (endpoint.get("addresses") or ())[:1]:
                host = f"[{address}]" if ":" in address else address
                found[f"http://{host}:{port}"] = _is_ready(endpoint.get("conditions") or {})
    return found


def _is_ready(conditions: Mapping[str, bool]) -> bool:
    # A Service that publishes unready addresses calls all of them ready; serving tells the truth.
    return conditions.get("serving", True) is not False and not conditions.get("terminating")
