"""A worker without a model, for tests and benchmarks of scaling: it sleeps instead of computing.

It speaks the worker's protocol over real sockets in 20 MiB and 0.2 s, so that a node of two cores
can run dozens. Answers follow from the input alone. It runs as the image ``localhost/sluice-stub``;
the operator configures it like any worker, and the service's ``model.uri`` says how it behaves:
``hf://stub/ms100-slots4-start1000`` (see :func:`behaviour_of`).
"""

import array
import asyncio
import hashlib
import os
import re
import secrets
import signal
import sys
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from sluice_api import metric_names, names, request_ids, wire
from sluice_api.call import Call, Codec, Input, Item
from sluice_api.errors import ApiError, render
from sluice_api.quantities import parse_duration
from sluice_api.routes import POST_ROUTES, V2_PREFIX, V2_SUFFIX, check_task
from sluice_api.shapes import chat, classify, completions, embeddings, v2
from sluice_api.shapes.generated import Choice
from sluice_api.tasks import Task

TASKS = [Task.EMBEDDINGS, Task.CLASSIFICATION]
LABELS = ("ham", "spam")
QUEUE = 256
"""Requests that may wait for a slot; more are refused."""
RETRY_SECONDS = 0.5
JSON = ("content-type", "application/json")

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Behaviour:
    """How the stub behaves.

    Attributes:
        seconds: of each request in a slot.
        slots: requests at once.
        start_seconds: until it is ready.
        download: the start shows as a download with its progress.
        own_digest: it has loaded what no other process has.
        exit_code: it ends with this one once the start is over, instead of becoming ready.
    """

    seconds: float = 0.1
    slots: int = 4
    start_seconds: float = 1.0
    download: bool = False
    own_digest: bool = False
    exit_code: int | None = None


def behaviour_of(uri: str) -> Behaviour:
    """What the last part of a model's address says: words such as ``ms100``, joined by dashes.

    ``ms``: milliseconds of a request; ``slots``; ``start``: milliseconds until ready; ``download``;
    ``owndigest``; ``exit``: the code to end with. What is left out keeps its default, unknown words
    do nothing.
    """
    values: dict[str, int] = {}
    for word in uri.rpartition("/")[2].split("-"):
        if found := re.fullmatch(r"(ms|slots|start|exit)(\d{1,7})", word):
            values[found[1]] = int(found[2])
    default = Behaviour()
    return Behaviour(
        seconds=values.get("ms", default.seconds * 1000) / 1000,
        slots=max(1, values.get("slots", default.slots)),
        start_seconds=values.get("start", default.start_seconds * 1000) / 1000,
        download="download" in uri,
        own_digest="owndigest" in uri,
        exit_code=values.get("exit"),
    )


class Engine:
    """The state of one process: slots, the queue for them, and what was counted."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.behaviour = behaviour_of(environment.get(names.ENV_MODEL_URI, ""))
        self.name = environment.get(names.ENV_MODEL_NAME, "stub")
        self.revision = environment.get(names.ENV_REVISION, "")
        self.grace = parse_duration(environment.get(names.ENV_DRAIN_GRACE, "2s"))
        self.patience = parse_duration(environment.get(names.ENV_DRAIN_TIMEOUT, "45s"))
        own = secrets.token_hex(4) if self.behaviour.own_digest else ""
        loaded = repr((self.name, self.revision, own)).encode()
        self.digest = f"sha256:{hashlib.sha256(loaded).hexdigest()}"
        self.phase = wire.Phase.STARTING
        self.progress: float | None = None
        self.answered: Counter[tuple[str, int]] = Counter()
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Engine {self.phase}, {self.running} running, {len(self._waiting)} waiting>"

    @property
    def in_flight(self) -> int:
        return self.running + len(self._waiting)

    async def start(self) -> None:
        """Take the time a model takes, then be ready, or end as told."""
        steps = 20 if self.behaviour.download else 1
        for step in range(steps):
            if self.behaviour.download:
                self._enter(wire.Phase.DOWNLOADING, step / steps)
            await asyncio.sleep(self.behaviour.start_seconds / steps)
        if self.behaviour.exit_code is not None:
            leave(self.behaviour.exit_code, f"the stub was told to end with this: {self.name}")
        self._enter(wire.Phase.READY)

    def _enter(self, phase: wire.Phase, progress: float | None = None) -> None:
        if self.phase is not wire.Phase.DRAINING:
            self.phase, self.progress = phase, progress

    async def compute(self, seen: "Request") -> tuple[bytes, Headers]:
        """The answer to an inference request. Raises ApiError."""
        if self.phase not in (wire.Phase.READY, wire.Phase.DRAINING):
            raise ApiError("starting", f"The worker is {self.phase}.", retry_after=RETRY_SECONDS)
        if len(self._waiting) >= QUEUE:
            raise ApiError("overloaded", f"{QUEUE} requests wait.", retry_after=RETRY_SECONDS)
        codec = codec_of(seen.path)
        call = codec.parse(seen.body)
        check_task(call, TASKS, self.name)
        await self._occupy_a_slot()
        items = [item_of(call, each) for each in call.inputs]
        body = codec.render(call, call.model or self.name, items)
        # Of the whole worker: the slots run side by side.
        share = self.behaviour.seconds / self.behaviour.slots
        return body, [JSON, (names.SERVICE_TIME, f"{share:.6f}")]

    async def _occupy_a_slot(self) -> None:
        self._idle.clear()
        try:
            if self.running >= self.behaviour.slots:
                turn = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                try:
                    await turn
                except asyncio.CancelledError:
                    if turn in self._waiting:
                        self._waiting.remove(turn)
                    elif not turn.cancelled():
                        self._release()
                    raise
            else:
                self.running += 1
            try:
                await asyncio.sleep(self.behaviour.seconds)
            finally:
                self._release()
        finally:
            if self.in_flight == 0:
                self._idle.set()

    def _release(self) -> None:
        """Give the slot to who waits longest, or free it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    async def drain(self) -> int:
        """Not ready at once; accept for the grace; wait until idle. Requests left unfinished."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")
        await asyncio.shield(self._draining)
        return self.in_flight

    async def _drain(self) -> None:
        was_ready = self.phase is wire.Phase.READY
        self.phase, self.progress = wire.Phase.DRAINING, None
        if was_ready:
            await asyncio.sleep(self.grace)
        try:
            await asyncio.wait_for(self._idle.wait(), self.patience)
        except TimeoutError:
            pass

    async def observe(self, path: str) -> tuple[int, bytes, Headers]:
        """The answer to a GET. Raises ApiError."""
        match path:
            case "/readyz":
                status = 200 if self.phase is wire.Phase.READY else 503
                return status, msgspec.json.encode(self._readiness()), [JSON]
            case "/livez":
                return 200, b'{"live":true}', [JSON]
            case "/metrics":
                return (
                    200,
                    self._metrics().encode(),
                    [("content-type", "text/plain; version=0.0.4")],
                )
            case names.DRAIN_PATH:
                return 200, msgspec.json.encode({"unfinished": await self.drain()}), [JSON]
        raise ApiError("route_not_found", f"{path[:200]}: no such route.")

    def _readiness(self) -> wire.Readiness:
        return wire.Readiness(
            phase=self.phase,
            model=self.name,
            revision=self.revision,
            progress=self.progress,
            answer_digest=self.digest,
            tasks=TASKS,
            labels=list(LABELS),
            dimensions=4,
            dtype="float32",
            device="cpu",
            capacity=self._capacity(),
        )

    def _capacity(self) -> wire.Capacity:
        waits = self.in_flight * self.behaviour.seconds / self.behaviour.slots
        return wire.Capacity(
            limit=self.behaviour.slots, in_flight=self.in_flight, backlog_seconds=waits
        )

    def headers(self) -> Headers:
        """What every answer carries."""
        return [
            (names.ANSWER_DIGEST, self.digest),
            (names.REVISION, self.revision),
            (names.CAPACITY, self._capacity().header()),
            *([("connection", "close")] if self.phase is wire.Phase.DRAINING else []),
        ]

    def _metrics(self) -> str:
        metric = metric_names.WORKER_REQUESTS
        lines = [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for (route, status), count in sorted(self.answered.items()):
            lines.append(f'{metric.name}{{route="{route}",status="{status}"}} {count}')
        return "\n".join(lines) + "\n"


# What is answered ---------------------------------------------------------------------------------


def codec_of(path: str) -> Codec:
    """Raises ApiError for a path that is no inference route."""
    if path.startswith(V2_PREFIX) and path.endswith(V2_SUFFIX):
        return v2.CODEC
    if codec := POST_ROUTES.get(path):
        return codec
    raise ApiError("route_not_found", f"{path[:200]}: no such route.")


def vector_of(text: Input) -> "array.array[float]":
    """The embedding of a text: four numbers that follow from it."""
    raw = hashlib.sha256(repr(text).encode()).digest()
    return array.array("f", [byte / 255 for byte in raw[:4]])


def item_of(call: Call, text: Input) -> Item:
    tokens = len(text.split()) if isinstance(text, str) else len(text)
    if call.task == Task.EMBEDDINGS:
        return embeddings.item(vector_of(text).tobytes(), tokens)
    if call.task in (Task.TEXT_GENERATION, Task.CHAT):
        codec = chat.CODEC if call.task == Task.CHAT else completions.CODEC
        choices = [Choice(f"{tokens} tokens", "stop")] * call.parameters.get("n", 1)
        return codec.item(choices, tokens, 2 * len(choices), sampled=call.sampled)
    first = len(str(text)) % 2
    ranked = [(LABELS[first], 0.75, first), (LABELS[1 - first], 0.25, 1 - first)]
    return classify.item(ranked, tokens)


# HTTP ---------------------------------------------------------------------------------------------


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Connection:
    """One client's connection; requests on it are answered one after the other."""

    def __init__(
        self, engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer

    async def serve(self) -> None:
        try:
            while seen := await self._read():
                answering = asyncio.create_task(self._answer(seen))
                # Nobody pipelines here: a byte or the end, before the answer, means it is unwanted.
                leaving = asyncio.create_task(self._reader.read(1))
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    answering.cancel()
                    await asyncio.gather(answering, return_exceptions=True)
                    return
                if not answering.result() or leaving.done():
                    return
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writer.close()

    async def _read(self) -> Request:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head[:-4].split("\r\n")
        method, target, _ = line.split(" ", 2)
        pairs = (header.partition(":") for header in rest)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Request(method, target.partition("?")[0], headers, body)

    async def _answer(self, seen: Request) -> bool:
        """Write the answer; False when the connection ends with it."""
        engine = self._engine
        request_id = request_ids.accept(seen.headers.get(names.REQUEST_ID, "").encode() or None)
        try:
            if seen.method == "POST":
                status, (body, headers) = 200, await engine.compute(seen)
            else:
                status, body, headers = await engine.observe(seen.path)
        except ApiError as error:
            rendered = render(error, path=seen.path, request_id=request_id)
            status, body, headers = rendered.status, rendered.body, rendered.headers
        if seen.method == "POST":
            engine.answered[seen.path if seen.path in POST_ROUTES else "other", status] += 1
        headers = [*headers, (names.REQUEST_ID, request_id), *engine.headers()]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
        self._writer.write(head.encode("latin-1") + body)
        await self._writer.drain()
        close = ("connection", "close") in headers or seen.headers.get("connection") == "close"
        return not close


async def run(environment: Mapping[str, str]) -> None:
    """Serve both ports until SIGTERM, then drain."""
    engine = Engine(environment)
    host = environment.get(names.ENV_WORKER_HOST, "127.0.0.1")
    ports = (
        int(environment.get(names.ENV_WORKER_PORT, names.APP_PORT)),
        int(environment.get(names.ENV_WORKER_ADMIN_PORT, names.ADMIN_PORT)),
    )

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(engine, reader, writer).serve()

    for port in ports:
        await asyncio.start_server(accept, host, port, backlog=1024)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    starting = asyncio.create_task(engine.start(), name="start")
    await stopping.wait()
    starting.cancel()
    await engine.drain()
    leave(0, "")


def leave(code: int, last_line: str) -> NoReturn:
    """End at once; the last line is what Kubernetes shows."""
    if last_line:
        print(last_line, file=sys.stderr, flush=True)
    os._exit(code)


if __name__ == "__main__":
    asyncio.run(run(os.environ))
