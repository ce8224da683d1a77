"""Relations between entities that another service finds first, through a whole gateway.

The stub finds one entity at the beginning of every text; what the relation worker is then asked is
what counts here. Real models do the same in ``test_encoder_tasks``.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from tests.support.gateway_process import Client, GatewayProcess, Reply, request, service
from tests.support.stub_worker import Behaviour, StubWorker, until

PATH = "/v1/relations"
FOUND = [{"start": 0, "end": 1, "label": "X"}]


def finding(**more: Any) -> Behaviour:
    return Behaviour(tasks=[Task.TOKEN_CLASSIFICATION], **more)


def relating(**more: Any) -> Behaviour:
    return Behaviour(tasks=[Task.RELATION_EXTRACTION], **more)


@dataclass
class Platform:
    """A gateway before a service that finds entities and one that relates them."""

    gateway: GatewayProcess
    finder: StubWorker
    relater: StubWorker

    async def ask(self, *texts: Any, **more: Any) -> Reply:
        headers = more.pop("headers", {})
        parameters = more.pop("parameters", {"entities_from": "ner"})
        body = {"model": "rel", "input": texts[0] if len(texts) == 1 else texts, **more}
        return await self.gateway.post(PATH, body | {"parameters": parameters}, **headers)

    def asked(self) -> list[Any]:
        """What the relation worker was asked last."""
        given: list[Any] = msgspec.json.decode(self.relater.seen[-1].body)["input"]
        return given


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with (
        StubWorker(finding()) as finder,
        StubWorker(relating()) as relater,
        StubWorker() as other,
    ):
        services = [
            service("ner", [finder.url]),
            service("rel", [relater.url]),
            service("preset", [relater.url], entities_from="ner"),
            service("preset-elsewhere", [relater.url], namespace="lab", entities_from="ner"),
            service("emb", [other.url]),
            service("hidden", [finder.url], public=False),
            service(
                "asleep",
                [],
                tasks=[Task.TOKEN_CLASSIFICATION],
                limits=wire.LimitRules(start_timeout_seconds=0.2),
            ),
        ]
        folder = tmp_path_factory.mktemp("composition")
        with GatewayProcess(folder, services) as gateway:
            yield Platform(gateway, finder, relater)


@pytest.fixture
async def platform(shared: Platform) -> AsyncIterator[Platform]:
    for name in ("ner", "rel", "preset", "emb"):
        await shared.gateway.ready(name)
    yield shared
    shared.finder.behaviour, shared.relater.behaviour = finding(), relating()


async def test_what_is_found_is_asked_about(platform: Platform) -> None:
    reply = await platform.ask("a likes b")
    assert reply.status == 200, reply.body
    assert platform.asked() == [{"entities": FOUND, "text": "a likes b"}]
    assert b"entities_from" not in platform.relater.seen[-1].body
    question = msgspec.json.decode(platform.finder.seen[-1].body)
    assert question["input"] == ["a likes b"]
    assert question["parameters"] == {"aggregation": "first"}


async def test_only_inputs_without_entities_are_looked_through(platform: Platform) -> None:
    given = {"text": "b knows c", "entities": [{"start": 0, "end": 1, "label": "Y"}]}
    reply = await platform.ask("a first", given, "a second")
    assert reply.status == 200, reply.body
    assert [entry["entities"][0]["label"] for entry in platform.asked()] == ["X", "Y", "X"]
    assert msgspec.json.decode(platform.finder.seen[-1].body)["input"] == ["a first", "a second"]
    before = len(platform.finder.seen)
    assert (await platform.ask(given | {"text": "b meets c"})).status == 200
    assert len(platform.finder.seen) == before
    assert b"entities_from" not in platform.relater.seen[-1].body


async def test_both_answers_are_cached(platform: Platform) -> None:
    first = await platform.ask("a is kept")
    before = len(platform.finder.seen), len(platform.relater.seen)
    again = await platform.ask("a is kept")
    given = await platform.ask({"text": "a is kept", "entities": FOUND}, parameters={})
    assert (len(platform.finder.seen), len(platform.relater.seen)) == before
    assert first.body == again.body == given.body
    for reply in (again, given):
        assert reply.headers["cache-status"].startswith("Sluice; hit")


async def test_another_revision_of_the_finder_is_asked_anew(tmp_path: Path) -> None:
    """What was found by the old one holds no longer; where the new one finds the same, the rest
    does."""
    digest = "sha256:" + "cd" * 32
    with (
        StubWorker(finding()) as old,
        StubWorker(finding(revision="r2", digest=digest)) as new,
        StubWorker(relating()) as relater,
    ):
        relation = service("rel", [relater.url])
        with GatewayProcess(tmp_path, [service("ner", [old.url]), relation]) as gateway:
            await gateway.ready("ner")
            await gateway.ready("rel")
            platform = Platform(gateway, new, relater)
            await platform.ask("a moves")
            await gateway.follow([service("ner", [new.url], revision="r2"), relation])
            reply = await platform.ask("a moves")
        assert (old.computed, new.computed, relater.computed) == (1, 1, 1)
        assert reply.headers["cache-status"].startswith("Sluice; hit")


async def test_answers_that_are_not_stored_get_the_entities_too(platform: Platform) -> None:
    reply = await platform.ask("a secret", headers={"cache_control": "no-store"})
    assert reply.status == 200, reply.body
    assert platform.asked() == [{"entities": FOUND, "text": "a secret"}]
    assert b"entities_from" not in platform.relater.seen[-1].body
    before = platform.finder.computed
    await platform.ask("a secret", headers={"cache_control": "no-store"})
    assert platform.finder.computed == before + 1


async def test_a_service_may_have_its_entities_found_by_default(platform: Platform) -> None:
    reply = await platform.ask("a default", model="preset", parameters={})
    assert reply.status == 200, reply.body
    assert platform.asked() == [{"entities": FOUND, "text": "a default"}]
    chosen = await platform.ask("a default", model="preset", parameters={"entities_from": "nobody"})
    assert (chosen.status, chosen.json()["error"]["code"]) == (404, "model_not_found")
    before = platform.finder.computed
    given = await platform.ask({"text": "a gift", "entities": []}, model="preset", parameters={})
    assert (given.status, platform.finder.computed) == (200, before)
    elsewhere = await platform.ask("a x", model="lab/preset-elsewhere", parameters={})
    error = elsewhere.json()["error"]
    assert (elsewhere.status, error["param"]) == (404, None)
    assert "'lab/ner'" in error["message"], "the name is meant where it was written"


@pytest.mark.parametrize(
    ("name", "status", "code", "words"),
    [
        ("nobody", 404, "model_not_found", "There is no model 'nobody'"),
        ("hidden", 404, "model_not_found", "There is no model 'hidden'"),
        ("emb", 400, "task_not_supported", "does not do token-classification"),
        ("asleep", 503, "starting", "No worker became ready"),
        ("", 400, "invalid_field", "a text of 1 to 128 characters"),
    ],
)
async def test_a_finder_that_cannot_be_asked_is_told_of(
    platform: Platform, name: str, status: int, code: str, words: str
) -> None:
    before = len(platform.relater.seen)
    reply = await platform.ask(f"a for {name}", parameters={"entities_from": name})
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (status, code)
    assert error["param"] == "parameters.entities_from"
    assert error["message"].startswith("parameters.entities_from: ") and words in error["message"]
    assert ("retry-after" in reply.headers) == (status == 503)
    assert len(platform.relater.seen) == before


async def test_what_the_finder_refuses_is_told_at_its_place(platform: Platform) -> None:
    given = {"text": "b", "entities": []}
    reply = await platform.ask(given, "a short", "a too long one")
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "input_too_long", "input[2]")
    assert "'ner'" in error["message"]
    platform.finder.behaviour = finding(refuse=ApiError("overloaded", "Busy.", retry_after=90.0))
    busy = await platform.ask("a busy")
    assert (busy.status, busy.json()["error"]["code"]) == (429, "overloaded")
    assert busy.headers["x-should-retry"] == "true"


@pytest.mark.parametrize(
    ("model", "parameters", "told", "param"),
    [
        ("rel", {"entities_from": "ner"}, "parameters.entities_from", "parameters.entities_from"),
        ("preset", {}, "spec.entitiesFrom of the service", None),
    ],
)
async def test_a_model_that_refuses_found_entities_is_told_of_by_who_has_them_found(
    platform: Platform, model: str, parameters: dict[str, str], told: str, param: str | None
) -> None:
    words = "this model finds the entities itself. Leave it out."
    given = {"text": f"b in {model}", "entities": FOUND}

    def refuse(where: str) -> None:
        platform.relater.behaviour = relating(
            refuse=ApiError("invalid_field", f"{where}: {words}", param=where)
        )

    for headers in ({}, {}, {"cache_control": "no-store"}):  # By the worker, and as remembered.
        refuse("input[0].entities")  # It is asked with a list.
        reply = await platform.ask(
            f"a in {model}", model=model, parameters=parameters, headers=headers
        )
        error = reply.json()["error"]
        assert (reply.status, error["param"]) == (400, param)
        assert error["message"].startswith(f"{told}: {words}")
        refuse("input.entities")
        own = await platform.ask(given, model=model, parameters=parameters)
        assert own.json()["error"]["param"] == "input.entities", "which the caller did send"


async def test_a_deadline_holds_for_both(platform: Platform) -> None:
    platform.finder.behaviour = finding(hang=True)
    reply = await platform.ask("a late", headers={"x_sluice_deadline_ms": "200"})
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (504, "deadline_exceeded")
    assert "'ner' did not find them" in error["message"]
    await until(lambda: platform.finder.running == 0)


async def test_who_leaves_stops_what_is_looked_for(platform: Platform) -> None:
    platform.finder.behaviour = finding(hang=True)
    aborted = platform.finder.aborted
    client = await Client.open(platform.gateway.port)
    body = {"model": "rel", "input": "a gone", "parameters": {"entities_from": "ner"}}
    client.send(request(PATH, body))
    await until(lambda: platform.finder.running == 1)
    client.close()
    await until(lambda: platform.finder.aborted == aborted + 1)


async def test_each_service_has_its_own_time(tmp_path: Path) -> None:
    """A finder that took its time, to wake perhaps, leaves the relation service all of its own."""
    with StubWorker(finding(delay=5.5)) as finder, StubWorker(relating()) as relater:
        table = [
            service("ner", [finder.url]),
            service("rel", [relater.url], limits=wire.LimitRules(timeout_seconds=5.0)),
        ]
        with GatewayProcess(tmp_path, table) as gateway:
            await gateway.ready("ner")
            await gateway.ready("rel")
            reply = await Platform(gateway, finder, relater).ask("a slow")
    assert reply.status == 200, reply.body


async def test_a_sleeping_finder_is_woken(platform: Platform) -> None:
    records: list[wire.Demand] = []
    listening = asyncio.create_task(platform.gateway.demand(records))
    await until(lambda: len(records) > 0)
    await platform.ask("a sleeper", parameters={"entities_from": "asleep"})
    await until(lambda: any(r.wake for r in records if r.service == "asleep"), 60)
    listening.cancel()
