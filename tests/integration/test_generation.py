"""A real worker process with a language model that learnt something, over real sockets."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from sluice_api import names
from sluice_api.shapes import chat, generated
from sluice_worker.examples.chat import CITIES, WEATHER_QUESTION, data
from tests.support import held_worker
from tests.support.trained import Models
from tests.support.worker_process import WorkerProcess, wait_for

PATIENT = ("--max-backlog", "5m", "--timeout", "5m", "--drain-grace", "0s")
QUESTION = "What does the dog say?"
NOT_THINKING = (
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": [*CITIES]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def talker(trained_models: Models) -> Path:
    return trained_models.talker


@pytest.fixture(scope="module")
def worker(talker: Path, hold: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(
        f"file://{talker}",
        *PATIENT,
        name="talker",
        environment={held_worker.HOLD: str(hold)},
        program=(held_worker.__file__,),
    ) as process:
        yield process.wait_ready()


@pytest.fixture
async def client(worker: WorkerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{worker.url}/v1", api_key="none", max_retries=0
    ) as made:
        yield made


@pytest.fixture
async def thinker(
    talker: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[openai.AsyncOpenAI]:
    """The talker, with the end of Qwen 3's template."""
    folder = shutil.copytree(talker, tmp_path_factory.mktemp("thinker"), dirs_exist_ok=True)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + NOT_THINKING)
    with WorkerProcess(f"file://{folder}", *PATIENT, name="talker") as process:
        url = process.wait_ready().url
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
            yield made


def user(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


async def answered(client: openai.AsyncOpenAI, question: str, **more: Any) -> str:
    answer = await client.chat.completions.create(
        model="talker", messages=user(question), temperature=0, **more
    )
    return answer.choices[0].message.content or ""


async def right_answers(client: openai.AsyncOpenAI) -> float:
    _, questions = data()
    answers = await asyncio.gather(*(answered(client, question) for question, _ in questions))
    right = [answer == wanted for answer, (_, wanted) in zip(answers, questions, strict=True)]
    return sum(right) / len(right)


# What is said -------------------------------------------------------------------------------------


async def test_questions_never_seen_are_answered(client: openai.AsyncOpenAI) -> None:
    assert await right_answers(client) >= 0.9


async def test_a_model_that_learnt_nonsense_fails_the_same_questions(
    shuffled_models: Models,
) -> None:
    with WorkerProcess(f"file://{shuffled_models.talker}", *PATIENT, name="talker") as process:
        process.wait_ready()
        async with openai.AsyncOpenAI(base_url=f"{process.url}/v1", api_key="none") as client:
            assert await right_answers(client) <= 0.3


async def test_a_stream_says_what_the_plain_answer_says(client: openai.AsyncOpenAI) -> None:
    plain = await answered(client, QUESTION)
    assert plain == "The dog says woof."
    stream = await client.chat.completions.create(
        model="talker",
        messages=user(QUESTION),
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == plain
    assert len([part for part in parts if part]) > 3  # It really came bit by bit.
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    whole = await client.chat.completions.create(
        model="talker", messages=user(QUESTION), temperature=0
    )
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_client_that_waits_works_too(worker: WorkerProcess) -> None:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none") as client:
        whole = client.completions.create(
            model="talker", prompt=f"<|user|>{QUESTION}<|end|><|assistant|>", temperature=0
        )
        assert whole.choices[0].text == "The dog says woof."
        stream = client.completions.create(
            model="talker",
            prompt=f"<|user|>{QUESTION}<|end|><|assistant|>",
            temperature=0,
            stream=True,
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == "The dog says woof."


async def test_a_stop_string_never_shows(client: openai.AsyncOpenAI) -> None:
    for stop, kept in (("says", "The dog "), ("woof.", "The dog says "), ("T", ""), ("x", None)):
        wanted = "The dog says woof." if kept is None else kept
        assert await answered(client, QUESTION, stop=stop) == wanted
        stream = await client.chat.completions.create(
            model="talker", messages=user(QUESTION), temperature=0, stop=[stop], stream=True
        )
        parts = [c.choices[0].delta.content or "" async for c in stream if c.choices]
        assert "".join(parts) == wanted


async def test_the_length_is_bounded(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="talker", messages=user(QUESTION), temperature=0, max_tokens=2
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


async def test_probabilities_are_the_models(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="talker", messages=user(QUESTION), temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == "The dog says woof."
    for token in logprobs.content:
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert token.top_logprobs[0].token == token.token
        assert bytes(token.bytes or []).decode() == token.token


async def test_a_seed_makes_chance_repeat_itself(client: openai.AsyncOpenAI) -> None:
    async def drawn(seed: int) -> list[str]:
        answer = await client.chat.completions.create(
            model="talker", messages=user("cow"), temperature=2, n=3, seed=seed, max_tokens=12
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content or "" for choice in answer.choices]

    first, again, other = await asyncio.gather(drawn(1), drawn(1), drawn(2))
    assert first == again != other
    assert len(set(first)) > 1


async def test_an_answer_fits_its_schema(client: openai.AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "sound": {"enum": ["moo", "woof"]},
            "loud": {"type": "boolean"},
            "legs": {"type": "integer", "minimum": 2, "maximum": 4},
        },
        "required": ["sound", "loud", "legs"],
        "additionalProperties": False,
    }
    for temperature in (0, 1.5):
        answer = await client.chat.completions.create(
            model="talker",
            messages=user(QUESTION),
            temperature=temperature,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "animal", "schema": schema},
            },
        )
        found = json.loads(answer.choices[0].message.content or "")
        assert list(found) == ["sound", "loud", "legs"]
        assert found["sound"] in ("moo", "woof")
        assert 2 <= found["legs"] <= 4
        assert answer.choices[0].finish_reason == "stop"


async def test_a_tool_is_called(client: openai.AsyncOpenAI) -> None:
    asked: Any = {
        "model": "talker",
        "messages": user(WEATHER_QUESTION.format(CITIES[0])),
        "temperature": 0,
        "tools": [WEATHER],
    }
    answer: Any = await client.chat.completions.create(**asked)
    (plain,) = answer.choices[0].message.tool_calls
    assert json.loads(plain.function.arguments) == {"city": CITIES[0]}
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    streamed = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.arguments for call in streamed] == [plain.function.arguments]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "weather"}}, "stop"),
    ],
)
async def test_a_call_that_is_asked_for_is_made(
    client: openai.AsyncOpenAI, choice: Any, reason: str
) -> None:
    answer: Any = await client.chat.completions.create(
        model="talker",
        messages=user(QUESTION),  # Which has nothing to do with the weather.
        temperature=0,
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice=choice,
        parallel_tool_calls=False,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in CITIES
    assert answer.choices[0].finish_reason == reason


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_a_call_that_is_cut_is_a_call(client: openai.AsyncOpenAI, choice: str) -> None:
    asked: Any = {
        "model": "talker",
        "messages": user(WEATHER_QUESTION.format(CITIES[0])),
        "temperature": 0,
        "tools": [WEATHER],
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }
    whole: Any = await client.chat.completions.create(**asked)
    asked["max_tokens"] = whole.usage.completion_tokens - 8
    answer: Any = await client.chat.completions.create(**asked)
    (call,) = answer.choices[0].message.tool_calls
    arguments = whole.choices[0].message.tool_calls[0].function.arguments
    assert call.function.name == "weather"
    assert arguments.startswith(call.function.arguments.replace(": ", ":"))
    assert call.function.arguments != arguments
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content is None
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert not any(delta.content for delta in deltas)
    (streamed,) = (call for delta in deltas for call in delta.tool_calls or [])
    assert streamed.function.arguments == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "length"


# What the worker tells of itself ------------------------------------------------------------------


async def test_variables_reach_the_template_or_are_refused(thinker: openai.AsyncOpenAI) -> None:
    async def prompt_tokens(**more: Any) -> int:
        answer = await thinker.chat.completions.create(
            model="talker", messages=user(QUESTION), temperature=0, max_tokens=1, **more
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    def setting(**variables: Any) -> dict[str, Any]:
        return {"extra_body": {"chat_template_kwargs": variables}}

    thinking = await prompt_tokens()
    assert await prompt_tokens(**setting(enable_thinking=True)) == thinking
    assert await prompt_tokens(**setting(enable_thinking=False)) > thinking
    for more, param in (
        (setting(enable_thinkng=False), 'chat_template_kwargs["enable_thinkng"]'),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
    ):
        with pytest.raises(openai.BadRequestError, match="those that it reads: ") as refused:
            await prompt_tokens(**more)
        assert (refused.value.code, refused.value.param) == ("invalid_field", param)


async def test_a_beginning_is_found_again_but_not_by_another_tenant(worker: WorkerProcess) -> None:
    async def found(tenant: str) -> float:
        before = worker.metric("sluice_worker_prefix_tokens_total")
        body = {"messages": user(f"{QUESTION} " * 6), "temperature": 0, "max_tokens": 1}
        await raw(worker, body, **{names.TENANT: tenant})
        return worker.metric("sluice_worker_prefix_tokens_total") - before

    assert await found("anna") == 0
    assert await found("anna") >= 32
    assert await found("bert") == 0


async def test_the_pace_is_measured(worker: WorkerProcess, client: openai.AsyncOpenAI) -> None:
    first, steps, tokens = (
        "sluice_worker_time_to_first_token_seconds_count",
        "sluice_worker_inter_token_seconds_count",
        "sluice_worker_written_tokens_total",
    )
    before = [worker.metric(name) for name in (first, steps, tokens)]
    answer = await client.chat.completions.create(
        model="talker", messages=user("Pace"), temperature=1, max_tokens=9, logit_bias={"0": -100}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    after = [worker.metric(name) for name in (first, steps, tokens)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 8, 9]
    # The engine lets go of a text with the step after its last.
    await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_kv_use_ratio") == 0)


async def test_more_than_can_be_done_in_time_is_refused_at_once(talker: Path) -> None:
    options = ("--max-backlog", "10ms", "--batch-max-size", "1", "--drain-grace", "0s")
    body = {
        "messages": user("Tell"),
        "temperature": 2,
        "max_tokens": 150,
        "logit_bias": {"0": -100},
    }
    with WorkerProcess(f"file://{talker}", *options, name="talker") as process:
        process.wait_ready()
        async with aiohttp.ClientSession() as session:

            async def post() -> tuple[int, Any]:
                url = f"{process.url}/v1/chat/completions"
                async with session.post(url, json=body) as answer:
                    return answer.status, answer.headers.get("retry-after-ms")

            answers = await asyncio.gather(*(post() for _ in range(12)))
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 429}
        assert all(retry for status, retry in answers if status == 429)
        assert process.readiness()["status"] == 200


# What the gateway asks ----------------------------------------------------------------------------


async def raw(worker: WorkerProcess, body: dict[str, Any], **headers: str) -> bytes:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{worker.url}/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        assert answer.status == 200
        if body.get("stream"):
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers[names.ANSWER_DIGEST].startswith("sha256:")
            assert names.CAPACITY in answer.headers
        return await answer.read()


async def test_a_stream_carries_the_item_that_the_plain_answer_holds(worker: WorkerProcess) -> None:
    body = {"messages": user(QUESTION), "temperature": 0, "n": 2}
    call = chat.CODEC.parse(json.dumps(body).encode())
    (item,) = chat.CODEC.extract(call, await raw(worker, body))
    streamed = await raw(worker, {**body, "stream": True}, **{names.WANTS_ITEM: "1"})
    *events, done, rest = streamed.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert events[-1] == generated.ITEM_COMMENT + item.json
    assert json.loads(events[-2].removeprefix(b"data: "))["usage"]["total_tokens"] == item.tokens
    bare = await raw(worker, {**body, "stream": True})
    assert generated.ITEM_COMMENT not in bare
    assert b"usage" not in bare


@pytest.mark.usefixtures("held")
async def test_a_caller_who_leaves_stops_the_writing(worker: WorkerProcess) -> None:
    before = worker.metric("sluice_worker_written_tokens_total")
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    body = json.dumps(
        {
            "messages": user("Tell"),
            "temperature": 2,
            "seed": 1,
            "stream": True,
            "logit_bias": {"0": -100},
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await reader.readuntil(b"data: ")
    writer.close()
    await writer.wait_closed()
    await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_running") == 0)
    written = worker.metric("sluice_worker_written_tokens_total") - before
    assert 0 < written < 200, "it was written to the end"


async def test_what_is_wrong_is_said_before_the_stream(worker: WorkerProcess) -> None:
    async with aiohttp.ClientSession() as session:
        for route, body, code, param in (
            ("chat/completions", {"messages": user("x" * 9000)}, "input_too_long", "messages"),
            ("chat/completions", {"messages": user("x " * 300)}, "input_too_long", "messages"),
            ("completions", {"prompt": "x", "max_tokens": 900}, "input_too_long", "max_tokens"),
            ("completions", {"prompt": [9999]}, "invalid_field", "prompt"),
            (
                "completions",
                {"prompt": "x", "logit_bias": {"9999": 1}},
                "invalid_field",
                "logit_bias",
            ),
            (
                "chat/completions",
                {
                    "messages": user("x"),
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                    },
                },
                "invalid_field",
                "response_format.json_schema.schema",
            ),
            ("embeddings", {"input": "x"}, "task_not_supported", "model"),
        ):
            streamed = {} if route == "embeddings" else {"stream": True}
            async with session.post(
                f"{worker.url}/v1/{route}", json={**body, **streamed}
            ) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"], error["param"]) == (400, code, param), error


async def test_a_schema_that_is_too_much_fails_alone(worker: WorkerProcess) -> None:
    members = [{f"k{n}": {"type": "string", "pattern": f".*{n}.*"}} for n in range(200)]
    schema = {"anyOf": [{"type": "object", "properties": member} for member in members]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    drawn = {"temperature": 2, "logit_bias": {"0": -100}, "max_tokens": 60}
    url = f"{worker.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as session:

        async def asked(**body: Any) -> tuple[int, Any]:
            async with session.post(url, json={"messages": user("Tell"), **body}) as answer:
                return answer.status, await answer.json()

        neighbour = asyncio.create_task(asked(**drawn))
        refused = await asyncio.gather(
            *(asked(response_format=wanted, temperature=1, seed=seed) for seed in range(8))
        )
        assert (await neighbour)[0] == 200
        for status, body in refused:
            assert (status, body["error"]["code"]) == (400, "invalid_field"), body
            assert body["error"]["param"] == "response_format.json_schema.schema"
        async with session.get(f"{worker.url}/livez") as answer:
            assert answer.status == 200, await answer.text()


async def read_into(parts: bytearray, answer: aiohttp.ClientResponse) -> None:
    async for part in answer.content.iter_any():
        parts += part


@pytest.mark.usefixtures("held")
async def test_a_deadline_breaks_a_stream_and_says_so(worker: WorkerProcess) -> None:
    body = {"messages": user("Tell"), "temperature": 2, "stream": True, "logit_bias": {"0": -100}}
    parts = bytearray()
    async with aiohttp.ClientSession() as session:
        for seconds in (1, 4, 16, 64):  # On a slow machine nothing is written in a short one.
            async with session.post(
                f"{worker.url}/v1/chat/completions",
                json=body,
                headers={names.DEADLINE_MS: str(seconds * 1000)},
            ) as answer:
                if answer.status == 200:
                    with pytest.raises(aiohttp.ClientPayloadError):
                        await read_into(parts, answer)
                    break
                assert (await answer.json())["error"]["code"] == "deadline_exceeded"
    written = parts.split(b"\n\n")
    assert len(written) > 2, "it really came bit by bit"
    last = json.loads(written[-2].removeprefix(b"data: "))
    assert last["error"]["code"] == "deadline_exceeded"
    assert b"[DONE]" not in parts
    await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_running") == 0)


async def test_a_drain_waits_for_streams(talker: Path) -> None:
    with WorkerProcess(f"file://{talker}", *PATIENT, name="talker") as process:
        process.wait_ready()
        body = {
            "messages": user("Tell"),
            "temperature": 2,
            "stream": True,
            "logit_bias": {"0": -100},
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{process.url}/v1/chat/completions", json=body) as answer,
        ):
            await answer.content.readany()
            os.kill(process.process.pid, signal.SIGTERM)
            rest = await answer.read()
        assert rest.endswith(generated.DONE)
        await asyncio.to_thread(process.process.wait, 30)
        assert process.process.returncode == 0
