"""A real worker process with the real MiniLM, over real sockets."""

import asyncio
import json
import random
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from sluice_api import names
from tests.support import model_hub
from tests.support.minilm import embeddings
from tests.support.models import build_tiny_bert
from tests.support.worker_process import MINILM, WorkerProcess, listening_socket, wait_for

WORDS = "the river runs past seven quiet mills while clouds gather over green hills"
QUICK_DRAIN = ("--drain-grace", "0s")
PATIENT = ("--max-backlog", "5m", "--timeout", "5m")
"""For tests about something else than refusals, on machines of any speed."""


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS.split(), k=words)) + f" {chance.random()}"


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess(MINILM, *QUICK_DRAIN, *PATIENT) as process:
        yield process.wait_ready()


async def post(
    session: aiohttp.ClientSession, worker: WorkerProcess, body: Any, route: str = "/v1/embeddings"
) -> tuple[int, Any, dict[str, str]]:
    async with session.post(worker.url + route, json=body) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, await answer.json(content_type=None), headers


async def test_concurrent_answers_equal_transformers(worker: WorkerProcess) -> None:
    chance = random.Random(3)
    texts = [text(chance, chance.choice((1, 2, 5, 12, 40, 90))) for _ in range(48)]
    batches_before = worker.metric("sluice_worker_batch_duration_seconds_count")
    async with aiohttp.ClientSession() as session:
        answers = await asyncio.gather(*(post(session, worker, {"input": one}) for one in texts))
    assert {status for status, _, _ in answers} == {200}
    vectors = np.array([body["data"][0]["embedding"] for _, body, _ in answers])
    expected = np.array(embeddings(texts))
    assert np.abs(vectors - expected).max() < 1e-5
    # They really shared batches, so the equality above says something about neighbours.
    batches = worker.metric("sluice_worker_batch_duration_seconds_count") - batches_before
    assert batches < len(texts)
    digests = {headers[names.ANSWER_DIGEST] for _, _, headers in answers}
    assert digests == {worker.readiness()["answerDigest"]}


async def test_a_list_is_answered_in_order(worker: WorkerProcess) -> None:
    chance = random.Random(4)
    texts = [text(chance, chance.randint(1, 30)) for _ in range(40)]
    async with aiohttp.ClientSession() as session:
        _, body, _ = await post(session, worker, {"input": texts})
    assert [entry["index"] for entry in body["data"]] == list(range(40))
    expected = embeddings(texts)
    for place in (0, 17, 39):
        assert np.abs(body["data"][place]["embedding"] - expected[place]).max() < 1e-5


async def test_zero_shot_makes_sense(worker: WorkerProcess) -> None:
    labels = {
        "hardware": "a broken computer or device",
        "billing": "a question about an invoice or a payment",
    }
    body = {"input": "I was charged twice last month", "parameters": {"labels": labels}}
    async with aiohttp.ClientSession() as session:
        status, answer, _ = await post(session, worker, body, "/v1/classify")
    assert status == 200
    assert answer["data"][0]["label"] == "billing"


async def test_equal_requests_at_once_are_computed_once(worker: WorkerProcess) -> None:
    long = text(random.Random(5), 150)
    before = worker.metric("sluice_worker_batch_tokens_sum")
    async with aiohttp.ClientSession() as session:
        answers = await asyncio.gather(
            *(post(session, worker, {"input": [long] * 4}) for _ in range(8))
        )
    assert {status for status, _, _ in answers} == {200}
    assert all(body["data"] == answers[0][1]["data"] for _, body, _ in answers)
    tokens = answers[0][1]["data"][0]["tokens"]
    # Requests that reach the worker after the first batch has ended are computed anew.
    assert worker.metric("sluice_worker_batch_tokens_sum") - before <= 4 * tokens


async def test_probes_answer_while_the_worker_computes(worker: WorkerProcess) -> None:
    chance = random.Random(6)
    long = {"input": [text(chance, 100) for _ in range(80)]}
    async with aiohttp.ClientSession() as session:
        computing = asyncio.create_task(post(session, worker, long))
        await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_running"))
        for path in ("/livez", "/readyz", "/metrics") * 5:
            status, _ = await asyncio.to_thread(worker.get, path)
            assert status == 200
        status, _ = await asyncio.to_thread(lambda: worker.get("/livez", admin=False))
        assert status == 200
        assert not computing.done(), "the probes waited for the computing"
        assert (await computing)[0] == 200


async def test_a_short_request_does_not_wait_for_a_long_list(worker: WorkerProcess) -> None:
    chance = random.Random(7)
    long = {"input": [text(chance, 100) for _ in range(80)]}
    async with aiohttp.ClientSession() as session:
        computing = asyncio.create_task(post(session, worker, long))
        await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_running"))
        status, _, _ = await post(session, worker, {"input": text(chance, 3)})
        assert status == 200
        assert not computing.done(), "the short request came after the whole list"
        await computing


async def test_clients_that_leave_are_not_computed_for(worker: WorkerProcess) -> None:
    chance = random.Random(8)
    before = worker.metric("sluice_worker_batch_tokens_sum")
    accepted = worker.metric('sluice_worker_tokens_total{task="embeddings"}')
    body = {"input": [text(chance, 100) for _ in range(80)]}
    async with aiohttp.ClientSession() as session:
        leaving = asyncio.create_task(post(session, worker, body))
        await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_running"))
        leaving.cancel()
    await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_waiting") == 0)
    await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_running") == 0)
    computed = worker.metric("sluice_worker_batch_tokens_sum") - before
    accepted = worker.metric('sluice_worker_tokens_total{task="embeddings"}') - accepted
    assert computed < accepted / 2


def exchange(worker: WorkerProcess, request: bytes) -> bytes:
    """Everything the worker sends in answer to raw bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=60) as link:
        link.sendall(request)
        received = b""
        while part := link.recv(65536):
            received += part
        return received


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n"
        b"content-length: 4\r\n\r\n{}",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["garbage", "version", "two-lengths", "bad-chunk", "smuggling"],
)
def test_malformed_http_is_refused_and_closed(worker: WorkerProcess, request_bytes: bytes) -> None:
    answer = exchange(worker, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["code"] == "bad_http"
    assert worker.get("/livez", admin=False)[0] == 200


@pytest.mark.parametrize(
    "head", [b"x: " + b"y" * 70_000, b"\r\n".join(b"x%d: y" % n for n in range(9000))]
)
def test_a_head_without_end_is_refused(worker: WorkerProcess, head: bytes) -> None:
    answer = exchange(worker, b"GET /readyz HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"input": 7}', b"\xff\xfe", b'{"input":"x"' + b"}" * 2, b"null"]
)
async def test_malformed_bodies_are_refused(worker: WorkerProcess, body: bytes) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(worker.url + "/v1/embeddings", data=body) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] in ("invalid_json", "invalid_field")


async def test_overload_is_refused_with_a_wait_that_holds(worker: WorkerProcess) -> None:
    """Open-loop and unique: far more work than a second of backlog holds."""
    chance = random.Random(9)
    order: list[int] = []
    with WorkerProcess(MINILM, *QUICK_DRAIN, "--max-backlog", "500ms") as small:
        small.wait_ready()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask() -> tuple[int, dict[str, str]]:
                status, _, headers = await post(session, small, {"input": text(chance, 60)})
                order.append(status)
                return status, headers

            answers = await asyncio.gather(*(ask() for _ in range(300)))
            statuses = [status for status, _ in answers]
            assert set(statuses) == {200, 429}
            assert small.readiness()["status"] == 200
            # Refused at once: most refusals come before most answers.
            places = {code: [i for i, s in enumerate(order) if s == code] for code in (200, 429)}
            assert np.median(places[429]) < np.median(places[200])
            refused = [headers for status, headers in answers if status == 429]
            assert all(headers[names.SHOULD_RETRY] == "true" for headers in refused)
            waits = [int(headers[names.RETRY_AFTER_MS]) / 1000 for headers in refused]
            assert all(0.5 <= wait <= 10 for wait in waits)
            # All was answered by now, so a retry is welcome well before the longest wait is over.
            status, _ = await ask()
            assert status == 200
        counted = small.metric('sluice_worker_refused_total{reason="overloaded"}')
        assert counted == statuses.count(429)
        answered = 'sluice_worker_requests_total{route="/v1/embeddings",status="200"}'
        assert small.metric(answered) == statuses.count(200) + 1


async def test_a_drain_under_load_fails_nothing() -> None:
    """Clients behave as the gateway does: they stop when the worker is no longer ready."""
    chance = random.Random(10)
    statuses: list[int] = []
    with WorkerProcess(MINILM, "--drain-grace", "1s") as leaving:
        leaving.wait_ready()
        told = asyncio.Event()

        async def client(session: aiohttp.ClientSession) -> None:
            while not told.is_set():
                status, _, _ = await post(session, leaving, {"input": text(chance, 20)})
                statuses.append(status)

        async with aiohttp.ClientSession() as session:
            clients = [asyncio.create_task(client(session)) for _ in range(8)]
            await asyncio.to_thread(
                wait_for, lambda: leaving.metric("sluice_worker_requests_total") > 20
            )
            before = len(statuses)
            leaving.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_for, lambda: leaving.readiness()["status"] == 503)
            assert leaving.readiness()["phase"] == "draining"
            assert leaving.get("/livez")[0] == 200
            told.set()
            await asyncio.gather(*clients)
        assert await asyncio.to_thread(leaving.wait_exit) == 0
        assert set(statuses) == {200}
        assert len(statuses) > before
        assert "drained unfinished=0" in leaving.log


async def test_the_drain_hook_ends_with_the_last_answer() -> None:
    """What Kubernetes does: call the hook, wait for its answer, send the signal."""
    chance = random.Random(11)
    long = {"input": [text(chance, 100) for _ in range(80)]}
    with WorkerProcess(MINILM, *QUICK_DRAIN, *PATIENT) as leaving:
        leaving.wait_ready()
        async with aiohttp.ClientSession() as session:
            computing = asyncio.create_task(post(session, leaving, long))
            await asyncio.to_thread(wait_for, lambda: leaving.metric("sluice_worker_running"))
            hook = asyncio.create_task(asyncio.to_thread(leaving.get, names.DRAIN_PATH, seconds=60))
            await asyncio.to_thread(wait_for, lambda: leaving.readiness()["phase"] == "draining")
            assert not hook.done(), "the hook did not wait"
            status, body, _ = await computing
            assert (status, len(body["data"])) == (200, 80)
            assert await hook == (200, b'{"unfinished":0}')
            status, _, _ = await post(session, leaving, {"input": "late"})
            assert status == 503, "a drained worker takes nothing more"
        leaving.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(leaving.wait_exit) == 0
        assert leaving.log.count("drained unfinished=0") == 1


def test_a_download_shows_how_far_it_is(tmp_path: Path) -> None:
    model = build_tiny_bert(tmp_path / "model")
    with model_hub.serving(model) as hub:
        hub.held["model.safetensors"] = threading.Event()
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        with WorkerProcess("hf://acme/tiny", environment=environment) as loading:
            seen = wait_for(
                lambda: (
                    (now := loading.readiness())["phase"] == "downloading"
                    and now.get("progress")
                    and now
                )
            )
            assert seen["status"] == 503
            assert 0 < seen["progress"] < 1
            assert seen["message"] == "downloading acme/tiny"
            hub.held["model.safetensors"].set()
            loading.wait_ready()


def test_the_ports_answer_before_the_model_is_loaded() -> None:
    with WorkerProcess(MINILM, *QUICK_DRAIN) as early:
        status, body = early.get("/readyz", seconds=60)
        assert status == 503
        assert json.loads(body)["phase"] in ("starting", "downloading", "loading")
        assert early.get("/livez")[0] == 200
        # A signal while loading ends it cleanly, without waiting for the load.
        early.process.send_signal(signal.SIGTERM)
        assert early.wait_exit() == 0


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with WorkerProcess(MINILM, "--drain-grace", "10m") as patient:
        patient.wait_ready()
        patient.process.send_signal(signal.SIGTERM)
        wait_for(lambda: patient.readiness()["phase"] == "draining")
        patient.process.send_signal(signal.SIGTERM)
        assert patient.wait_exit() == 128 + signal.SIGTERM


def test_a_model_that_is_not_there_ends_with_its_own_code(tmp_path: Path) -> None:
    with WorkerProcess(f"file://{tmp_path}/nothing") as lost:
        assert lost.wait_exit() == names.EXIT_MODEL_NOT_FOUND
        last = lost.log.strip().splitlines()[-1]
        assert "nothing" in last
        assert "Check" in last


def test_a_bad_setting_ends_with_a_message_that_names_it() -> None:
    environment = {names.ENV_BATCH_MAX_SIZE: "many"}
    with WorkerProcess(MINILM, environment=environment) as wrong:
        assert wrong.wait_exit() == names.EXIT_BAD_CONFIGURATION
        assert wrong.log.strip() == (
            f"{names.ENV_BATCH_MAX_SIZE}: got 'many', needs a whole number from 1 to 4096."
        )


def test_a_taken_port_is_a_clear_error() -> None:
    with listening_socket() as taken:
        port = str(taken.getsockname()[1])
        with WorkerProcess(MINILM, "--port", port, "--admin-port", "0", bound=False) as late:
            assert late.wait_exit() == names.EXIT_BAD_CONFIGURATION
            assert f"--port: got 127.0.0.1:{port}" in late.log
            assert "in use" in late.log


def test_a_descriptor_that_does_not_listen_is_a_clear_error() -> None:
    with WorkerProcess(MINILM, "--fd", "200", "--admin-fd", "201", bound=False) as wrong:
        assert wrong.wait_exit() == names.EXIT_BAD_CONFIGURATION
        assert "--fd: got 200" in wrong.log


def test_logs_as_json(worker: WorkerProcess, tmp_path: Path) -> None:
    with WorkerProcess(f"file://{tmp_path}/nothing", environment={names.ENV_LOG: "json"}) as lost:
        lost.wait_exit()
        first, *_, last = lost.log.strip().splitlines()
        assert json.loads(first)["message"] == "phase"
        assert "there is no folder" in last
