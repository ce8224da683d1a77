"""What HTTP offers beside a plain request, on both edges: expectations, origins, forms, methods."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from sluice_api import wire
from tests.support.gateway_process import Client, GatewayProcess, Reply, request, service
from tests.support.stub_worker import StubWorker, until, vector_of

PATH = "/v1/embeddings"
POST = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n"
PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def services(worker: StubWorker) -> list[wire.Service]:
    return [service("emb", [worker.url]), service("emb", [worker.url], namespace="team")]


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    return ("--cors-origins", f"{PAGE},http://localhost:3000", "--max-body-mib", "1")


@pytest.fixture(params=["fast", "ordinary"])
async def client(gateway: GatewayProcess, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A connection on either edge."""
    async with await gateway.client() as connection:
        if request.param == "ordinary":
            assert (await connection.get("/livez")).status == 200
        yield connection


def body(text: str) -> bytes:
    return b'{"model":"emb","input":"%b"}' % text.encode()


def post(content: bytes, *lines: bytes, first: bytes = POST) -> bytes:
    more = b"".join(line + b"\r\n" for line in lines)
    return first + more + b"content-length: %d\r\n\r\n" % len(content) + content


# Expectations -------------------------------------------------------------------------------------


async def test_a_body_is_asked_for_before_it_is_sent(client: Client) -> None:
    content = body("continue")
    for _ in range(2):
        client.send(POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(content))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(content)
        assert (await client.reply()).status == 200


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (b"content-type: text/plain", 415, "unsupported_media_type"),
        (b"content-encoding: gzip", 415, "unsupported_media_type"),
        (b"x-sluice-deadline-ms: soon", 400, "invalid_field"),
        (b"content-length: 2000000", 413, "body_too_large"),
    ],
)
async def test_what_is_refused_anyway_is_not_asked_for(
    client: Client, line: bytes, status: int, code: str
) -> None:
    length = b"" if b"length" in line else b"content-length: 5\r\n"
    client.send(POST + b"expect: 100-continue\r\n" + line + b"\r\n" + length + b"\r\n")
    received = await client.reader.readuntil(b"\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 %d " % status), received  # and no 100 before it
    assert code.encode() in await client.reader.read(2000)
    assert await client.closed()  # whether a body comes all the same cannot be known


async def test_other_expectations_fail(client: Client) -> None:
    client.send(post(body("x"), b"expect: a miracle"))
    reply = await client.reply()
    assert (reply.status, reply.json()["error"]["code"]) == (417, "expectation_failed")


async def test_other_expectations_fail_without_the_body(client: Client) -> None:
    client.send(POST + b"expect: a miracle\r\ncontent-length: 5\r\n\r\n")
    received = await client.reader.readuntil(b"\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 417 ")
    assert b"expectation_failed" in await client.reader.read(2000)
    assert await client.closed()


async def test_http_1_0_knows_no_expectations(client: Client) -> None:
    old = POST.replace(b"1.1", b"1.0")
    client.send(post(body("x"), b"expect: 100-continue", first=old))
    assert (await client.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")


# The form of a body -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"; x=y',
        "application/vnd.api+json",
    ],
)
async def test_json_by_any_of_its_names(client: Client, kind: str) -> None:
    line = b"content-type: " + kind.encode() if kind else b"x: y"
    client.send(post(body("kind"), line))
    assert (await client.reply()).status == 200


@pytest.mark.parametrize(
    "line",
    [
        b"content-type: text/plain",
        b"content-type: application/x-www-form-urlencoded",
        b"content-type: multipart/form-data; boundary=x",
        b"content-type: application/octet-stream",
        b"content-type: application/octet-stream\r\ninference-header-content-length: 5",
        b"content-type: application/jsonp",
        b"content-type: application/json; charset=latin-1",
        b"content-type: application/json; charset=utf-16",
        b"content-encoding: gzip",
        b"content-encoding: br",
        b"content-encoding: zstd",
        b"content-encoding: deflate",
    ],
)
async def test_other_forms_are_refused(client: Client, worker: StubWorker, line: bytes) -> None:
    seen = len(worker.seen)
    client.send(post(body("form"), line) + post(body("behind a form")))
    reply = await client.reply()
    assert (reply.status, reply.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert (await client.reply()).status == 200  # its framing was sound
    assert all(b'"form"' not in each.body for each in worker.seen[seen:])


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ("Expect: a miracle", "expectation_failed", "Expect"),
        ("Content-Encoding: gzip", "unsupported_media_type", "Content-Encoding"),
        ("Content-Type: text/plain", "unsupported_media_type", "Content-Type"),
        ("Idempotency-Key: a b", "invalid_field", "Idempotency-Key"),
        ("x-sluice-deadline-ms: soon", "invalid_field", "x-sluice-deadline-ms"),
        ("x-sluice-priority: urgent", "invalid_field", "x-sluice-priority"),
    ],
)
async def test_the_header_at_fault_is_named(
    client: Client, line: str, code: str, param: str
) -> None:
    client.send(post(body("header"), line.encode()))
    error = (await client.reply()).json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert line.partition(": ")[2].split("/")[0] in error["message"]


async def test_who_speaks_tls_is_told_at_once(gateway: GatewayProcess) -> None:
    hello = b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(32)
    async with await gateway.client() as client:
        client.send(hello)
        reply = await client.reply(timeout=5)  # Long before the time for a head is over.
        assert (reply.status, reply.json()["error"]["code"]) == (400, "bad_http")
        assert "http://" in reply.json()["error"]["message"]
        assert await client.closed()


HOSTILE = {
    "deep": (b'{"model":"emb","input":' + b"[" * 100_000, "invalid_json"),
    "deep and closed": (
        b'{"model":"emb","input":' + b"[" * 5000 + b"]" * 5000 + b"}",
        "invalid_json",
    ),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "invalid_json"),
    "a huge number": (b'{"model":"emb","input":"x","dimensions":1e999}', "invalid_field"),
    "a long number": (
        b'{"model":"emb","input":"x","dimensions":%b}' % (b"9" * 5000),
        "invalid_field",
    ),
    "a large token": (b'{"model":"emb","input":[99999999999999999999]}', "invalid_field"),
    "no number": (b'{"model":"emb","input":"x","dimensions":NaN}', "invalid_json"),
    "the model twice": (b'{"model":"none","input":"x","model":"emb"}', "invalid_field"),
    "no UTF-8": (b'{"model":"emb","input":"\xff\xfe"}', "invalid_json"),
    "half a character": (b'{"model":"emb","input":"\\ud83d"}', "invalid_json"),
    "a surrogate in UTF-8": (b'{"model":"emb","input":"\xed\xa0\xbd"}', "invalid_json"),
    "a control character": (b'{"model":"emb","input":"\x01"}', "invalid_json"),
    "a byte order mark": (b'\xef\xbb\xbf{"model":"emb","input":"x"}', "invalid_json"),
    "two objects": (b'{"model":"emb","input":"x"}{}', "invalid_json"),
    "a list": (b'[{"model":"emb","input":"x"}]', "invalid_json"),
    "nothing": (b"", "invalid_json"),
    "too many": (b'{"model":"emb","input":[%b""]}' % (b'"x",' * 2048), "too_many_inputs"),
    "too long a name": (b'{"model":"%b","input":"x"}' % (b"n" * 100_000), "model_not_found"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bodies_are_refused_with_their_reason(
    client: Client, worker: StubWorker, name: str
) -> None:
    content, code = HOSTILE[name]
    seen = len(worker.seen)
    client.send(post(content))
    reply = await client.reply()
    assert reply.status in (400, 404), reply
    error = reply.json()["error"]
    assert error["code"] == code
    assert len(error["message"]) < 600
    assert (await client.post(PATH, body("after"))).status == 200
    assert all(b"after" in each.body for each in worker.seen[seen:])


# What is asked for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        b"http://t/v1/embeddings",
        b"HTTP://T/v1/embeddings",
        b"http://t/v1/embeddings?api-version=1",
        b"/v1/embeddings?a=b&c=%20",
        b"/v1/%65mbeddings",
    ],
)
async def test_targets_that_mean_the_same(client: Client, target: bytes) -> None:
    client.send(post(body("form"), first=b"POST %b HTTP/1.1\r\nhost: t\r\n" % target))
    assert (await client.reply()).json()["data"][0]["embedding"] == vector_of("form").tolist()
    assert (await client.get("/livez")).status == 200


@pytest.mark.parametrize("name", ["team/emb", "team%2Femb", "team%2femb"])
async def test_a_model_of_another_namespace_in_a_path(client: Client, name: str) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}
    answer = await client.post(f"/v2/models/{name}/infer", {"inputs": [tensor]})
    assert answer.json()["outputs"][0]["data"] == vector_of("x").tolist()
    assert (await client.get(f"/v1/models/{name}")).json()["id"] == "team/emb"
    assert (await client.get(f"/v2/models/{name}")).json()["name"] == "team/emb"
    assert (await client.get(f"/v2/models/{name}/ready")).json()["name"] == "team/emb"


async def test_an_offer_to_upgrade_is_ignored(client: Client) -> None:
    lines = (b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: x")
    client.send(post(body("upgrade"), *lines) + post(body("behind it")))
    for text in ("upgrade", "behind it"):
        assert (await client.reply()).json()["data"][0]["embedding"] == vector_of(text).tolist()


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (PATH, "POST, OPTIONS"),
        ("/predict", "POST, OPTIONS"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/models/emb", "GET, HEAD, OPTIONS"),
        ("/v2/models/emb", "GET, HEAD, OPTIONS"),
        ("/v2/models/emb/infer", "POST, OPTIONS"),
        ("/v2/models/emb/versions/r1/infer", "POST, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("*", "GET, HEAD, OPTIONS"),
    ],
)
async def test_methods_of_a_path(client: Client, path: str, allow: str) -> None:
    asked = await client.get(path, "OPTIONS")
    assert (asked.status, asked.headers["allow"], asked.body) == (204, allow, b"")
    if path != "*":
        refused = await client.get(path, "DELETE")
        assert (refused.status, refused.headers["allow"]) == (405, allow)
    if "POST" in allow:
        assert (await client.get(path)).status == 405


async def test_connect_is_refused(client: Client) -> None:
    client.send(b"CONNECT t:443 HTTP/1.1\r\nhost: t:443\r\n\r\n")
    assert (await client.reply()).status == 405
    assert await client.closed()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/nothing", "application/json"),
        ("/v1/embeddings/", "application/json"),
        ("/v2/nothing", "application/problem+json"),
        ("/v2/", "application/problem+json"),
        ("/nothing", "application/problem+json"),
        ("/predict/", "application/problem+json"),
    ],
)
async def test_unknown_paths_in_the_shape_of_their_neighbours(
    client: Client, path: str, kind: str
) -> None:
    for reply in (await client.post(path, b"{}"), await client.get(path)):
        assert (reply.status, reply.headers["content-type"]) == (404, kind)
        told = reply.json()
        error = told.get("error", told) if kind == "application/json" else told
        assert error["code"] == "route_not_found"
        assert (path[-1] == "/") == ("slash" in str(told))
        assert ("error" in told) == path.startswith(("/v1", "/v2"))


async def test_a_list_is_not_a_model_without_a_name(client: Client) -> None:
    reply = await client.get("/v1/models/")
    assert (reply.status, reply.json()["error"]["code"]) == (404, "route_not_found")
    assert "Leave out the slash at its end." in reply.json()["error"]["message"]


async def test_every_answer_has_a_request_id(client: Client) -> None:
    for path in ("/livez", "/v1/models", "/v1/models/none", "/nothing", "/docs", "/"):
        assert (await client.get(path)).headers["x-request-id"]
        assert (await client.get(path, x_request_id="mine.1")).headers["x-request-id"] == "mine.1"
        for odd in ("a b", "-x", "x" * 129, "<script>", "caf\xe9"):
            other = (await client.get(path, x_request_id=odd)).headers["x-request-id"]
            assert other and other != odd
    for given, kept in (("ok_1:2/3", True), ("no no", False)):
        reply = await client.post(PATH, body("id"), x_request_id=given)
        assert (reply.headers["x-request-id"] == given) is kept


async def test_what_is_wrong_behind_a_request_does_not_spoil_its_answer(
    client: Client, worker: StubWorker
) -> None:
    worker.behaviour.delay = 0.2
    try:
        slow = body(f"slow before an error {secrets.token_hex(8)}")
        client.send(request(PATH, slow) + b"POST /v1/embeddings HTTP/1.1\r\n\r\n")
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 400
        assert await client.closed()
    finally:
        worker.behaviour.delay = 0.0


# Pages of other sites -----------------------------------------------------------------------------


def exposed(reply: Reply) -> set[str]:
    return set(reply.headers["access-control-expose-headers"].split(", "))


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v2/models/emb/infer", "/predict"])
async def test_a_page_may_ask_whether_it_may_call(client: Client, path: str) -> None:
    asked = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization,content-type,x-stainless-os",
    }
    reply = await client.get(path, "OPTIONS", origin=PAGE, **asked)
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert reply.headers["access-control-allow-methods"] == "GET, HEAD, POST, OPTIONS"
    assert reply.headers["access-control-allow-headers"] == asked["access_control_request_headers"]
    assert reply.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in reply.headers
    refused = await client.get(path, "OPTIONS", origin="https://evil.example.com", **asked)
    assert refused.status == 403 and b"origin_not_allowed" in refused.body
    assert "access-control-allow-origin" not in refused.headers


async def test_a_page_may_read_its_answers(client: Client) -> None:
    for reply in (
        await client.post(PATH, body("page"), origin=PAGE),
        await client.post(PATH, body("page"), origin=PAGE),  # from the cache
        await client.post(PATH, b"{}", origin=PAGE),
        await client.get("/v1/models", origin=PAGE),
        await client.get("/nothing", origin=PAGE),
    ):
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert reply.headers["vary"] == "Origin"
        assert exposed(reply) >= {"x-request-id", "cache-status", "retry-after", "server-timing"}
    client.send(POST + b"origin: " + PAGE.encode() + b"\r\ncontent-length: 2000000\r\n\r\n")
    assert (await client.reply()).headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    ("rest", "status"),
    [(b"cookie: " + b"c" * 40_000 + b"\r\n\r\n", 431), (b"content-length: x\r\n\r\n", 400)],
)
async def test_a_page_may_read_what_is_wrong_with_its_head(
    client: Client, rest: bytes, status: int
) -> None:
    client.send(POST + b"origin: " + PAGE.encode() + b"\r\n" + rest)
    reply = await client.reply()
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, PAGE)


async def test_a_page_of_another_site_may_not(client: Client) -> None:
    for origin in ("https://evil.example.com", "null", PAGE + ".evil.example.com", PAGE.upper()):
        for reply in (
            await client.post(PATH, body("page"), origin=origin),
            await client.get("/v1/models", origin=origin),
        ):
            assert reply.status == 200
            assert "access-control-allow-origin" not in reply.headers
            assert reply.headers["vary"] == "Origin"


async def test_without_origins_pages_are_told_nothing(
    worker: StubWorker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = [service("emb", [worker.url])]
    with GatewayProcess(tmp_path_factory.mktemp("g"), table) as plain:
        await plain.ready("emb")
        async with await plain.client() as client:
            for reply in (
                await client.post(PATH, body("page"), origin=PAGE),
                await client.get("/v1/models", origin=PAGE),
                await client.get(
                    PATH, "OPTIONS", origin=PAGE, access_control_request_method="POST"
                ),
            ):
                assert reply.status in (200, 204)
                assert not {name for name in reply.headers if name.startswith("access-control")}
    options = ("--cors-origins", "*")
    with GatewayProcess(tmp_path_factory.mktemp("g"), table, *options) as everybody:
        await everybody.ready("emb")
        async with await everybody.client() as client:
            for reply in (
                await client.post(PATH, body("page"), origin=PAGE),
                await client.get("/v1/models", origin="null"),
            ):
                assert reply.headers["access-control-allow-origin"] == "*"
                assert "vary" not in reply.headers
    options = ("--cors-origins", PAGE, "--cors-credentials")
    with GatewayProcess(tmp_path_factory.mktemp("g"), table, *options) as trusting:
        await trusting.ready("emb")
        async with await trusting.client() as client:
            for origin, allowed in ((PAGE, "true"), ("https://evil.example.com", None)):
                reply = await client.post(PATH, body("page"), origin=origin)
                assert reply.headers.get("access-control-allow-credentials") == allowed


# Sent again ---------------------------------------------------------------------------------------


async def test_a_key_makes_equal_requests_one(client: Client, worker: StubWorker) -> None:
    text, key = f"once {secrets.token_hex(8)}", f"key-{secrets.token_hex(8)}"
    no_store = {"cache_control": "no-store", "idempotency_key": key}
    seen = len(worker.seen)
    first = await client.post(PATH, body(text), **no_store)
    second = await client.post(PATH, body(text), **no_store)
    assert (first.status, second.status) == (200, 200)
    assert first.body == second.body and len(worker.seen) == seen + 1
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    for path, content in ((PATH, body(text + "!")), ("/v1/classify", body(text))):
        reused = await client.post(path, content, idempotency_key=key)
        assert (reused.status, reused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    other = await client.post(PATH, body(text), idempotency_key=key + "x", cache_control="no-store")
    assert other.status == 200 and len(worker.seen) == seen + 2


async def test_equal_requests_with_a_key_wait_for_one_answer(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    seen = len(worker.seen)
    joined = await gateway.metric("sluice_gateway_idempotent_requests_total", outcome="joined")
    headers = {"cache_control": "no-store", "idempotency_key": "together"}
    worker.behaviour.delay = 0.5
    try:
        replies = await asyncio.gather(
            *[gateway.post(PATH, body("together"), **headers) for _ in range(10)]
        )
    finally:
        worker.behaviour.delay = 0.0
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1 and len(worker.seen) == seen + 1
    now = await gateway.metric("sluice_gateway_idempotent_requests_total", outcome="joined")
    replayed = [reply for reply in replies if "idempotent-replayed" in reply.headers]
    assert now - joined + len(replayed) == 9


async def test_who_sent_a_key_and_left_finds_the_answer(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    headers = {"cache_control": "no-store", "idempotency_key": "lost"}
    seen = len(worker.seen)
    worker.behaviour.delay = 0.3
    try:
        async with await gateway.client() as lost:
            lost.send(request(PATH, body("lost"), **headers))
            await until(lambda: len(worker.seen) > seen)
        again = await gateway.post(PATH, body("lost"), **headers)
    finally:
        worker.behaviour.delay = 0.0
    assert again.status == 200 and len(worker.seen) == seen + 1


async def test_a_failure_is_not_remembered(client: Client, worker: StubWorker) -> None:
    headers = {"idempotency_key": f"failed-{secrets.token_hex(8)}"}
    refused = await client.post(PATH, body("too long"), **headers)
    assert refused.status == 400
    again = await client.post(PATH, body("now it fits"), **headers)
    assert again.status == 200


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "caf\xe9"])
async def test_keys_that_cannot_be_used(client: Client, key: str) -> None:
    reply = await client.post(PATH, body("key"), idempotency_key=key)
    assert (reply.status, reply.json()["error"]["code"]) == (400, "invalid_field")
    assert "Idempotency-Key" in reply.json()["error"]["message"]
