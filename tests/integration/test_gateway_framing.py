"""HTTP/1.1 on the wire: what is accepted, what is refused, and that nothing is read twice."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.support.gateway_process import Client, GatewayProcess, request
from tests.support.smuggling import POST, VECTORS
from tests.support.stub_worker import StubWorker, until, vector_of

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    return ("--max-body-mib", "1")


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[Client]:
    await gateway.ready("emb")
    async with await gateway.client() as connection:
        yield connection


def body(text: str) -> bytes:
    return b'{"model":"emb","input":"%b"}' % text.encode()


def chunked(content: bytes, size: int) -> bytes:
    parts = [content[i : i + size] for i in range(0, len(content), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


EDGES = ("fast", "fast, byte by byte", "ordinary")


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", VECTORS)
async def test_ambiguous_request_is_refused_and_nothing_behind_it_is_read(
    client: Client, worker: StubWorker, name: str, edge: str
) -> None:
    seen = len(worker.seen)
    if edge == "ordinary":
        assert (await client.get("/livez")).status == 200
    everything = VECTORS[name] + request(PATH, body(f"smuggled {name} {edge}"))
    if edge == "fast, byte by byte":
        for byte in everything:
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
    else:
        client.send(everything)
    reply = await client.reply()
    assert reply.status == 400, reply
    assert reply.json()["error"]["code"] == "bad_http"
    assert reply.headers["connection"] == "close" and reply.headers["x-request-id"]
    assert await client.closed()
    assert [each.body for each in worker.seen[seen:]] == []


def test_there_are_as_many_vectors_as_are_claimed() -> None:
    assert len(set(VECTORS.values())) == len(VECTORS) >= 200


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    texts = [f"pipe {number % 7}" for number in range(40)]
    client.send(b"".join(request(PATH, body(text)) for text in texts))
    for text in texts:
        reply = await client.reply()
        assert reply.json()["data"][0]["embedding"] == vector_of(text).tolist()
    assert (await client.post(PATH, body("after"))).status == 200


async def test_pipeline_goes_on_behind_other_routes(client: Client) -> None:
    get = b"GET /livez HTTP/1.1\r\nhost: t\r\n\r\n"
    client.send(request(PATH, body("one")) + get + request(PATH, body("two")) + get)
    assert (await client.reply()).json()["data"][0]["embedding"] == vector_of("one").tolist()
    assert (await client.reply()).json() == {"live": True}
    assert (await client.reply()).json()["data"][0]["embedding"] == vector_of("two").tolist()
    assert (await client.reply()).json() == {"live": True}


async def test_what_is_sent_ahead_is_bounded(client: Client, worker: StubWorker) -> None:
    worker.behaviour.delay = 0.5
    try:
        client.send(request(PATH, body("slow one")))
        flood = request(PATH, body("x" * 50_000)) * 1000
        client.send(flood)
        assert (await client.reply()).status == 200  # half a second later
        assert client.writer.transport.get_write_buffer_size() > len(flood) / 2
    finally:
        worker.behaviour.delay = 0.0


async def test_client_that_does_not_read_is_not_read_either(client: Client) -> None:
    texts = ["wide " * 20] * 500
    body_of_many = msgspec.json.encode({"model": "emb", "input": texts})
    answered = await client.post(PATH, body_of_many)
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    flood = request(PATH, body_of_many) * 400
    client.send(flood)
    transport = client.writer.transport
    sizes = [0, 1]

    def settled() -> bool:
        sizes.append(transport.get_write_buffer_size())
        return len(set(sizes[-30:])) == 1

    await until(settled)
    left = sizes[-1]
    assert left > len(flood) / 2
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(400):
        assert len((await client.reply()).body) == len(answered.body)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_chunked_bodies(client: Client, size: int) -> None:
    for number in range(3):  # keep-alive behind a chunked body
        text = f"chunked {size} {number}"
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n" + chunked(body(text), size))
        reply = await client.reply()
        assert reply.json()["data"][0]["embedding"] == vector_of(text).tolist()


async def test_request_in_single_bytes(client: Client) -> None:
    for byte in request(PATH, body("drip")):
        client.send(bytes((byte,)))
        await client.writer.drain()
    assert (await client.reply()).json()["data"][0]["embedding"] == vector_of("drip").tolist()


@pytest.mark.parametrize("first", ["/livez", None])
async def test_empty_lines_before_a_request_are_ignored(client: Client, first: str | None) -> None:
    if first is not None:
        await client.get(first)
    for _ in range(3):  # before each
        client.send(b"\r\n\r\n" + request(PATH, body("crlf")))
        assert (await client.reply()).status == 200


@pytest.mark.parametrize("edge", [*EDGES, "admin"])
async def test_endless_empty_lines_are_refused(gateway: GatewayProcess, edge: str) -> None:
    port = gateway.admin_port if edge == "admin" else gateway.port
    async with await Client.open(port) as client:
        if edge in ("ordinary", "admin"):
            assert (await client.get("/livez")).status == 200
        if edge == "fast, byte by byte":
            for byte in b"\r\n" * 3:
                client.send(bytes((byte,)))
                await asyncio.sleep(0)
        else:
            client.send(b"\r\n" * 500_000)
        reply = await client.reply()
        assert (reply.status, reply.json()["error"]["code"]) == (400, "bad_http")
        assert await client.closed()


async def test_expect_100_continue(client: Client) -> None:
    content = body("continue")
    client.send(POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(content))
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(content)
    assert (await client.reply()).status == 200


async def test_http_1_0_and_connection_close(gateway: GatewayProcess) -> None:
    content = body("old")
    for head in (
        b"POST /v1/embeddings HTTP/1.0\r\ncontent-length: %d\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: %d\r\n\r\n",
        POST + b"connection: close\r\ncontent-length: %d\r\n\r\n",
    ):
        async with await gateway.client() as client:
            client.send(head % len(content) + content)
            reply = await client.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert await client.closed()


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("how", ["declared", "chunked"])
async def test_body_too_large(client: Client, how: str, fallback: bool) -> None:
    if fallback:
        await client.get("/livez")
    content = body("x" * 1_100_000)
    if how == "declared":
        client.send(request(PATH, content))
    else:
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n" + chunked(content, 60_000))
    reply = await client.reply()
    assert (reply.status, reply.json()["error"]["code"]) == (413, "body_too_large")


async def test_body_below_the_limit(client: Client, worker: StubWorker) -> None:
    reply = await client.post(PATH, body("y" * 1_000_000))
    assert reply.status == 200


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("head", [b"x: " + b"y" * 40_000 + b"\r\n", b"x: y\r\n" * 150])
async def test_headers_too_large(client: Client, head: bytes, fallback: bool) -> None:
    if fallback:
        await client.get("/livez")
    client.send(POST + head + b"content-length: 0\r\n\r\n")
    reply = await client.reply()
    assert (reply.status, reply.json()["error"]["code"]) == (431, "headers_too_large")


async def test_endless_head_is_cut_off(client: Client) -> None:
    client.send(POST + b"x: " + b"y" * 40_000)
    assert (await client.reply()).status == 431


async def test_compressed_bodies_are_refused(client: Client) -> None:
    reply = await client.post(PATH, b"\x1f\x8b", content_encoding="gzip")
    assert (reply.status, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "TRACE"])
async def test_other_methods(client: Client, method: str) -> None:
    reply = await client.get(PATH, method)
    assert (reply.status, reply.headers["allow"]) == (405, "POST, OPTIONS")
    assert reply.json()["error"]["code"] == "method_not_allowed"


async def test_head_has_no_body(client: Client) -> None:
    reply = await client.get(PATH, "HEAD")
    assert reply.status == 405
    assert (await client.get("/livez")).status == 200  # nothing was left over


async def test_unknown_paths(client: Client) -> None:
    for path in ("/v1", "/v1/nothing", "/v1/embeddings/", "/%2e%2e/v1/embeddings"):
        reply = await client.post(path, b"{}")
        assert reply.status == 404, path


async def test_bad_deadline_header(client: Client) -> None:
    for value in ("0", "-1", "abc", "9" * 30):
        reply = await client.post(PATH, body("d"), x_sluice_deadline_ms=value)
        assert (reply.status, reply.json()["error"]["code"]) == (400, "invalid_field")


async def test_thousand_connections(gateway: GatewayProcess) -> None:
    clients = await asyncio.gather(*[gateway.client() for _ in range(200)])
    replies = await asyncio.gather(*[c.post(PATH, body("many")) for c in clients])
    assert {reply.status for reply in replies} == {200}
    for client in clients:
        client.close()
