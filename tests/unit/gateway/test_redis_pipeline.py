"""The pipeline to Redis: what it sends, in how many writes, to whom it answers, where it stops."""

import asyncio
import logging
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sluice_gateway.redis_address import parse_address
from sluice_gateway.redis_commands import command
from sluice_gateway.redis_link import MAX_PENDING
from sluice_gateway.redis_pipeline import Failure, RedisPipeline
from sluice_gateway.redis_places import parse_place
from tests.support.event_loops import eventually, on_uvloop
from tests.support.redis_server import RedisServer, free_port, running_redis

Replies = list[Any] | Failure


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[RedisPipeline, Counter[str]]]:
    """A pipeline with a budget that a busy machine does not exceed."""
    faults: Counter[str] = Counter()
    pipeline = RedisPipeline(url, faults=lambda cause: faults.update([cause]), budget_seconds=5)
    await pipeline.start()
    try:
        yield pipeline, faults
    finally:
        await pipeline.close()


async def get(pipeline: RedisPipeline, *keys: bytes) -> Replies:
    answer: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()
    pipeline.get(list(keys), answer.set_result)
    return await answer


async def turn(pipeline: RedisPipeline) -> None:
    """A round trip; what was set before it is on its way, and is served before what follows."""
    await get(pipeline, b"absent")


@on_uvloop
async def test_reads_what_was_written_in_order(server: RedisServer) -> None:
    async with connected(server.unix_url) as (pipeline, faults):
        values = {b"k%d" % n: bytes([n]) * n * 100 for n in range(20)}
        for key, value in values.items():
            pipeline.set(key, value, 60)
        await turn(pipeline)
        assert await get(pipeline, *values, b"absent") == [*values.values(), None]
        assert not faults


@on_uvloop
async def test_a_value_expires_in_redis_too(server: RedisServer) -> None:
    with server.client() as client:
        async with connected(server.unix_url) as (pipeline, _):
            pipeline.set(b"long", b"x", 100.5)
            pipeline.set(b"short", b"x", 0.0001)
            await turn(pipeline)
            await get(pipeline, b"long")
            assert 100_000 < client.pttl("long") <= 100_500
            await eventually(lambda: not client.exists("short"))


@on_uvloop
async def test_says_who_it_is_and_uses_the_database_it_was_given(server: RedisServer) -> None:
    with server.client() as client:
        async with connected(f"{server.tcp_url}/3") as (pipeline, _):
            pipeline.set(b"in 3", b"x", 60)
            await turn(pipeline)
            await get(pipeline, b"in 3")
            assert [c["db"] for c in client.client_list() if c["name"] == "sluice-gateway"] == ["3"]
            assert client.info("keyspace")["db3"]["keys"] == 1


async def call(pipeline: RedisPipeline, *commands: bytes) -> Replies:
    answer: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()
    pipeline.call(b"n", list(commands), answer.set_result)
    return await answer


@on_uvloop
async def test_runs_any_commands_in_order(server: RedisServer) -> None:
    async with connected(server.unix_url) as (pipeline, faults):
        replies = await call(
            pipeline,
            command("SET", "n", 40, "PX", 60_000),
            command("INCRBY", b"n", 2),
            command("SET", "n", "x", "NX"),
            command("EVAL", "return {KEYS[1], ARGV[1]}", 1, "n", "ü"),
        )
        assert replies == [b"OK", 42, None, [b"n", "ü".encode()]]
        assert not faults


@on_uvloop
async def test_a_refused_command_costs_neither_its_neighbours_nor_the_link(
    server: RedisServer,
) -> None:
    async with connected(server.unix_url) as (pipeline, faults):
        replies = await call(
            pipeline,
            command("EVALSHA", "0" * 40, 0),
            command("SET", "n", "text", "PX", 60_000),
            command("INCR", "n"),
            command("GET", "n"),
        )
        assert replies == [Failure("noscript"), b"OK", Failure("refused"), b"text"]
        assert pipeline.up and faults == {"refused": 1}


@on_uvloop
async def test_a_call_without_redis_fails_at_once() -> None:
    never = RedisPipeline("redis://127.0.0.1:1", faults=lambda _: None)
    assert await call(never, command("PING")) == Failure("down")


@asynccontextmanager
async def listening(chunks: list[bytes], extra: bytes = b"") -> AsyncIterator[str]:
    """A server that writes down what it is sent and has nothing for any key; yields its URL.

    ``extra`` is sent after the first answer that is not part of the greeting.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            chunks.append(data)
            commands = data.count(b"GET\r\n") + data.count(b"CLIENT\r\n")
            writer.write(b"$-1\r\n" * commands + (b"" if b"CLIENT" in data else extra))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@on_uvloop
async def test_commands_of_one_turn_leave_in_one_write() -> None:
    chunks: list[bytes] = []
    async with listening(chunks) as url, connected(url) as (pipeline, _):
        chunks.clear()
        answers = await asyncio.gather(*(get(pipeline, b"k%d" % n) for n in range(100)))
        assert answers == [[None]] * 100
        assert len(chunks) == 1 and chunks[0].count(b"GET") == 100


@on_uvloop
async def test_writes_leave_with_the_reads_of_their_turn_and_behind_them() -> None:
    chunks: list[bytes] = []
    async with listening(chunks) as url, connected(url) as (pipeline, _):
        chunks.clear()
        pipeline.set(b"written", b"x", 60)
        assert await get(pipeline, b"read") == [None]
        pipeline.set(b"alone", b"x", 60)
        await eventually(lambda: len(chunks) == 2)
        assert chunks[0].index(b"GET") < chunks[0].index(b"written")
        assert b"alone" in chunks[1]


@pytest.mark.parametrize("extra", [b"$-1\r\n", b"+OK\r\n", b"-ERR what\r\n", b"?", b"\0\0"])
@on_uvloop
async def test_a_reply_that_nobody_asked_for_ends_the_link(extra: bytes) -> None:
    async with listening([], extra) as url, connected(url) as (pipeline, _):
        link = pipeline._link
        assert link is not None and await get(pipeline, b"k") == [None]
        assert await link.lost in ("desync", "protocol")


@on_uvloop
async def test_more_than_it_may_owe_is_refused_at_once(server: RedisServer) -> None:
    async with connected(server.unix_url) as (pipeline, faults):
        heard: list[Replies] = []
        pipeline.get([b"k"] * (MAX_PENDING + 1), heard.append)
        assert heard == [Failure("busy")] and faults == {"busy": 1}


@on_uvloop
async def test_a_flood_of_writes_is_bounded_paced_and_keeps_no_read_waiting(
    server: RedisServer,
) -> None:
    with server.client() as client:
        client.flushall()
        async with connected(server.unix_url) as (pipeline, faults):
            for number in range(100):
                pipeline.set(b"big %d" % number, bytes(200_000), 60)
            refused = faults["busy"]
            assert 10 <= refused <= 20, "16 MiB may wait"
            assert await get(pipeline, b"absent") == [None]
            assert client.dbsize() < 50, "a read must not wait for what was written before it"
            await eventually(lambda: client.dbsize() == 100 - refused)
            assert pipeline.up and faults == {"busy": refused}


@on_uvloop
async def test_writes_go_on_after_reads_filled_the_link(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
        async with connected(server.unix_url) as (pipeline, faults):
            pipeline.get([b"absent"] * MAX_PENDING, lambda _: None)
            pipeline.set(b"late", b"x", 60)
            await eventually(lambda: client.exists("late") == 1)
            assert not faults


@on_uvloop
async def test_one_broken_caller_keeps_no_reply_from_the_others(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Replies) -> None:
        raise RuntimeError("broken")

    async with connected(server.unix_url) as (pipeline, _):
        with caplog.at_level(logging.ERROR):
            pipeline.get([b"absent"], broken)
            assert await get(pipeline, b"absent") == [None]
        assert pipeline.up
    assert [record.message for record in caplog.records] == [
        "a caller failed on the replies of Redis"
    ]


@on_uvloop
async def test_distrust_fails_what_is_pending_and_connects_anew(server: RedisServer) -> None:
    async with connected(server.unix_url) as (pipeline, faults):
        heard: list[Replies] = []
        pipeline.get([b"a"], heard.append)
        pipeline.distrust(b"a")
        assert heard == [Failure("desync")] and not pipeline.up
        await eventually(lambda: pipeline.up)
        assert faults == {"desync": 1}


@on_uvloop
async def test_closing_answers_everybody_and_is_final(server: RedisServer) -> None:
    heard: list[Replies] = []
    async with connected(server.unix_url) as (pipeline, _):
        pipeline.get([b"a"], heard.append)
    assert heard == [Failure("closed")]
    assert repr(pipeline) == f"<RedisPipeline unix://{server.path}/0 down>"
    pipeline.get([b"a"], heard.append)
    assert heard[1:] == [Failure("down")]


@on_uvloop
async def test_closing_before_starting_and_while_connecting() -> None:
    never = RedisPipeline("redis://127.0.0.1:1", faults=lambda _: None)
    await never.close()
    async with connected("redis://127.0.0.1:1") as (pipeline, _):
        assert not pipeline.up


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://example", ("example", 6379, None, 0, None, None)),
        ("redis://u:p%40ss@example:7000/2", ("example", 7000, None, 2, "u", "p@ss")),
        ("unix:///run/redis.sock?db=4", ("localhost", 6379, "/run/redis.sock", 4, None, None)),
    ],
)
def test_addresses(url: str, expected: tuple[object, ...]) -> None:
    a = parse_address(url)
    assert (a.host, a.port, a.path, a.db, a.username, a.password) == expected
    assert "p@ss" not in repr(a) and "p@ss" not in a.shown


def test_tls_verifies_unless_told_otherwise() -> None:
    strict = parse_address("rediss://example").tls
    assert strict is not None and strict.check_hostname
    loose = parse_address("rediss://example?ssl_cert_reqs=none").tls
    assert loose is not None and not loose.check_hostname


def test_over_tls_the_certificate_must_fit(tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )

    @on_uvloop
    async def run(port: int) -> None:
        trusted = f"?ssl_ca_certs={certificate}"
        async with connected(f"rediss://localhost:{port}{trusted}") as (pipeline, faults):
            assert pipeline.up
            pipeline.set(b"k", b"v" * 100_000, 60)
            await turn(pipeline)
            assert await get(pipeline, b"k") == [b"v" * 100_000]
            assert not faults
        for refused in (f"localhost:{port}", f"127.0.0.1:{port}{trusted}"):
            async with connected(f"rediss://{refused}") as (pipeline, _):
                assert not pipeline.up

    port = free_port()
    options = ("--tls-port", str(port), "--tls-auth-clients", "no")
    with running_redis(*options, "--tls-cert-file", certificate, "--tls-key-file", key):
        run(port)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example", "cannot be read, needs redis://"),
        *((f"redis://user:secret{sign}x@host:6379", "as %XX") for sign in "/?#"),
        ("redis+cluster://user:secret#x@host:6379", "as %XX"),
        ("redis://:secret@example?max_connections=3", "not known: max_connections"),
        ("rediss://example?ssl_cert_reqs=maybe", "got 'maybe'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_without_the_password(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_place(url)
    assert "secret" not in str(caught.value)
