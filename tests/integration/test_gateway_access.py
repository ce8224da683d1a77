"""Two real gateways with keys and limits, one Redis: who is let in, to what, and how often.

What is asked of time is asked by what came before what, never by a clock.
"""

import asyncio
import json
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from sluice_api import names, wire
from sluice_api.api_keys import NewKey
from tests.support.gateway_process import ROOT, GatewayProcess, Reply, service
from tests.support.keys_file import KeysFile, bearer
from tests.support.redis_server import RedisServer, running_redis
from tests.support.stub_worker import StubWorker, until

PATIENT = 20.0
"""Seconds that no request may reach; far above what a busy machine adds, far below a hang."""
SHARED = "sluice_gateway_limits_shared"
FAULTS = "sluice_gateway_limit_faults_total"


@dataclass
class Site:
    file: KeysFile
    redis: RedisServer
    worker: StubWorker
    one: GatewayProcess
    two: GatewayProcess

    async def change(self) -> None:
        """Write the keys file and wait until both gateways live by it."""
        before = [await self._files(gateway) for gateway in (self.one, self.two)]
        self.file.write()
        for gateway, count in zip((self.one, self.two), before, strict=True):
            await until(lambda: self._changed(gateway, count), 60, "the keys file")  # noqa: B023

    async def limit(self, tenant: str, **rates: str) -> None:
        """Give a tenant limits of which nothing is used yet, with the next change.

        What an earlier test has used would be carried over, in the gateways and in Redis.
        """
        self.file.tenant(tenant)
        await self.change()
        with self.redis.client() as client:
            for name in client.scan_iter(f"{names.REDIS_LIMITS_PREFIX}*"):
                if not name.endswith(b"gateways"):
                    client.delete(name)
        self.file.tenant(tenant, **rates)

    async def _changed(self, gateway: GatewayProcess, before: int) -> bool:
        return await self._files(gateway) > before

    async def _files(self, gateway: GatewayProcess) -> int:
        return gateway.log.count("keys file applied")

    async def ask(
        self, key: NewKey | str | None, model: str = "stub", text: str = "hello", two: bool = False
    ) -> Reply:
        gateway = self.two if two else self.one
        headers = bearer(key) if key is not None else {}
        return await gateway.post("/v1/embeddings", {"model": model, "input": text}, **headers)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("access")
    file = KeysFile(folder / "keys.yaml")
    file.tenant("search")
    file.write()
    for name in ("one", "two"):
        (folder / name).mkdir()
    with running_redis() as redis, StubWorker() as worker:
        url = [worker.url]
        table = [
            service("stub", url, namespace="search", public=False),
            service("stub", url, namespace="support", public=False),
            service("shared", url, namespace="lab", public=False, tenants=["search"]),
            service("open", url, namespace="lab"),
            service("closed", url, namespace="lab", public=False),
        ]
        options = (
            *("--auth", "keys", "--keys-file", str(file.path), "--redis-url", redis.unix_url),
            *("--cache-secret", str(folder / "cache.key")),
            *("--log-level", "debug", "--limit-gateways", "2"),
        )
        with (
            GatewayProcess(folder / "one", table, *options) as one,
            GatewayProcess(folder / "two", table, *options, "--access-log") as two,
        ):
            for gateway in (one, two):
                asyncio.run(gateway.ready("closed"))
            yield Site(file, redis, worker, one, two)


def code(reply: Reply) -> str:
    return str(reply.json()["error"]["code"])


# Who is let in ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/classify"),
        ("POST", "/v2/models/stub/infer"),
        ("POST", "/v2/models/stub/versions/r1/infer"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/stub"),
        ("GET", "/v2/models/stub"),
        ("GET", "/v2/models/stub/ready"),
    ],
)
@pytest.mark.parametrize("header", [None, "Bearer sk-sluice-nobody", "Basic c2VjcmV0"])
async def test_nobody_without_a_key(site: Site, method: str, path: str, header: str | None) -> None:
    headers = {"authorization": header} if header else {}
    async with await site.one.client() as client:
        if method == "POST":
            reply = await client.post(path, {"model": "open", "input": "x"}, **headers)
        else:
            reply = await client.get(path, **headers)
    assert reply.status == 401
    assert b"unauthorized" in reply.body
    assert reply.headers["www-authenticate"].startswith('Bearer realm="sluice"')
    assert ("error=" in reply.headers["www-authenticate"]) == (header is not None)
    assert reply.headers["x-should-retry"] == "false"


OPEN = {"/livez", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready"}
"""Routes of the document that nobody needs a key for. A new one must be put here, or ask."""


async def test_every_route_but_these_asks_for_a_key(site: Site) -> None:
    paths = (await site.one.get("/openapi.json")).json()["paths"]
    assert paths.keys() >= OPEN
    for path, methods in paths.items():
        for method in methods:
            target = re.sub(r"\{\w+(:path)?\}", "stub", path)
            async with await site.one.client() as client:
                if method == "post":
                    reply = await client.post(target, {})
                else:
                    reply = await client.get(target, method.upper())
            assert (reply.status != 401) == (path in OPEN), (method, path, reply)


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/", "/docs", "/openapi.json", "/v2", "/v2/health/ready"]
)
async def test_health_and_descriptions_need_no_key(site: Site, path: str) -> None:
    assert (await site.one.get(path)).status == 200


async def test_who_is_unknown_is_told_before_it_sends_its_body(site: Site) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 1000000\r\n"
    async with await site.one.client() as client:
        client.send(head + b"expect: 100-continue\r\n\r\n")
        assert (await client.reply()).status == 401
        assert await client.closed()


async def test_callers_of_one_service_share_its_answers_with_no_other_one(tmp_path: Path) -> None:
    """Two services of one public model: the same revision, the same digest."""
    file = KeysFile(tmp_path / "keys.yaml")
    shared = wire.CacheRules(sharing="service")
    for tenant, namespace in (("anna", "lab"), ("bert", "lab"), ("carl", "shop")):
        file.tenant(tenant, namespace)
    anna, bert, carl = map(file.key, ("anna", "bert", "carl"))
    file.write()
    with running_redis() as redis, StubWorker() as worker:
        table = [
            service("emb", [worker.url], namespace=namespace, public=False, cache=shared)
            for namespace in ("lab", "shop")
        ]
        options = (
            *("--auth", "keys", "--keys-file", str(file.path), "--redis-url", redis.unix_url),
            *("--cache-secret", str(tmp_path / "cache.key")),
            *("--redis-timeout", "5s"),  # However busy the machine is.
        )
        (tmp_path / "other").mkdir()
        with (
            GatewayProcess(tmp_path, table, *options) as one,
            GatewayProcess(tmp_path / "other", table, *options) as other,
        ):

            def computed(cache_status: str) -> bool:
                """Whether it was: what is on its way into Redis is waited for there, and joined."""
                return "hit" not in cache_status and "collapsed" not in cache_status

            async def cached(gateway: GatewayProcess, key: NewKey) -> str:
                body = {"model": "emb", "input": "asked in the lab"}
                reply = await gateway.post("/v1/embeddings", body, **bearer(key))
                assert reply.status == 200, reply.body
                return reply.headers["cache-status"]

            assert "fwd=miss; stored" in await cached(one, anna)
            assert "hit" in await cached(one, bert)
            assert not computed(await cached(other, bert)), "through Redis"
            assert "fwd=miss; stored" in await cached(one, carl)
            assert not computed(await cached(other, carl))
        assert worker.computed == 2


async def test_a_tenant_sees_what_is_its_own_shared_with_it_or_open(site: Site) -> None:
    site.file.tenant("search")
    site.file.tenant("support")
    search, support = site.file.key("search"), site.file.key("support")
    await site.change()

    async def listed(key: NewKey) -> list[str]:
        async with await site.one.client() as client:
            reply = await client.get("/v1/models", **bearer(key))
        return [entry["id"] for entry in reply.json()["data"]]

    assert await listed(search) == ["lab/open", "lab/shared", "stub"]
    assert await listed(support) == ["lab/open", "stub"]
    for key in (search, support):
        for model in await listed(key):
            assert (await site.ask(key, model)).status == 200, model
    for key, model in (
        (search, "support/stub"),
        (support, "lab/shared"),
        (support, "shared"),
        (search, "lab/closed"),
        (search, "open"),
    ):
        reply = await site.ask(key, model)
        assert (reply.status, code(reply)) == (404, "model_not_found"), model


async def test_one_tenants_answers_are_not_anothers(site: Site) -> None:
    """Also not whole ones by body, which is the same here."""
    site.file.tenant("search")
    site.file.tenant("support")
    search, support = site.file.key("search"), site.file.key("support")
    await site.change()
    for _ in range(3):
        mine = await site.ask(search, "lab/open", "secret of search")
    assert "; hit" in mine.headers["cache-status"]
    other = await site.ask(support, "lab/open", "secret of search")
    assert "fwd=miss" in other.headers["cache-status"]


async def test_rights_that_were_taken_away_end_kept_answers_too(site: Site) -> None:
    site.file.tenant("search")
    key = site.file.key("search")
    await site.change()
    for _ in range(3):
        reply = await site.ask(key, "stub", "kept")
    assert "; hit" in reply.headers["cache-status"]
    site.file.tenant("search", services=("lab/*",))
    await site.change()
    assert (await site.ask(key, "stub", "kept")).status == 404
    assert (await site.ask(key, "lab/open", "kept")).status == 200
    site.file.tenant("search", namespace="support")
    await site.change()
    moved = await site.ask(key, "stub", "kept")
    assert (moved.status, "; hit" in moved.headers["cache-status"]) == (200, True)
    assert (await site.ask(key, "search/stub", "kept")).status == 404


class Callers:
    """Requests with one key over connections that stay open, and what became of each in order."""

    def __init__(self, site: Site, key: NewKey) -> None:
        self.site = site
        self.key = key
        self.statuses: list[int] = []
        self.stopped = False

    async def run(self, gateway: GatewayProcess) -> None:
        async with await gateway.client() as client:
            number = 0
            while not self.stopped:
                number += 1
                body = {"model": "stub", "input": f"text {number % 7}"}
                reply = await client.post("/v1/embeddings", body, **bearer(self.key))
                self.statuses.append(reply.status)

    async def answers(self, status: int, count: int = 20) -> None:
        """Wait for so many answers of ``status``, counted from the last of another one."""
        await until(lambda: self.statuses[-count:] == [status] * count, 60, f"{count} × {status}")

    @property
    def turns(self) -> int:
        """How often the status was another one than before."""
        pairs = zip(self.statuses, self.statuses[1:], strict=False)
        return sum(before != after for before, after in pairs)


async def test_rotation_and_expiry_under_load(site: Site) -> None:
    """Each key is refused for good from its end on, the others are always let in."""
    site.file.tenant("search")
    stays, revoked, expires = (site.file.key("search") for _ in range(3))
    await site.change()
    callers = [Callers(site, key) for key in (stays, revoked, expires)]
    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(caller.run(site.one))
        for caller in callers:
            await caller.answers(200)
        site.file.revoke(revoked)
        # Only now that it was let in, which may take longer than any key that ends soon lives.
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=4)
        site.file.expire(expires, end)
        await site.change()
        await callers[1].answers(401)
        await callers[2].answers(401)
        assert datetime.now(UTC) >= end
        await callers[0].answers(200)
        for caller in callers:
            caller.stopped = True
    assert set(callers[0].statuses) == {200}
    assert [caller.turns for caller in callers] == [0, 1, 1]


async def test_a_broken_file_changes_nothing_and_is_counted(site: Site) -> None:
    site.file.tenant("search")
    key = site.file.key("search")
    await site.change()
    good = site.file.path.read_text()
    before = await site.one.metric("sluice_gateway_keys_faults_total")
    broken = site.file.path.with_suffix(".broken")
    broken.write_text(good.replace("tenants", "tenant"))
    broken.replace(site.file.path)  # In one step: an empty file would be another fault.

    async def counted() -> bool:
        return await site.one.metric("sluice_gateway_keys_faults_total") > before

    await until(counted, 60, "a file that was refused")
    assert (await site.ask(key)).status == 200
    assert "did you mean tenants" in site.one.log
    await site.change()
    assert await site.one.metric("sluice_gateway_keys") >= 1
    assert await site.one.metric("sluice_gateway_keys_age_seconds") < PATIENT


# How often ----------------------------------------------------------------------------------------


async def shares(site: Site, wanted: bool) -> None:
    for gateway in (site.one, site.two):

        async def reached(gateway: GatewayProcess = gateway) -> bool:
            return bool(await gateway.metric(SHARED)) == wanted

        await until(reached, 60, f"limits shared: {wanted}")


async def drain(site: Site, key: NewKey, path: str = "stub") -> tuple[int, Reply]:
    """Ask both gateways in turn until neither lets in any more; how many came, and a refusal."""
    came = refused = 0
    last: Reply | None = None
    while refused < 12:
        reply = await site.ask(key, path, secrets.token_hex(8), two=(came + refused) % 2 == 1)
        if reply.status == 200:
            came, refused = came + 1, 0
            continue
        assert (reply.status, code(reply)) == (429, "rate_limited")
        refused, last = refused + 1, reply
        await asyncio.sleep(0.05)  # For Redis to be asked, as Retry-After says.
    assert last is not None
    return came, last


async def test_gateways_share_a_limit(site: Site) -> None:
    await site.limit("search", requests="40/h")
    key = site.file.key("search")
    await site.change()
    await shares(site, True)
    first = await site.ask(key)
    assert first.headers["x-ratelimit-limit-requests"] == "40"
    assert first.headers["x-ratelimit-remaining-requests"] == "39"
    came, refusal = await drain(site, key)
    assert 40 <= 1 + came <= 40 + 20, "the burst, and the part of the other gateway at worst"
    wait = int(refusal.headers["retry-after-ms"]) / 1000
    assert 60 < wait <= 3600 and refusal.headers["retry-after"] == str(-(-int(wait * 1000) // 1000))
    assert refusal.headers["x-should-retry"] == "true"
    assert refusal.headers["x-ratelimit-remaining-requests"] == "0"
    assert await site.one.metric(
        "sluice_gateway_denials_total", tenant="search", code="rate_limited"
    )


async def test_models_are_listed_within_the_limit_too(site: Site) -> None:
    await site.limit("search", requests="3/h")
    key = site.file.key("search")
    await site.change()
    async with await site.one.client() as client:
        statuses = [(await client.get("/v1/models", **bearer(key))).status for _ in range(20)]
    # Not in which order: what the other gateway leaves may come while these are asked.
    assert statuses[0] == 200 and 1 <= statuses.count(200) <= 3 + 2
    assert set(statuses) == {200, 429}


async def test_answers_from_the_cache_cost_no_inputs(site: Site) -> None:
    await site.limit("search", inputs="20/h")
    key = site.file.key("search")
    await site.change()
    await shares(site, True)
    texts = [f"input {number}" for number in range(10)]
    for _ in range(6):
        body = {"model": "stub", "input": texts}
        reply = await site.one.post("/v1/embeddings", body, **bearer(key))
        assert reply.status == 200
    refused = await site.one.post(
        "/v1/embeddings", {"model": "stub", "input": [f"x{n}" for n in range(21)]}, **bearer(key)
    )
    assert (refused.status, code(refused)) == (400, "too_many_inputs")
    came, last = await drain(site, key)
    assert 10 <= came <= 20
    assert "x-ratelimit-limit-inputs" in last.headers
    hit = await site.one.post("/v1/embeddings", {"model": "stub", "input": texts}, **bearer(key))
    assert hit.status == 200


async def test_tokens_are_charged_after_the_answer(site: Site) -> None:
    await site.limit("search", tokens="10/h")
    key = site.file.key("search")
    await site.change()
    long = " ".join(["word"] * 40)
    assert (await site.ask(key, "stub", long)).status == 200
    reply = await site.ask(key, "stub", "another")
    assert (reply.status, code(reply)) == (429, "rate_limited")
    assert reply.headers["x-ratelimit-limit-tokens"] == "10"
    assert (await site.ask(key, "stub", long)).status == 200, "from the cache"


async def test_a_stopped_redis_leaves_each_gateway_its_part(site: Site) -> None:
    await site.limit("search", requests="12/h")
    await site.limit("support", requests="1000/s")
    limited, busy = site.file.key("search"), site.file.key("support")
    await site.change()
    await site.ask(busy)
    await shares(site, True)
    slowest = 0.0
    came: Counter[str] = Counter()
    site.redis.freeze()
    try:
        for number in range(30):
            for name, key, two in (
                ("one", limited, False),
                ("two", limited, True),
                ("busy", busy, False),
            ):
                began = time.monotonic()
                reply = await site.ask(key, "stub", f"stopped {number} {two}", two=two)
                slowest = max(slowest, time.monotonic() - began)
                assert reply.status in (200, 429), reply
                came[name] += reply.status == 200
        await shares(site, False)
        assert await site.one.metric(FAULTS) >= 1
    finally:
        site.redis.thaw()
    assert came == {"one": 6, "two": 6, "busy": 30}
    assert slowest < PATIENT
    await shares(site, True)
    more, _ = await drain(site, limited)
    assert more <= 12, "what was used while Redis was away is known to it now"
    assert (await site.ask(busy)).status == 200


async def test_redis_learns_no_names(site: Site) -> None:
    await site.limit("search", requests="40/h:41")
    key = site.file.key("search")
    await site.change()
    await site.ask(key)
    with site.redis.client() as client:

        async def there() -> bool:
            return len(client.keys("sluice:{limits}:*")) >= 2

        await until(there, 60, "the bucket")
        for name in client.keys("*"):
            value = client.get(name) if client.type(name) == b"string" else b""
            for word in (b"search", b"support", key.text.encode(), key.id.encode()):
                assert word not in name + (value or b"")
            # Or it came to its end while these were looked at, as leases do.
            assert 0 < client.pttl(name) < 48 * 3600 * 1000 or not client.exists(name)


# The OpenAI client --------------------------------------------------------------------------------


def openai_client(gateway: GatewayProcess, key: str, **options: Any) -> openai.OpenAI:
    url = f"http://127.0.0.1:{gateway.port}/v1"
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, **options)


async def test_the_openai_client(site: Site) -> None:
    await site.limit("search", requests="2/h")
    site.file.tenant("support")
    past = datetime.now(UTC) - timedelta(hours=1)
    right, old = site.file.key("support"), site.file.key("support", past)
    limited = site.file.key("search")
    await site.change()

    def ask(key: str) -> Any:
        with openai_client(site.one, key) as client:
            return client.embeddings.create(model="stub", input="hello")

    def calls() -> None:
        assert len(ask(right.text).data) == 1
        for wrong, message in (("sk-wrong", "not known"), (old.text, "has expired")):
            with pytest.raises(openai.AuthenticationError, match=message) as refused:
                ask(wrong)
            assert refused.value.code == "unauthorized"
            assert refused.value.type == "authentication_error"
        with pytest.raises(openai.RateLimitError, match="has used its requests") as told:
            _ = [ask(limited.text) for _ in range(10)]
        assert told.value.code == "rate_limited"
        assert float(told.value.response.headers["retry-after"]) >= 1
        assert told.value.response.headers["x-ratelimit-limit-requests"] == "2"

    await asyncio.to_thread(calls)


# Records ------------------------------------------------------------------------------------------


async def test_the_access_log_names_tenant_and_key_id(site: Site) -> None:
    site.file.tenant("search")
    key = site.file.key("search")
    await site.change()
    async with await site.two.client() as client:
        body = {"model": "stub", "input": "logged"}
        await client.post("/v1/embeddings", body, x_request_id="find-me", **bearer(key))
    # Of a gateway that has had few requests: nobody else reads its lines, and a pipe is small.
    assert site.two.process is not None and site.two.process.stdout is not None
    found = {}
    while found.get("request_id") != "find-me":
        found = json.loads(await asyncio.to_thread(site.two.process.stdout.readline))
    assert (found["tenant"], found["key"]) == ("search", key.id)
    assert key.text not in json.dumps(found)


async def test_no_key_is_told_to_anybody(site: Site) -> None:
    """Runs last: whatever the others did, no secret of a key has left the gateways."""
    await site.limit("search", requests="1/h")
    limited = site.file.key("search")
    await site.change()
    pages = []
    for key in (limited.text, limited.text + "x", limited.text.upper(), "x" + limited.text):
        for body in ({"model": "stub", "input": "x"}, {"model": key}, {"input": 3}):
            for gateway in (site.one, site.two):
                pages.append((await gateway.post("/v1/embeddings", body, **bearer(key))).headers)
    for gateway in (site.one, site.two):
        pages.append(gateway.log)
        for path in ("/metrics", "/internal/services", "/readyz"):
            pages.append((await gateway.get(path, admin=True)).body.decode())
    told = "\n".join(map(str, pages))
    assert "keys file applied" in told and limited.id not in told
    for made in site.file.made:
        assert made.text[20:] not in told and made.sha256 not in told


def test_an_unusable_file_ends_the_start(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("tenants:\n- name: search\n  namespaces: [search]\n  limit: {}\n")
    (tmp_path / "services.json").write_text('{"services": []}')
    result = subprocess.run(
        [
            *(sys.executable, "-m", "sluice_gateway", "--port", "0", "--admin-port", "0"),
            *("--discovery", f"static:{tmp_path / 'services.json'}"),
            *("--auth", "keys", "--keys-file", str(path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 78
    assert f"{path} line 4: tenants[0].limit: this field does not exist" in result.stderr
    assert "did you mean limits?" in result.stderr
