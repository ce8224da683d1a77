"""HTTP/1.1 on the wire: what is accepted, what is refused, and that nothing is read twice."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from tests.support.gateway_process import Client, GatewayProcess, request, service
from tests.support.stub_worker import StubWorker, until, vector_of

PATH = "/v1/embeddings"
POST = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n"


@pytest.fixture(scope="module")
def worker() -> Iterator[StubWorker]:
    with StubWorker() as stub:
        yield stub


@pytest.fixture(scope="module")
def gateway(
    worker: StubWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    services = [service("emb", [worker.url])]
    with GatewayProcess(tmp_path_factory.mktemp("g"), services, "--max-body-mib", "1") as process:
        yield process


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


CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
EMPTY = b"0\r\n\r\n"


def first(line: bytes, host: bytes = b"host: t\r\n") -> bytes:
    return line + b"\r\n" + host + b"content-length: 3\r\n\r\nabc"


def with_header(line: bytes) -> bytes:
    return POST + line + b"\r\ncontent-length: 3\r\n\r\nabc"


def with_length(value: bytes) -> bytes:
    return POST + b"content-length:" + value + b"\r\n\r\nabc"


def with_coding(value: bytes) -> bytes:
    return POST + b"transfer-encoding:" + value + b"\r\n\r\n" + EMPTY


SMUGGLING = {
    # Two framings, or one that can be read in two ways.
    "CL and TE": POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n" + EMPTY,
    "TE and CL": POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n" + EMPTY,
    "CL 0 and TE": POST + b"content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n" + EMPTY,
    "two CL": POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "two equal CL": POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "two CL, spelled differently": POST + b"Content-Length: 3\r\ncontent-length: 5\r\n\r\nabc",
    "CL list": with_length(b" 3, 3"),
    "CL list of different ones": with_length(b" 3,4"),
    "CL plus": with_length(b" +3"),
    "CL minus": with_length(b" -3"),
    "CL hex": with_length(b" 0x3"),
    "CL float": with_length(b" 3.0"),
    "CL exponent": with_length(b" 3e0"),
    "CL underscore": with_length(b" 1_0"),
    "CL words": with_length(b" three"),
    "CL empty": with_length(b" "),
    "CL inner space": with_length(b" 1 0"),
    "CL quoted": with_length(b' "3"'),
    "CL semicolon": with_length(b" 3;3"),
    "CL vertical tab": with_length(b" 3\x0b"),
    "CL no-break space": with_length(b" \xa03"),
    "CL Arabic digit": with_length(b" \xd9\xa3"),
    "CL huge": with_length(b" 99999999999999999999999"),
    "CL 2^64": with_length(b" 18446744073709551619"),
    "TE gzip, chunked": with_coding(b" gzip, chunked"),
    "TE chunked, gzip": with_coding(b" chunked, gzip"),
    "TE chunked, identity": with_coding(b" chunked, identity"),
    "TE chunked, chunked": with_coding(b" chunked, chunked"),
    "TE identity": with_coding(b" identity"),
    "TE empty": with_coding(b""),
    "TE comma": with_coding(b" ,chunked"),
    "TE xchunked": with_coding(b" xchunked"),
    "TE chunkedx": with_coding(b" chunkedx"),
    "TE quoted": with_coding(b' "chunked"'),
    "TE parameter": with_coding(b" chunked;q=1"),
    "TE inner space": with_coding(b" chu nked"),
    "TE vertical tab": with_coding(b"\tchunked\x0b"),
    "TE form feed": with_coding(b"\x0cchunked"),
    "TE NUL": with_coding(b" chunked\x00"),
    "two TE": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + EMPTY,
    "two TE, one of them other": POST
    + b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n"
    + EMPTY,
    "TE folded": with_coding(b"\r\n chunked"),
    "HTTP/1.0 chunked": CHUNKED.replace(b"1.1", b"1.0") + EMPTY,
    # Lines that end, begin or are cut otherwise than they should.
    "space before colon": POST + b"content-length : 3\r\n\r\nabc",
    "tab before colon": POST + b"content-length\t: 3\r\n\r\nabc",
    "space before TE's colon": POST + b"transfer-encoding : chunked\r\n\r\n" + EMPTY,
    "no colon": with_header(b"x"),
    "no name": with_header(b": x"),
    "space in a name": with_header(b"x y: z"),
    "bracket in a name": with_header(b"x(y: z"),
    "letter beyond ASCII in a name": with_header(b"x\xe9: z"),
    "NUL in a name": with_header(b"x\x00y: z"),
    "obs-fold": with_header(b"x: a\r\n b"),
    "obs-fold with a tab": with_header(b"x: a\r\n\tb"),
    "fold at the start": b"POST /v1/embeddings HTTP/1.1\r\n host: t\r\n\r\n",
    "bare LF": b"POST /v1/embeddings HTTP/1.1\nhost: t\ncontent-length: 3\n\nabc",
    "bare LF after a header": POST + b"x: a\ncontent-length: 3\r\n\r\nabc",
    "bare LF at the end": POST + b"content-length: 3\r\n\nabc\r\n\r\n",
    "bare CR in a value": with_header(b"x: a\rb"),
    "bare CR before a header": POST + b"x: a\rcontent-length: 3\r\n\r\nabc",
    "CR CR LF": with_header(b"x: a\r"),
    "NUL in a value": with_header(b"x: a\x00b"),
    "control character in a value": with_header(b"x: a\x01b"),
    "DEL in a value": with_header(b"x: a\x7fb"),
    # The request line and the host.
    "no host": first(b"POST /v1/embeddings HTTP/1.1", host=b""),
    "two hosts": with_header(b"host: u"),
    "two equal hosts": with_header(b"host: t"),
    "host list": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: t, u\r\n"),
    "host with a path": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: t/x\r\n"),
    "host with a user": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: u@t\r\n"),
    "host with a query": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: t?x\r\n"),
    "host with a bad port": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: t:8o\r\n"),
    "absolute form of another host": first(b"POST http://u/v1/embeddings HTTP/1.1"),
    "absolute form of another port": first(b"POST http://t:81/v1/embeddings HTTP/1.1"),
    "absolute form with a user": first(b"POST http://x@t/v1/embeddings HTTP/1.1"),
    "absolute form of another scheme": first(b"POST ftp://t/v1/embeddings HTTP/1.1"),
    "authority form": first(b"POST t:80 HTTP/1.1"),
    "asterisk form": first(b"POST * HTTP/1.1"),
    "relative path": first(b"POST v1/embeddings HTTP/1.1"),
    "fragment": first(b"POST /v1/embeddings#x HTTP/1.1"),
    "path beyond ASCII": first(b"POST /v1/\xe9 HTTP/1.1"),
    "space in the path": first(b"POST /v1/ embeddings HTTP/1.1"),
    "tab for a space": first(b"POST\t/v1/embeddings HTTP/1.1"),
    "two spaces": first(b"POST  /v1/embeddings HTTP/1.1"),
    "space at the end": first(b"POST /v1/embeddings HTTP/1.1 "),
    "space before the method": first(b" POST /v1/embeddings HTTP/1.1"),
    "unknown method": first(b"PSOT /v1/embeddings HTTP/1.1"),
    "small method": first(b"post /v1/embeddings HTTP/1.1"),
    "HTTP/2.0": first(b"POST /v1/embeddings HTTP/2.0"),
    "HTTP/1.9": first(b"POST /v1/embeddings HTTP/1.9"),
    "HTTP/0.9": first(b"POST /v1/embeddings HTTP/0.9"),
    "HTTP/1.10": first(b"POST /v1/embeddings HTTP/1.10"),
    "small http": first(b"POST /v1/embeddings http/1.1"),
    "no version": first(b"POST /v1/embeddings"),
    "two content types": with_header(b"content-type: text/plain\r\ncontent-type: application/json"),
    "two authorizations": with_header(b"authorization: a\r\nauthorization: b"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    # Chunks.
    "chunk size no number": CHUNKED + b"zz\r\nabc\r\n" + EMPTY,
    "chunk size plus": CHUNKED + b"+3\r\nabc\r\n" + EMPTY,
    "chunk size minus": CHUNKED + b"-3\r\nabc\r\n" + EMPTY,
    "chunk size 0x": CHUNKED + b"0x3\r\nabc\r\n" + EMPTY,
    "chunk size with a space before": CHUNKED + b" 3\r\nabc\r\n" + EMPTY,
    "chunk size with a space after": CHUNKED + b"3 \r\nabc\r\n" + EMPTY,
    "chunk size with a tab after": CHUNKED + b"3\t\r\nabc\r\n" + EMPTY,
    "chunk size empty": CHUNKED + b"\r\nabc\r\n" + EMPTY,
    "chunk size huge": CHUNKED + b"fffffffffffffffff\r\nabc",
    "chunk size with many zeros": CHUNKED + b"0" * 40 + b"3\r\nabc\r\n" + EMPTY,
    "chunk extension": CHUNKED + b"3;a=b\r\nabc\r\n" + EMPTY,
    "chunk extension without a value": CHUNKED + b"3;\r\nabc\r\n" + EMPTY,
    "chunk extension with LF": CHUNKED + b"3;\nxx\r\nabc\r\n" + EMPTY,
    "extension of the last chunk": CHUNKED + b"3\r\nabc\r\n0;a\r\n\r\n",
    "chunk line without an end": CHUNKED + b"3" + b"a" * 100,
    "chunk too long": CHUNKED + b"2\r\nabc\r\n" + EMPTY,
    "chunk too short": CHUNKED + b"4\r\nabc\r\n" + EMPTY,
    "chunk LF": CHUNKED + b"3\nabcdefghijk\n0\n\n",
    "chunk CR": CHUNKED + b"3\rabc\r\n" + EMPTY,
    "chunk data with LF": CHUNKED + b"3\r\nabc\n" + EMPTY,
    "trailer": CHUNKED + b"0\r\nhost: x\r\n\r\n",
    "trailer that would be a length": CHUNKED + b"0\r\ncontent-length: 9\r\n\r\n",
    "the end with LF": CHUNKED + b"3\r\nabc\r\n0\n\n   ",
}  # fmt: skip
EDGES = ("fast", "fast, byte by byte", "ordinary")


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", SMUGGLING)
async def test_ambiguous_request_is_refused_and_nothing_behind_it_is_read(
    client: Client, worker: StubWorker, name: str, edge: str
) -> None:
    seen = len(worker.seen)
    if edge == "ordinary":
        assert (await client.get("/livez")).status == 200
    everything = SMUGGLING[name] + request(PATH, body(f"smuggled {name} {edge}"))
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
    assert len(set(SMUGGLING.values())) == len(SMUGGLING) >= 120


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


async def test_empty_lines_before_a_request_are_ignored(client: Client) -> None:
    client.send(b"\r\n\r\n" + request(PATH, body("crlf")))
    assert (await client.reply()).status == 200


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
