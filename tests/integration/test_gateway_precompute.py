"""Answers that are there before anybody asks, through a whole gateway."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sluice_api import wire
from sluice_api.tasks import Task
from tests.support.gateway_process import GatewayProcess, service
from tests.support.redis_server import RedisServer, running_redis
from tests.support.stub_worker import Behaviour, StubWorker, until

PATH = "/v1/embeddings"
METRIC = "sluice_gateway_precomputed"
SHARED = wire.CacheRules(sharing="service")


def asked(*texts: str) -> list[wire.Precomputed]:
    return [
        wire.Precomputed(task=Task.EMBEDDINGS, body={"input": list(texts)}),
        wire.Precomputed(task=Task.CLASSIFICATION, body={"input": texts[0]}),
    ]


def listed(worker: StubWorker, *texts: str, **more: Any) -> wire.Service:
    return service("emb", [worker.url], cache=SHARED, precompute=asked(*texts), **more)


async def done(gateway: GatewayProcess, count: int, state: str = "done", name: str = "emb") -> None:
    async def seen() -> bool:
        return await gateway.metric(METRIC, service=name, state=state) == count

    await until(seen, 60, f"{count} {state}: {gateway.log[-2000:]}")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


async def test_answers_are_there_before_anybody_asks(tmp_path: Path) -> None:
    with StubWorker() as worker, GatewayProcess(tmp_path, [listed(worker, "a", "b")]) as gateway:
        await done(gateway, 3)
        assert sorted(worker.inputs.elements()) == ["a", "a", "b"]
        for text in ("a", "b"):
            reply = await gateway.post(PATH, {"model": "emb", "input": text})
            assert reply.headers["cache-status"].startswith("Sluice; hit")
        told = (await gateway.services())["emb"]
        assert told["precomputed"] == {"done": 3, "pending": 0, "failed": 0}
        requests = "sluice_gateway_requests_total"
        assert await gateway.metric(requests, service="emb") == 2, "its own are not counted"


async def test_new_revision_and_new_list(tmp_path: Path) -> None:
    with (
        StubWorker() as old,
        StubWorker(Behaviour(revision="r2", digest="sha256:" + "ee" * 32)) as new,
        GatewayProcess(tmp_path, [listed(old, "a")]) as gateway,
    ):
        await done(gateway, 2)
        await gateway.follow([listed(new, "a", revision="r2")])
        await until(lambda: new.computed == 2)
        await gateway.follow([listed(new, "c", revision="r2")])
        await until(lambda: new.inputs["c"] == 2)
        await gateway.follow([service("emb", [new.url], cache=SHARED, revision="r2")])
        await done(gateway, 0)


async def test_sleeping_service_is_not_woken_and_nothing_is_demand(tmp_path: Path) -> None:
    with StubWorker(Behaviour(delay=0.3)) as worker:
        table = [service("emb", [], cache=SHARED, precompute=asked("a"))]
        with GatewayProcess(tmp_path, table) as gateway:
            records: list[wire.Demand] = []
            listening = asyncio.create_task(gateway.demand(records))
            await until(lambda: len(records) >= 1, 60)
            await gateway.follow([listed(worker, "a")])
            await done(gateway, 2)
            count = len(records)
            await until(lambda: len(records) > count, 60)
            listening.cancel()
            assert not any(r.wake or r.arrivals or r.held for r in records)
            assert not any(r.in_flight or r.completions for r in records)


async def test_another_gateway_finds_them_in_redis(tmp_path: Path, redis: RedisServer) -> None:
    options = ("--redis-url", redis.unix_url, "--cache-secret", str(tmp_path / "secret"))
    options += ("--redis-timeout", "5s")  # However busy the machine is.
    folders = [tmp_path / "one", tmp_path / "two"]
    with StubWorker() as worker:
        for folder in folders:
            folder.mkdir()
            with GatewayProcess(folder, [listed(worker, "a", "b")], *options) as gateway:
                await done(gateway, 3)
        assert worker.computed == 3


async def young(gateway: GatewayProcess, seconds: float) -> bool:
    """Whether an answer from the cache is so far from its end."""
    reply = await gateway.post(PATH, {"model": "emb", "input": "a"})
    return int(reply.headers["cache-status"].partition("; ttl=")[2]) > seconds


async def test_what_redis_has_and_is_old_is_renewed_before_it_expires(
    tmp_path: Path, redis: RedisServer
) -> None:
    """The first gateway's answers live 100 s, which is old where they are to live 1000 s."""
    options = ("--redis-url", redis.unix_url, "--cache-secret", str(tmp_path / "secret"))
    with StubWorker() as worker:
        for ttl, computed in ((100.0, 2), (1000.0, 4)):
            folder = tmp_path / str(ttl)
            folder.mkdir()
            rules = wire.CacheRules(sharing="service", ttl_seconds=ttl)
            table = [service("emb", [worker.url], cache=rules, precompute=asked("a"))]
            with GatewayProcess(folder, table, *options) as gateway:
                await done(gateway, 2)
                await until(lambda: worker.computed == computed, 60, str(worker.computed))  # noqa: B023
                # Who asks just then may still be given the old answer.
                await until(partial(young, gateway, 0.8 * ttl), 60, "the renewed answer")
            assert worker.computed == computed


async def test_what_cannot_be_computed_is_told(tmp_path: Path) -> None:
    with StubWorker() as worker:
        entries = [
            wire.Precomputed(task=Task.EMBEDDINGS, body={"input": "too long"}),
            wire.Precomputed(task=Task.EMBEDDINGS, body={"inputs": "a"}),
            wire.Precomputed(task=Task.QUESTION_ANSWERING, body={"input": []}),
            wire.Precomputed(task=Task.EMBEDDINGS, body={"input": "a"}),
        ]
        table = [service("emb", [worker.url], cache=SHARED, precompute=entries)]
        with GatewayProcess(tmp_path, table) as gateway:
            await done(gateway, 1)
            await done(gateway, 3, "failed")
            for code in ("input_too_long", "unknown_field", "invalid_field"):
                assert code in gateway.log
            assert '"level":"error"' not in gateway.log


async def test_an_input_that_is_refused_keeps_no_other_from_being_answered(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(30)]
    listed = [*texts[:7], "too long", *texts[7:29], "this is too long", texts[29]]
    questions = [{"question": text, "context": "c"} for text in ("too long", "who")]
    pairs = {"query": "q", "documents": ["a", "too long", "b"], "top_n": 3}
    entries = [
        wire.Precomputed(task=Task.EMBEDDINGS, body={"input": listed}),
        wire.Precomputed(task=Task.QUESTION_ANSWERING, body={"input": questions}),
        wire.Precomputed(task=Task.RERANK, body=pairs),
    ]
    tasks = [entry.task for entry in entries]
    with StubWorker(Behaviour(tasks=tasks)) as worker:
        table = [service("emb", [worker.url], cache=SHARED, precompute=entries)]
        with GatewayProcess(tmp_path, table) as gateway:
            await done(gateway, 4, "failed")
            await done(gateway, 33)
            for text in texts:
                reply = await gateway.post(PATH, {"model": "emb", "input": text})
                assert reply.headers["cache-status"].startswith("Sluice; hit")
            for place in ("0].body.input[7]", "0].body.input[30]", "1].body.input[0]"):
                assert f"spec.cache.precompute[{place}" in gateway.log
            assert "spec.cache.precompute[2].body.documents[1]" in gateway.log


async def test_entities_are_found_by_what_the_service_s_own_namespace_may_see(
    tmp_path: Path,
) -> None:
    def relating(name: str, text: str, entities_from: str = "", **parameters: str) -> wire.Service:
        body = {"input": text, "parameters": parameters}
        entry = wire.Precomputed(task=Task.RELATION_EXTRACTION, body=body)
        return service(
            name,
            [relater.url],
            namespace="lab",
            public=False,
            cache=SHARED,
            precompute=[entry],
            entities_from=entities_from or None,
        )

    with (
        StubWorker(Behaviour(tasks=[Task.TOKEN_CLASSIFICATION])) as finder,
        StubWorker(Behaviour(tasks=[Task.RELATION_EXTRACTION])) as relater,
    ):
        table = [
            *(
                service("ner", [finder.url], namespace=namespace, public=False)
                for namespace in ("lab", "default", "shop")
            ),
            service("open", [finder.url], namespace="shop"),
            relating("preset", "a private one", "ner"),
            relating("named", "a chosen one", entities_from="ner"),
            relating("public", "a public one", "shop/open"),
            relating("foreign", "a foreign one", "shop/ner"),
            relating("default", "a default one", "default/ner"),
        ]
        with GatewayProcess(tmp_path, table) as gateway:
            for name in ("preset", "named", "public"):
                await done(gateway, 1, name=name)
            for name in ("foreign", "default"):
                await done(gateway, 1, "failed", name=name)
            assert gateway.log.count("model_not_found") == 2
        assert relater.computed == 3
        assert finder.inputs.keys() == {"a private one", "a chosen one", "a public one"}


async def test_generated_answers_too(tmp_path: Path) -> None:
    tasks = [Task.TEXT_GENERATION, Task.CHAT]
    body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    streamed = body | {"messages": [{"role": "user", "content": "Ho"}], "stream": True}
    entries = [wire.Precomputed(task=Task.CHAT, body=each) for each in (body, streamed)]
    with StubWorker(Behaviour(tasks=tasks)) as worker:
        table = [service("emb", [worker.url], cache=SHARED, precompute=entries)]
        with GatewayProcess(tmp_path, table) as gateway:
            await done(gateway, 2)
            for each in (body, streamed):
                reply = await gateway.post("/v1/chat/completions", each | {"model": "emb"})
                assert reply.headers["cache-status"].startswith("Sluice; hit")
        assert len(worker.seen) == 2
