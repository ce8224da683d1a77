"""The OpenAI client as it is, sync, async and streaming: what works there works here.

A case is a distinct pair of route and behaviour, in :data:`CASES`. The worker is a stub that writes
with the real codecs, so that each answer is known beforehand; whether a real model's answers mean
what they should is asked elsewhere.
"""

import asyncio
import json
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import openai
import pydantic
import pytest

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from tests.support.conformance import Cases
from tests.support.gateway_process import GatewayProcess, service
from tests.support.stub_worker import Behaviour, StubWorker, until, vector_of

WRITES = [Task.TEXT_GENERATION, Task.CHAT]
CREATED = 1_795_680_000
Client = openai.OpenAI
AsyncClient = openai.AsyncOpenAI
Case = Callable[[Client, StubWorker], None]
AsyncCase = Callable[[AsyncClient, StubWorker], Awaitable[None]]

CASES: Cases[Case] = Cases()
ASYNC_CASES: Cases[AsyncCase] = Cases()
case, async_case = CASES.case, ASYNC_CASES.case


@pytest.fixture(scope="module")
def encoder() -> Iterator[StubWorker]:
    with StubWorker() as stub:
        yield stub


@pytest.fixture(scope="module")
def writer() -> Iterator[StubWorker]:
    with StubWorker(Behaviour(tasks=WRITES)) as stub:
        yield stub


@pytest.fixture(scope="module")
def gateway(
    encoder: StubWorker, writer: StubWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    asleep = service("asleep", [], tasks=[Task.EMBEDDINGS])
    made = service("gen", [writer.url], created=CREATED)
    table = [service("emb", [encoder.url]), made, asleep]
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as process:
        asyncio.run(process.ready("emb"))
        asyncio.run(process.ready("gen"))
        yield process


@pytest.fixture(scope="module")
def base(gateway: GatewayProcess) -> str:
    return f"http://127.0.0.1:{gateway.port}/v1"


@pytest.fixture
def worker(encoder: StubWorker, writer: StubWorker) -> StubWorker:
    """The writer, as good as new; both are."""
    encoder.behaviour = Behaviour()
    writer.behaviour = Behaviour(tasks=list(WRITES), words=4)
    return writer


def text() -> str:
    return secrets.token_hex(4)


def user(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


# Embeddings ---------------------------------------------------------------------------------------

EMBEDDINGS = "POST /v1/embeddings"


def _embeds(given: Any, **options: Any) -> Case:
    def run(client: Client, worker: StubWorker) -> None:
        answer = client.embeddings.create(model="emb", input=given, **options)
        texts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        assert answer.model == "emb"
        assert [entry.index for entry in answer.data] == list(range(len(texts)))
        for entry, each in zip(answer.data, texts, strict=True):
            if isinstance(entry.embedding, str):
                assert options["encoding_format"] == "base64"  # The client leaves it as asked.
            else:
                assert entry.embedding == pytest.approx(vector_of(each).tolist(), abs=1e-7)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0

    return run


for _name, _given, _options in (
    ("a text", "one text", {}),
    ("a list", ["first", "second", "first"], {}),
    ("token ids", [5, 6, 7], {}),
    ("lists of token ids", [[1, 2], [3]], {}),
    ("any script", "näïve – 東京 \U0001f600", {}),
    ("as floats", "floats", {"encoding_format": "float"}),
    ("as base64", "base64", {"encoding_format": "base64"}),
    ("for a user", "user", {"user": "someone"}),
):
    case(EMBEDDINGS, _name)(_embeds(_given, **_options))


@case(EMBEDDINGS, "of fewer dimensions")
def _(client: Client, worker: StubWorker) -> None:
    answer = client.embeddings.with_raw_response.create(model="emb", input=text(), dimensions=2)
    assert answer.http_response.status_code == 200


@case(EMBEDDINGS, "again, from the cache")
def _(client: Client, worker: StubWorker) -> None:
    given = text()
    raw = client.embeddings.with_raw_response
    first, second = (raw.create(model="emb", input=given) for _ in range(2))
    assert first.headers["cache-status"] == "Sluice; fwd=miss; stored"
    assert second.headers["cache-status"].startswith("Sluice; hit")
    assert first.parse().data[0].embedding == second.parse().data[0].embedding


@case(EMBEDDINGS, "with a request id of one's own")
def _(client: Client, worker: StubWorker) -> None:
    answer = client.embeddings.create(
        model="emb", input="x", extra_headers={"X-Request-Id": "mine-7"}
    )
    assert answer._request_id == "mine-7"


def _refuses(call: Callable[[Client], Any], status: int, code: str, param: str | None) -> Case:
    def run(client: Client, worker: StubWorker) -> None:
        with pytest.raises(openai.APIStatusError) as refused:
            call(client)
        error = refused.value
        assert (error.status_code, error.code, error.param) == (status, code, param)
        assert error.request_id and error.type
        assert error.response.headers["x-should-retry"] in ("true", "false")

    return run


def _embed(**given: Any) -> Callable[[Client], Any]:
    return lambda client: client.embeddings.create(**{"model": "emb", "input": "x"} | given)


for _name, _call, _status, _code, _param in (
    ("an empty list", _embed(input=[]), 400, "invalid_field", "input"),
    ("an empty text", _embed(input=""), 400, "invalid_field", "input"),
    ("a mixed list", _embed(input=["a", 1]), 400, "invalid_field", "input[1]"),
    ("too long a text", _embed(input="too long"), 400, "input_too_long", "input"),
    ("an unknown member", _embed(extra_body={"inputs": 1}), 400, "unknown_field", "inputs"),
    ("an unknown model", _embed(model="none"), 404, "model_not_found", "model"),
    ("a model for something else", _embed(model="gen"), 400, "task_not_supported", "model"),
):
    case(EMBEDDINGS, f"refuses {_name}")(_refuses(_call, _status, _code, _param))


@async_case(EMBEDDINGS, "many at once")
async def _(client: AsyncClient, worker: StubWorker) -> None:
    texts = [f"async {number % 10}" for number in range(40)]
    answers = await asyncio.gather(
        *[client.embeddings.create(model="emb", input=each) for each in texts]
    )
    for answer, each in zip(answers, texts, strict=True):
        assert answer.data[0].embedding == pytest.approx(vector_of(each).tolist(), abs=1e-7)


# Models -------------------------------------------------------------------------------------------

MODELS = "GET /v1/models"


@case(MODELS, "lists them")
def _(client: Client, worker: StubWorker) -> None:
    assert [model.id for model in client.models.list()] == ["asleep", "emb", "gen"]


@case(MODELS, "shows one")
def _(client: Client, worker: StubWorker) -> None:
    model = client.models.retrieve("gen")
    assert (model.id, model.object, model.owned_by) == ("gen", "model", "default")
    assert model.created == CREATED
    assert {model.id: model.created for model in client.models.list()}["gen"] == CREATED


@case(MODELS, "shows one by its full name")
def _(client: Client, worker: StubWorker) -> None:
    assert client.models.retrieve("default/emb").id == "emb"


case(MODELS, "refuses an unknown one")(
    _refuses(lambda client: client.models.retrieve("none"), 404, "model_not_found", "model")
)


@async_case(MODELS, "lists them")
async def _(client: AsyncClient, worker: StubWorker) -> None:
    assert [model.id async for model in client.models.list()] == ["asleep", "emb", "gen"]


# Chat ---------------------------------------------------------------------------------------------

CHAT = "POST /v1/chat/completions"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}


def _chat(client: Client, **given: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "gen", "messages": user(text()), "temperature": 0} | given
    )


@case(CHAT, "answers")
def _(client: Client, worker: StubWorker) -> None:
    answer = _chat(client)
    (choice,) = answer.choices
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.created > 1_700_000_000 and answer.model == "gen"
    assert choice.message.role == "assistant" and choice.message.content.endswith("characters 2 3")
    assert (choice.index, choice.finish_reason) == (0, "stop")


@case(CHAT, "counts tokens")
def _(client: Client, worker: StubWorker) -> None:
    usage = _chat(client).usage
    assert usage.completion_tokens == 4
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@case(CHAT, "streams")
def _(client: Client, worker: StubWorker) -> None:
    messages = user(text())
    plain = _chat(client, messages=messages).choices[0].message.content
    for fresh in (messages, user(text())):
        chunks = list(_chat(client, messages=fresh, stream=True))
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[0].choices[0].delta.role == "assistant"
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert content == plain and chunks[-1].choices[0].finish_reason == "stop"


@case(CHAT, "streams with usage")
def _(client: Client, worker: StubWorker) -> None:
    options = {"include_usage": True}
    *chunks, last = _chat(client, stream=True, stream_options=options)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == [] and last.usage.completion_tokens == 4


@case(CHAT, "streams as it is written")
def _(client: Client, worker: StubWorker) -> None:
    worker.behaviour.hold_at = 2
    stream = iter(_chat(client, stream=True))
    next(stream), next(stream)
    assert worker.running == 1
    worker.behaviour.hold_at = None
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"


@case(CHAT, "is replayed as a stream from the cache")
def _(client: Client, worker: StubWorker) -> None:
    messages, seen = user(text()), len(worker.seen)
    streams = [list(_chat(client, messages=messages, stream=True)) for _ in range(3)]
    contents = {"".join(c.choices[0].delta.content or "" for c in chunks) for chunks in streams}
    assert len(contents) == 1 and len(worker.seen) == seen + 1


@case(CHAT, "several choices")
def _(client: Client, worker: StubWorker) -> None:
    answer = _chat(client, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@case(CHAT, "streams several choices")
def _(client: Client, worker: StubWorker) -> None:
    chunks = list(_chat(client, n=2, stream=True))
    finished = {c.choices[0].index for c in chunks if c.choices[0].finish_reason}
    assert finished == {0, 1}


for _limit in ("max_tokens", "max_completion_tokens"):

    @case(CHAT, f"stops after {_limit}")
    def _(client: Client, worker: StubWorker, limit: str = _limit) -> None:
        answer = _chat(client, **{limit: 2})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 2


@case(CHAT, "stops at a text")
def _(client: Client, worker: StubWorker) -> None:
    answer = _chat(client, stop=" 3")
    assert answer.choices[0].message.content.endswith(" 2")


@case(CHAT, "stops at one of several texts")
def _(client: Client, worker: StubWorker) -> None:
    answer = _chat(client, stop=["never", " 2"])
    assert answer.choices[0].message.content.endswith("characters")


@case(CHAT, "tells probabilities")
def _(client: Client, worker: StubWorker) -> None:
    content = _chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [score.logprob for score in content] == [-0.25] * 4
    assert [top.token for top in content[1].top_logprobs] == [" characters", "other"]
    assert bytes(content[1].bytes).decode() == " characters"


@case(CHAT, "streams probabilities")
def _(client: Client, worker: StubWorker) -> None:
    chunks = list(_chat(client, logprobs=True, stream=True))
    scores = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    assert sum(map(len, scores)) == 4


@case(CHAT, "calls a tool")
def _(client: Client, worker: StubWorker) -> None:
    choice = _chat(client, tools=[TOOL], tool_choice="required").choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.id and call.function.name == "look_up"
    assert "text" in json.loads(call.function.arguments)


@case(CHAT, "calls the tool that is named")
def _(client: Client, worker: StubWorker) -> None:
    named = {"type": "function", "function": {"name": "look_up"}}
    choice = _chat(client, tools=[TOOL], tool_choice=named).choices[0]
    assert choice.message.tool_calls[0].function.name == "look_up"


@case(CHAT, "streams a call of a tool")
def _(client: Client, worker: StubWorker) -> None:
    chunks = list(_chat(client, tools=[TOOL], tool_choice="required", stream=True))
    parts = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
    assert parts[0].id and parts[0].function.name == "look_up"
    assert "text" in json.loads("".join(part.function.arguments for part in parts))


@case(CHAT, "reads what a tool answered")
def _(client: Client, worker: StubWorker) -> None:
    first = _chat(client, tools=[TOOL], tool_choice="required").choices[0].message
    call = first.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
    answer = _chat(client, messages=[*user("x"), first.model_dump(), result], tools=[TOOL])
    assert answer.choices[0].message.content


class _Answer(pydantic.BaseModel):
    answer: int


@case(CHAT, "parses what a schema asks for")
def _(client: Client, worker: StubWorker) -> None:
    parsed = client.chat.completions.parse(
        model="gen", messages=user(text()), temperature=0, response_format=_Answer
    )
    assert isinstance(parsed.choices[0].message.parsed, _Answer)


@case(CHAT, "writes a JSON object")
def _(client: Client, worker: StubWorker) -> None:
    answer = _chat(client, response_format={"type": "json_object"})
    assert "answer" in json.loads(answer.choices[0].message.content)


@case(CHAT, "takes system and developer messages")
def _(client: Client, worker: StubWorker) -> None:
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."}, *user(text())]
        assert _chat(client, messages=messages).choices[0].message.content


@case(CHAT, "takes content in parts")
def _(client: Client, worker: StubWorker) -> None:
    parts = [{"type": "text", "text": text()}, {"type": "text", "text": "and"}]
    assert _chat(client, messages=[{"role": "user", "content": parts}]).choices[0].message.content


@case(CHAT, "does not keep what was drawn")
def _(client: Client, worker: StubWorker) -> None:
    raw = client.chat.completions.with_raw_response
    for _ in range(2):
        answer = raw.create(model="gen", messages=user("drawn"), temperature=0.5, seed=3, top_p=0.9)
        assert answer.headers["cache-status"] == "Sluice; fwd=bypass; detail=sampled"


@case(CHAT, "streams through the client's own helper")
def _(client: Client, worker: StubWorker) -> None:
    kinds = set()
    with client.chat.completions.stream(
        model="gen", messages=user(text()), temperature=0
    ) as stream:
        for event in stream:
            kinds.add(event.type)
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert (final.choices[0].message.content or "").endswith("characters 2 3")


@case(CHAT, "streams raw lines")
def _(client: Client, worker: StubWorker) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="gen", messages=user(text()), temperature=0, stream=True
    ) as response:
        assert response.headers["content-type"] == "text/event-stream"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@case(CHAT, "tells of an error inside the stream")
def _(client: Client, worker: StubWorker) -> None:
    worker.behaviour.fail_at = 2
    with pytest.raises(openai.APIError) as broken:
        list(_chat(client, stream=True))
    assert broken.value.code == "internal_error"


@case(CHAT, "tells of a worker that is lost in the stream")
def _(client: Client, worker: StubWorker) -> None:
    worker.behaviour.cut_at = 2
    with pytest.raises(openai.APIError) as broken:
        list(_chat(client, stream=True))
    assert broken.value.code == "upstream_failed"


@case(CHAT, "stops when the client leaves")
def _(client: Client, worker: StubWorker) -> None:
    worker.behaviour.words, worker.behaviour.pace = 10_000, 0.01
    stream = _chat(client, stream=True)
    next(iter(stream))
    stream.close()
    asyncio.run(until(lambda: worker.running == 0, what="the worker writes on"))


@case(CHAT, "times out")
def _(client: Client, worker: StubWorker) -> None:
    worker.behaviour.hang = True
    with pytest.raises(openai.APITimeoutError):
        _chat(client, timeout=0.5)
    worker.behaviour.hang = False


@case(CHAT, "sets variables of the template")
def _(client: Client, worker: StubWorker) -> None:
    messages, before = user(text()), len(worker.seen)
    quick = {"chat_template_kwargs": {"enable_thinking": False}}
    for extra, asked in (({}, 1), (quick, 2), ({}, 2), (quick, 2)):
        _chat(client, messages=messages, extra_body=extra)
        assert len(worker.seen) - before == asked, "only what differs is asked for"
    assert json.loads(worker.seen[-1].body)["chat_template_kwargs"] == {"enable_thinking": False}


@case(CHAT, "says how much to think")
def _(client: Client, worker: StubWorker) -> None:
    messages, before = user(text()), len(worker.seen)
    for effort, asked in (("low", 1), ("high", 2), ("low", 2)):
        _chat(client, messages=messages, reasoning_effort=effort)
        assert len(worker.seen) - before == asked
    same = {"chat_template_kwargs": {"reasoning_effort": "high"}}
    _chat(client, messages=messages, extra_body=same)
    assert len(worker.seen) - before == 2, "it is the same question"


def _chats(**given: Any) -> Callable[[Client], Any]:
    return lambda client: _chat(client, **given)


for _name, _call, _status, _code, _param in (
    ("an unknown model", _chats(model="none"), 404, "model_not_found", "model"),
    ("a model for something else", _chats(model="emb"), 400, "task_not_supported", "model"),
    ("no messages", _chats(messages=[]), 400, "invalid_field", "messages"),
    ("too high a temperature", _chats(temperature=3), 400, "invalid_field", "temperature"),
    ("an unknown member", _chats(extra_body={"x": 1}), 400, "unknown_field", "x"),
    (
        "a variable of the template that is not the caller's",
        _chats(extra_body={"chat_template_kwargs": {"messages": "x"}}),
        *(400, "invalid_field", 'chat_template_kwargs["messages"]'),
    ),
    (
        "an effort that there is not",
        _chats(reasoning_effort="little"),
        *(400, "invalid_field", "reasoning_effort"),
    ),
    (
        "options of a stream that is none",
        _chats(stream_options={"include_usage": True}),
        *(400, "invalid_field", "stream_options"),
    ),
):
    case(CHAT, f"refuses {_name}")(_refuses(_call, _status, _code, _param))


@async_case(CHAT, "answers")
async def _(client: AsyncClient, worker: StubWorker) -> None:
    answer = await client.chat.completions.create(model="gen", messages=user(text()), temperature=0)
    assert (answer.choices[0].message.content or "").endswith("characters 2 3")


@async_case(CHAT, "streams to many who ask the same")
async def _(client: AsyncClient, worker: StubWorker) -> None:
    messages, seen = user(text()), len(worker.seen)
    worker.behaviour.words, worker.behaviour.pace = 20, 0.005

    async def read() -> str:
        stream = await client.chat.completions.create(
            model="gen", messages=messages, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts = await asyncio.gather(*[read() for _ in range(12)])
    assert len(set(texts)) == 1 and texts[0].endswith(" 18 19")
    assert len(worker.seen) == seen + 1


# Completions --------------------------------------------------------------------------------------

COMPLETIONS = "POST /v1/completions"


def _complete(client: Client, **given: Any) -> Any:
    return client.completions.create(**{"model": "gen", "prompt": text(), "temperature": 0} | given)


@case(COMPLETIONS, "answers")
def _(client: Client, worker: StubWorker) -> None:
    answer = _complete(client)
    (choice,) = answer.choices
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert choice.text.endswith("characters 2 3") and choice.finish_reason == "stop"
    assert answer.usage.completion_tokens == 4


@case(COMPLETIONS, "streams")
def _(client: Client, worker: StubWorker) -> None:
    chunks = list(_complete(client, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks).endswith("characters 2 3")
    assert chunks[-1].choices[0].finish_reason == "stop"


@case(COMPLETIONS, "streams with usage")
def _(client: Client, worker: StubWorker) -> None:
    *chunks, last = _complete(client, stream=True, stream_options={"include_usage": True})
    assert chunks and last.usage.completion_tokens == 4


@case(COMPLETIONS, "goes on from a list of prompts")
def _(client: Client, worker: StubWorker) -> None:
    answer = _complete(client, prompt=["one", "three"])
    assert [choice.text[:1] for choice in answer.choices] == ["3", "5"]


@case(COMPLETIONS, "streams a list of prompts")
def _(client: Client, worker: StubWorker) -> None:
    chunks = list(_complete(client, prompt=[text(), text()], stream=True))
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1}


@case(COMPLETIONS, "goes on from token ids")
def _(client: Client, worker: StubWorker) -> None:
    assert _complete(client, prompt=[1, 2, 3]).usage.prompt_tokens == 3


@case(COMPLETIONS, "several choices")
def _(client: Client, worker: StubWorker) -> None:
    assert [choice.index for choice in _complete(client, n=2).choices] == [0, 1]


@case(COMPLETIONS, "stops after max_tokens")
def _(client: Client, worker: StubWorker) -> None:
    choice = _complete(client, max_tokens=1).choices[0]
    assert (choice.text, choice.finish_reason) == ("8", "length")


@case(COMPLETIONS, "stops at a text")
def _(client: Client, worker: StubWorker) -> None:
    assert _complete(client, stop=["characters"]).choices[0].text == "8"


@case(COMPLETIONS, "tells probabilities")
def _(client: Client, worker: StubWorker) -> None:
    scores = _complete(client, logprobs=2).choices[0].logprobs
    assert scores.tokens == ["8", " characters", " 2", " 3"]
    assert scores.text_offset == [0, 1, 12, 14]
    assert scores.token_logprobs == [-0.25] * 4


@case(COMPLETIONS, "again, from the cache")
def _(client: Client, worker: StubWorker) -> None:
    prompt = text()
    raw = client.completions.with_raw_response
    first, second = (raw.create(model="gen", prompt=prompt, temperature=0) for _ in range(2))
    assert second.headers["cache-status"].startswith("Sluice; hit")
    assert first.parse().choices == second.parse().choices


def _completes(**given: Any) -> Callable[[Client], Any]:
    return lambda client: _complete(client, **given)


for _name, _call, _status, _code, _param in (
    ("an empty prompt", _completes(prompt=""), 400, "invalid_field", "prompt"),
    ("what it cannot do", _completes(echo=True), 400, "invalid_field", "echo"),
    ("an unknown model", _completes(model="none"), 404, "model_not_found", "model"),
):
    case(COMPLETIONS, f"refuses {_name}")(_refuses(_call, _status, _code, _param))


@async_case(COMPLETIONS, "streams")
async def _(client: AsyncClient, worker: StubWorker) -> None:
    stream = await client.completions.create(model="gen", prompt=text(), temperature=0, stream=True)
    parts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(parts).endswith("characters 2 3")


# The client itself --------------------------------------------------------------------------------

for _name, _call in {
    "responses": lambda client: client.responses.create(model="gen", input="x"),
    "moderations": lambda client: client.moderations.create(input="x"),
    "images": lambda client: client.images.generate(prompt="x"),
}.items():
    case(_name, "is not there")(_refuses(_call, 404, "route_not_found", None))


@case(CHAT, "is tried again when the model is busy")
def _(client: Client, worker: StubWorker) -> None:
    worker.behaviour.refuse = ApiError("overloaded", "Full.", retry_after=0.05)
    headers = {"x-sluice-deadline-ms": "40"}
    with pytest.raises(openai.RateLimitError) as refused:
        _chat(client, extra_headers=headers)
    assert refused.value.response.headers["x-should-retry"] == "true"
    assert float(refused.value.response.headers["retry-after-ms"]) == 50
    recovery = threading.Timer(0.3, setattr, (worker.behaviour, "refuse", None))
    recovery.start()
    assert _chat(client.with_options(max_retries=20), extra_headers=headers).choices
    recovery.join()


# Errors as the client's own classes ---------------------------------------------------------------

_RAISED: tuple[tuple[str, Callable[[Client], Any], type[openai.APIStatusError]], ...] = (
    ("BadRequestError", _embed(input=[]), openai.BadRequestError),
    ("NotFoundError", _embed(model="none"), openai.NotFoundError),
    (
        "InternalServerError",
        lambda client: client.embeddings.create(
            model="asleep", input="x", extra_headers={"X-Sluice-Deadline-Ms": "50"}
        ),
        openai.InternalServerError,
    ),
    (
        "UnprocessableEntityError",
        lambda client: [
            client.embeddings.create(
                model="emb", input=text(), extra_headers={"Idempotency-Key": "openai-422"}
            )
            for _ in range(2)
        ],
        openai.UnprocessableEntityError,
    ),
)
for _name, _call, _class in _RAISED:

    @case(EMBEDDINGS, f"raises {_name}")
    def _(
        client: Client,
        worker: StubWorker,
        call: Callable[[Client], Any] = _call,
        kind: type[openai.APIStatusError] = _class,
    ) -> None:
        with pytest.raises(kind) as raised:
            call(client)
        error = raised.value
        assert error.code and error.type and error.message
        assert error.request_id == error.response.headers["x-request-id"]


@case(EMBEDDINGS, "says what is not worth another try, and the client heeds it")
def _(client: Client, worker: StubWorker) -> None:
    asked: list[Any] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [asked.append]})
    eager = Client(base_url=client.base_url, api_key="k", max_retries=3, http_client=http)
    with eager, pytest.raises(openai.BadRequestError):
        eager.embeddings.create(model="emb", input="")
    assert len(asked) == 1


@case(EMBEDDINGS, "is tried again by the client while the model wakes")
def _(client: Client, worker: StubWorker) -> None:
    asked: list[Any] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [asked.append]})
    headers = {"X-Sluice-Deadline-Ms": "50"}
    eager = Client(base_url=client.base_url, api_key="k", max_retries=1, http_client=http)
    with eager, pytest.raises(openai.InternalServerError):
        eager.embeddings.create(model="asleep", input="x", extra_headers=headers)
    assert len(asked) == 2


@case(CHAT, "is sent again with a key")
def _(client: Client, worker: StubWorker) -> None:
    headers, messages = {"Idempotency-Key": text()}, user(text())
    seen = len(worker.seen)
    answers = [
        _chat(client, messages=messages, temperature=1, extra_headers=headers) for _ in range(2)
    ]
    assert answers[0].choices == answers[1].choices and len(worker.seen) == seen + 1


@case(CHAT, "is sent again with a key, as a stream")
def _(client: Client, worker: StubWorker) -> None:
    headers, messages = {"Idempotency-Key": text()}, user(text())
    seen = len(worker.seen)
    streams = [
        list(_chat(client, messages=messages, temperature=1, stream=True, extra_headers=headers))
        for _ in range(2)
    ]
    assert streams[0] == streams[1] and len(worker.seen) == seen + 1


@async_case(CHAT, "is cancelled")
async def _(client: AsyncClient, worker: StubWorker) -> None:
    worker.behaviour.hang = True
    create = client.chat.completions.create(model="gen", messages=user(text()), temperature=0)
    asking = asyncio.create_task(create)
    await until(lambda: worker.running == 1)
    asking.cancel()
    await until(lambda: worker.running == 0, what="the worker goes on")
    worker.behaviour.hang = False


@async_case(CHAT, "many at once, each its own")
async def _(client: AsyncClient, worker: StubWorker) -> None:
    async def ask(length: int) -> str:
        answer = await client.chat.completions.create(
            model="gen", messages=user("x" * length), temperature=0
        )
        return str(answer.choices[0].message.content)

    answers = await asyncio.gather(*[ask(length) for length in range(1, 31)])
    lengths = [int(answer.split(" ")[0]) for answer in answers]
    assert len(set(lengths)) == 30 and lengths == sorted(lengths)


@pytest.mark.parametrize(("route", "behaviour"), CASES, ids=str)
def test_client(base: str, worker: StubWorker, route: str, behaviour: str) -> None:
    with openai.OpenAI(base_url=base, api_key="sk-any", max_retries=0) as client:
        CASES[route, behaviour](client, worker)


@pytest.mark.parametrize(("route", "behaviour"), ASYNC_CASES, ids=str)
async def test_async_client(base: str, worker: StubWorker, route: str, behaviour: str) -> None:
    async with openai.AsyncOpenAI(base_url=base, api_key="sk-any", max_retries=0) as client:
        await ASYNC_CASES[route, behaviour](client, worker)
