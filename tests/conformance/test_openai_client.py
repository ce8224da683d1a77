"""The OpenAI client as it is, sync and async, against the gateway: what works there works here."""

import asyncio
from collections.abc import Iterator

import openai
import pytest

from sluice_api.errors import ApiError
from tests.support.gateway_process import GatewayProcess, service
from tests.support.stub_worker import Behaviour, StubWorker, vector_of


@pytest.fixture(scope="module")
def worker() -> Iterator[StubWorker]:
    with StubWorker() as stub:
        yield stub


@pytest.fixture(scope="module")
def gateway(
    worker: StubWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    table = [service("emb", [worker.url])]
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as process:
        asyncio.run(process.ready("emb"))
        yield process


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    base = f"http://127.0.0.1:{gateway.port}/v1"
    with openai.OpenAI(base_url=base, api_key="sk-any", max_retries=0) as made:
        yield made


@pytest.mark.parametrize(
    "given",
    [
        "one text",
        ["first", "second", "first"],
        [5, 6, 7],
        [[1, 2], [3]],
        "näïve – 東京 \U0001f600",
    ],
)
@pytest.mark.parametrize("encoding", ["base64", "float", None])
def test_embeddings(client: openai.OpenAI, given: object, encoding: str | None) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="emb", input=given, **options)  # type: ignore[call-overload]
    texts = [given] if isinstance(given, str) or given == [5, 6, 7] else given
    assert isinstance(texts, list)
    assert answer.model == "emb"
    assert [entry.index for entry in answer.data] == list(range(len(texts)))
    for entry, text in zip(answer.data, texts, strict=True):
        found = entry.embedding
        assert not isinstance(found, str) or encoding == "base64"
        if not isinstance(found, str):
            assert found == pytest.approx(vector_of(text).tolist(), abs=1e-7)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_dimensions_and_user(client: openai.OpenAI, worker: StubWorker) -> None:
    client.embeddings.create(model="emb", input="dim", dimensions=2, user="someone")
    assert b'"dimensions":2' in worker.seen[-1].body.replace(b": ", b":")


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["emb"]
    assert client.models.retrieve("emb").owned_by == "default"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="nothing", input="x")
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as empty:
        client.embeddings.create(model="emb", input=[])
    assert empty.value.param == "input"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="emb", messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "route_not_found"


def test_client_retries_when_it_is_told_to(gateway: GatewayProcess, worker: StubWorker) -> None:
    worker.behaviour = Behaviour(refuse=ApiError("overloaded", "Full.", retry_after=0.05))
    base = f"http://127.0.0.1:{gateway.port}/v1"
    headers = {"x-sluice-deadline-ms": "40"}
    try:
        with openai.OpenAI(base_url=base, api_key="k", max_retries=0) as impatient:
            with pytest.raises(openai.RateLimitError) as refused:
                impatient.embeddings.create(model="emb", input="r1", extra_headers=headers)
            assert refused.value.response.headers["x-should-retry"] == "true"
            assert float(refused.value.response.headers["retry-after-ms"]) == 50
    finally:
        worker.behaviour = Behaviour()


async def test_async_client(gateway: GatewayProcess) -> None:
    base = f"http://127.0.0.1:{gateway.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="sk-any", max_retries=0) as client:
        texts = [f"async {number % 10}" for number in range(40)]
        answers = await asyncio.gather(
            *[client.embeddings.create(model="emb", input=text) for text in texts]
        )
    for answer, text in zip(answers, texts, strict=True):
        assert answer.data[0].embedding == pytest.approx(vector_of(text).tolist(), abs=1e-7)
