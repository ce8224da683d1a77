"""A gateway in front of a real worker with a language model that learnt something."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from sluice_api.tasks import Task
from sluice_worker.examples.chat import data
from tests.support import held_worker
from tests.support.bad_input import Case, cases
from tests.support.event_stream import EventStream, data_of
from tests.support.gateway_process import Client, GatewayProcess, service
from tests.support.http_calls import post
from tests.support.stub_worker import until
from tests.support.trained import Models
from tests.support.worker_process import WorkerProcess

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def worker(trained_models: Models, hold: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(
        f"file://{trained_models.talker}",
        *("--revision", "r1", "--max-backlog", "5m", "--drain-grace", "0s"),
        name="talker",
        environment={held_worker.HOLD: str(hold)},
        program=(held_worker.__file__,),
    ) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def gateway(
    worker: WorkerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    table = [service("talker", [worker.url])]
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as process:
        asyncio.run(process.ready("talker", seconds=60))
        yield process


@pytest.fixture(params=["fast", "ordinary"])
async def client(gateway: GatewayProcess, request: pytest.FixtureRequest) -> Any:
    async with await gateway.client() as made:
        if request.param == "ordinary":
            await made.get("/livez")
        yield made


def chat(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "talker", "messages": messages, "stream": True, "temperature": 0} | more


async def test_answers_mean_something_plain_streamed_and_replayed(client: Client) -> None:
    right = 0
    for question, wanted in data()[1]:
        stream = await EventStream.open(client, CHAT, chat(question))
        text = await stream.text()
        plain = await client.post(CHAT, chat(question, stream=False))
        assert plain.headers["cache-status"].startswith("Sluice; hit")
        assert plain.json()["choices"][0]["message"]["content"] == text
        replay = await EventStream.open(client, CHAT, chat(question))
        assert replay.headers["cache-status"].startswith("Sluice; hit")
        assert await replay.text() == text
        right += text == wanted
    assert right >= 0.8 * len(data()[1])


async def test_a_model_that_does_not_sample_is_kept_without_a_temperature(client: Client) -> None:
    body = {"model": "talker", "prompt": f"The cow {secrets.token_hex(8)}", "max_tokens": 5}
    first = await client.post(COMPLETIONS, body)
    again = await client.post(COMPLETIONS, body)
    assert first.headers["cache-status"].startswith("Sluice; fwd=miss")
    assert again.headers["cache-status"].startswith("Sluice; hit")
    assert first.json()["choices"] == again.json()["choices"]


async def test_usage_is_counted_by_who_computes(client: Client) -> None:
    question = f"What does the owl say, {secrets.token_hex(4)}?"
    body = chat(question, stream_options={"include_usage": True})
    stream = await EventStream.open(client, CHAT, body)
    *_, last = data_of(await stream.rest())
    plain = await client.post(CHAT, chat(question, stream=False))
    assert last["usage"] == plain.json()["usage"]
    assert last["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("case", cases({Task.TEXT_GENERATION: "talker", Task.CHAT: "talker"}))
def test_bad_input_is_refused_by_name(gateway: GatewayProcess, case: Case) -> None:
    case.check(post(f"http://127.0.0.1:{gateway.port}{case.path}", case.body))


@pytest.mark.usefixtures("held")
async def test_the_worker_stops_when_the_last_one_leaves(
    gateway: GatewayProcess, worker: WorkerProcess, client: Client
) -> None:
    before = worker.metric("sluice_worker_written_tokens_total")
    body = chat("Tell", logit_bias={"0": -100})  # It never ends by itself.
    stream = await EventStream.open(client, CHAT, body)
    for _ in range(3):
        assert await stream.event() is not None, stream.status
    client.close()

    async def stopped() -> bool:
        return worker.metric("sluice_worker_running") == 0

    await until(stopped, what="the worker writes on")
    written = worker.metric("sluice_worker_written_tokens_total") - before
    assert 0 < written < 200, "it was written to the end"

    async def nothing_on_its_way() -> bool:
        (endpoint,) = (await gateway.services())["talker"]["endpoints"]
        return bool(endpoint["inFlight"] == 0)

    await until(nothing_on_its_way)


async def test_many_callers_at_once(gateway: GatewayProcess) -> None:
    base = f"http://127.0.0.1:{gateway.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="any", max_retries=0) as made:

        async def ask(number: int) -> str:
            messages: Any = [{"role": "user", "content": f"What does the cow say? {number % 5}"}]
            if number % 2:
                answer = await made.chat.completions.create(
                    model="talker", messages=messages, temperature=0
                )
                return answer.choices[0].message.content or ""
            stream = await made.chat.completions.create(
                model="talker", messages=messages, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*[ask(number) for number in range(30)])
    for number in range(5):
        assert len(set(texts[number::5])) == 1, json.dumps(texts)
