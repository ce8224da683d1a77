"""The demand feed over real HTTP: who is heard, who is not, what a garbled line costs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from sluice_api import wire
from sluice_operator.demand_feed import (
    DEAF_SECONDS,
    HEARING_SECONDS,
    DemandFeed,
    admin_addresses,
)
from sluice_operator.fleet import Fleet
from sluice_operator.metrics import ScalingInstruments
from sluice_operator.state import Key
from tests.support.demand_records import Gateway


class Streaming:
    """A gateway's admin port: every reader gets what :meth:`say` is given."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []
        self.refuse = 0
        self.url = ""
        self._readers: list[web.StreamResponse] = []
        self._runner: web.AppRunner | None = None
        self._end = asyncio.Event()

    async def start(self, port: int = 0) -> int:
        app = web.Application()
        app.router.add_get("/internal/demand", self._demand)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return int(port)

    async def stop(self) -> None:
        self._end.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _demand(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("Authorization"))
        if self.refuse:
            return web.Response(status=self.refuse)
        response = web.StreamResponse()
        await response.prepare(request)
        self._readers.append(response)
        await self._end.wait()
        return response

    @property
    def read(self) -> int:
        return len(self._readers)

    async def say(self, *records: wire.Demand, raw: bytes = b"") -> None:
        lines = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        for reader in self._readers:
            await reader.write(raw or lines)


class Listening:
    """A feed into a fleet, and what the fleet was told."""

    def __init__(self, token_file: Path | None = None) -> None:
        self.present: dict[str, bool] = {}
        self.wakes: list[Key] = []
        self.turns: list[str] = []
        self.later = 0.0
        self.fleet = Fleet(self.wakes.append, lambda key: None)
        self.registry = CollectorRegistry()
        instruments = ScalingInstruments(self.registry, self.fleet.decisions)
        self.feed = DemandFeed(
            self.fleet,
            lambda: self.present,
            token_file,
            instruments,
            self._turned,
            lambda: time.monotonic() + self.later,
        )

    def _turned(self) -> None:
        self.turns.append(self.feed.deaf)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def records(self) -> float:
        return self.metric("sluice_scaling_demand_records_total")

    def failures(self, cause: str) -> float:
        return self.metric("sluice_scaling_demand_failures_total", cause=cause)


async def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  conditions of several parts, none has an event
            await asyncio.sleep(0.01)
    assert condition(), what


@pytest.fixture
async def gateway() -> AsyncIterator[Streaming]:
    gateway = Streaming()
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    token = tmp_path / "token"
    token.write_text("first\n")
    listening = Listening(token)
    task = asyncio.create_task(listening.feed.run())
    yield listening
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_records_arrive_with_the_token_of_the_moment(
    listening: Listening, gateway: Streaming, tmp_path: Path
) -> None:
    listening.present = {gateway.url: True}
    listening.feed.look()
    await until(lambda: gateway.read, "connected")
    assert gateway.tokens == ["Bearer first"]
    await gateway.say(Gateway().record(arrivals=3), Gateway("same").record())
    await until(lambda: listening.records() == 2, "both records")
    assert "1 of 1" in repr(listening.feed)
    (tmp_path / "token").write_text("second\n")
    port = int(gateway.url.rpartition(":")[2])
    await gateway.stop()
    await until(lambda: listening.failures("broken") + listening.failures("refused"), "noticed")
    again = Streaming()
    await again.start(port)
    await until(lambda: again.tokens == ["Bearer second"], "connected again")
    await again.stop()


async def test_a_gateway_that_refuses_is_unheard(listening: Listening, gateway: Streaming) -> None:
    gateway.refuse = 401
    listening.present = {gateway.url: True}
    listening.feed.look()
    await until(lambda: listening.failures("refused"), "refused")
    listening.feed.look()
    await until(
        lambda: listening.metric("sluice_scaling_gateways", state="unheard") == 1, "unheard"
    )


async def test_being_deaf_is_told_once_it_has_lasted(
    listening: Listening, gateway: Streaming
) -> None:
    gateway.refuse = 401
    listening.present = {gateway.url: True}
    listening.feed.look()
    await until(lambda: listening.failures("refused"), "refused")
    await seconds(listening, DEAF_SECONDS - 5)
    assert listening.feed.deaf == ""
    await seconds(listening, 10)
    assert listening.turns == ["HTTP status 401"]
    gateway.refuse = 0
    await until(lambda: gateway.read, "read again")
    for _ in range(3):
        await listening_again(listening, gateway)
        assert listening.turns == ["HTTP status 401"]
    await seconds(listening, HEARING_SECONDS - 1)
    await listening_again(listening, gateway)
    assert listening.turns == ["HTTP status 401", ""]


async def seconds(listening: Listening, elapsed: float) -> None:
    """Let time pass, and the feed look."""
    listening.later += elapsed
    listening.feed.look()
    await asyncio.sleep(0.05)


async def listening_again(listening: Listening, gateway: Streaming) -> None:
    """One second with a record."""
    listening.later += 1
    records = listening.records()
    await gateway.say(Gateway().record())
    await until(lambda: listening.records() > records, "a record")
    await seconds(listening, 0)


@pytest.mark.parametrize(("ready", "level"), [(True, "WARNING"), (False, "INFO")])
async def test_only_a_ready_gateway_that_breaks_is_warned_of(
    listening: Listening, caplog: pytest.LogCaptureFixture, ready: bool, level: str
) -> None:
    with caplog.at_level("INFO"):
        listening.present = {"http://127.0.0.1:1": ready}
        listening.feed.look()
        told = lambda: [r for r in caplog.records if r.message == "demand stream broke"]  # noqa: E731
        await until(told, "tried")
    assert {record.levelname for record in told()} == {level}


async def test_one_that_is_not_ready_yet_holds_nothing(listening: Listening) -> None:
    listening.present = {"http://127.0.0.1:1": False}
    listening.feed.look()
    await until(lambda: listening.failures("refused"), "tried")
    listening.feed.look()
    assert listening.metric("sluice_scaling_gateways", state="unheard") == 0


async def test_lines_come_in_pieces(listening: Listening, gateway: Streaming) -> None:
    listening.present = {gateway.url: True}
    listening.feed.look()
    await until(lambda: gateway.read, "connected")
    line = msgspec.json.encode(Gateway().record(arrivals=3)) + b"\n"
    await gateway.say(raw=line + line[:20])
    await until(lambda: listening.records() == 1, "the whole one")
    await gateway.say(raw=line[20:] + b"\n")
    await until(lambda: listening.records() == 2, "the one in pieces")


async def test_what_is_no_demand_ends_the_stream_and_it_is_opened_again(
    listening: Listening, gateway: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_operator.demand_feed.REFUSED_RETRY_SECONDS", 0.05)
    listening.present = {gateway.url: True}
    listening.feed.look()
    await until(lambda: gateway.read, "connected")
    await gateway.say(raw=b'{"sequence": "one"}\n')
    await until(lambda: listening.failures("garbled"), "noticed")
    await until(lambda: gateway.read == 2, "opened again")


async def test_silence_is_noticed(
    listening: Listening, gateway: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_operator.demand_feed.SILENCE_SECONDS", 0.2)
    listening.present = {gateway.url: True}
    listening.feed.look()
    await until(lambda: listening.failures("silent"), "noticed")
    await until(lambda: gateway.read >= 2, "opened again")


async def test_a_new_process_takes_the_place_of_the_one_before(
    listening: Listening, gateway: Streaming
) -> None:
    forgotten: list[str] = []
    listening.fleet.forget_gateway = forgotten.append  # type: ignore[method-assign]
    listening.present = {gateway.url: True}
    listening.feed.look()
    await until(lambda: gateway.read, "connected")
    await gateway.say(Gateway("one").record(), Gateway("one").record())
    await gateway.say(Gateway("two").record())
    await until(lambda: forgotten == ["one"], "the first is forgotten")
    listening.present = {}
    listening.feed.look()
    await until(lambda: forgotten == ["one", "two"], "its pod has gone")


async def test_a_pod_that_goes_ends_its_stream_alone(
    listening: Listening, gateway: Streaming
) -> None:
    other = Streaming()
    await other.start()
    listening.present = {gateway.url: True, other.url: True}
    listening.feed.look()
    await until(lambda: gateway.read and other.read, "both connected")
    listening.present = {gateway.url: True}
    listening.feed.look()
    await until(lambda: "1 of 1" in repr(listening.feed), "one is left")
    await gateway.say(Gateway().record())
    await until(lambda: listening.records() == 1, "and still heard")
    await other.stop()


def test_addresses_come_from_slices() -> None:
    slices = [
        {
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": True, "serving": True}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": True, "serving": False}},
                {"addresses": ["10.0.0.3"], "conditions": {"serving": True, "terminating": True}},
                {"addresses": [], "conditions": {}},
            ]
        },
        {"endpoints": [{"addresses": ["fd00::1"]}]},
        {},
    ]
    assert admin_addresses(slices, 8081) == {
        "http://10.0.0.1:8081": True,
        "http://10.0.0.2:8081": False,
        "http://10.0.0.3:8081": False,
        "http://[fd00::1]:8081": True,
    }
