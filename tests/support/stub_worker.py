"""A worker without a model: speaks the contract over a real socket, and misbehaves when told to.

Answers are made from the input alone (a vector of four numbers, a label by the text), so a test can
compute what must come back. It runs on a thread of its own with its own event loop, or as a process
(``stub_process``) where a test must kill or stop it.
"""

import array
import asyncio
import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sluice_api import names, wire
from sluice_api.call import Call, Input, Item, place
from sluice_api.errors import ApiError, render
from sluice_api.routes import POST_ROUTES, V2_PREFIX, V2_SUFFIX, check_task
from sluice_api.shapes import (
    chat,
    classify,
    completions,
    embeddings,
    listing,
    v2,
)
from sluice_api.shapes.generated import (
    DONE,
    Alternative,
    Choice,
    Delta,
    FinishReason,
    FunctionCall,
    TokenLogprob,
    ToolCall,
    error_event,
    item_event,
    usage_of,
)
from sluice_api.shapes.generation import leaves_open, parameters_of
from sluice_api.tasks import Task

DIGEST = "sha256:" + "ab" * 32
LABELS = ["ham", "spam"]


def vector_of(text: Input) -> "array.array[float]":
    """The embedding the stub gives to ``text``."""
    raw = hashlib.sha256(repr(text).encode()).digest()
    return array.array("f", [byte / 255 for byte in raw[:4]])


def tokens_of(text: Input) -> int:
    return len(text.split()) if isinstance(text, str) else len(text)


_WRITTEN = {"text": "b", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
STUB_ANSWERS: dict[Task, dict[str, Any]] = {
    Task.TOKEN_CLASSIFICATION: {
        "entities": [{"label": "X", "score": 0.5, "start": 0, "end": 1, "text": "a"}]
    },
    Task.RELATION_EXTRACTION: {
        "entities": [{"label": None, "start": 0, "end": 1, "text": "a"}],
        "relations": [],
    },
    Task.QUESTION_ANSWERING: {"answers": [{"text": "a", "score": 0.5, "start": 0, "end": 1}]},
    Task.FILL_MASK: {"masks": [[{"token": 1, "text": "a", "score": 0.5}]]},
    Task.RERANK: {"relevance_score": 0.5},
    Task.TRANSLATION: _WRITTEN,
    Task.SUMMARIZATION: _WRITTEN,
}
"""What the stub says to every input of these tasks."""


@dataclass
class Behaviour:
    """What the stub does; a test changes it while the stub runs."""

    revision: str = "r1"
    digest: str = DIGEST
    tasks: list[Task] = field(default_factory=lambda: [Task.EMBEDDINGS, Task.CLASSIFICATION])
    phase: wire.Phase = wire.Phase.READY
    limit: int = 64
    delay: float = 0.0
    service_seconds: float | None = None
    """What it says that an answer took; None: ``delay``."""
    hang: bool = False
    """It never answers what comes meanwhile."""
    hold: bool = False
    """It answers when this is over."""
    hang_probes: bool = False
    refuse: ApiError | None = None
    raw: bytes | None = None
    """Sent instead of any answer to an inference request; the connection is closed after it."""
    keep_alive: bool = True
    reusable: bool = True
    """Otherwise a connection that an answer came on is closed when another request comes on it."""
    words: int = 2
    """Of a generated text; each is an event of its own when it is streamed."""
    pace: float = 0.0
    """Seconds before each event of a stream."""
    hold_at: int | None = None
    """Waits before this event of a stream, for as long as it is set so."""
    cut_at: int | None = None
    """Closes the connection instead of sending this event of a stream."""
    fail_at: int | None = None
    """Sends ``failure`` instead of this event of a stream, and closes."""
    failure: ApiError = field(default_factory=lambda: ApiError("internal_error", "Broken."))
    draws: bool = False
    """The model samples where the caller says nothing of it."""
    fragment: int = 0
    """A stream is written in chunks of so many bytes; 0: of an event each."""
    padding: int = 0
    """Letters after each word of a stream; they are not in its item, which could grow too long."""


@dataclass
class Seen:
    """One inference request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Written:
    """A generated choice, whole and in steps."""

    words: list[str]
    finish_reason: FinishReason
    with_logprobs: bool
    call: FunctionCall | None
    padding: str

    def choice(self) -> Choice:
        if self.call is not None:
            return Choice("", self.finish_reason, None, [ToolCall("call_1", self.call)])
        logprobs = [self._score(word) for word in self.words] if self.with_logprobs else None
        return Choice("".join(self.words), self.finish_reason, logprobs)

    def deltas(self, index: int) -> Iterator[Delta]:
        if self.call is not None:
            empty = FunctionCall(self.call.name, "")
            yield Delta(index, tool_calls=[(0, ToolCall("call_1", empty))])
            for part in (self.call.arguments[:4], self.call.arguments[4:]):
                yield Delta(index, tool_calls=[(0, ToolCall("", FunctionCall("", part)))])
        else:
            for word in self.words:
                logprobs = [self._score(word)] if self.with_logprobs else None
                yield Delta(index, word + self.padding, logprobs)
        yield Delta(index, finish_reason=self.finish_reason)

    def _score(self, word: str) -> TokenLogprob:
        chosen = Alternative(word, -0.25, word.encode())
        return TokenLogprob(chosen, [chosen, Alternative("other", -2.5, b"other")])


class StubWorker:
    """Use as a context manager; ``url`` is where it listens."""

    def __init__(
        self, behaviour: Behaviour | None = None, port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self.host = host
        self.behaviour = behaviour or Behaviour()
        self.seen: list[Seen] = []
        self.inputs: Counter[str] = Counter()
        self.aborted = 0
        self.probes = 0
        self.running = 0
        self.peak = 0
        self.events = 0
        """Sent in streams so far."""
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stub-worker", daemon=True)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def computed(self) -> int:
        """Inputs computed so far."""
        return sum(self.inputs.values())

    def __enter__(self) -> "StubWorker":
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening and cut every connection, as a crash would."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._started.set()
        self._loop.run_forever()
        assert self._server is not None
        # A connection that was just accepted is known to the server only some turns later; one that
        # was closed meanwhile would forget to close it.
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        self._turn(5)
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(asyncio.gather(*self._connections, return_exceptions=True))
        self._turn(2)  # Transports close in the next turn.
        self._loop.close()

    def _turn(self, times: int) -> None:
        for _ in range(times):
            self._loop.run_until_complete(asyncio.sleep(0))

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        used = False
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *rest = head.split("\r\n")
            method, path, _ = line.split(" ")
            headers = {}
            for header in rest:
                if header:
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if method == "GET":
                self.probes += 1
                if self.behaviour.hang_probes:
                    await asyncio.sleep(3600)
                writer.write(self._readiness())
                continue
            if used and not self.behaviour.reusable:
                return
            used = True
            if not await self._infer(reader, writer, Seen(path, headers, body)):
                return

    async def _infer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Seen
    ) -> bool:
        self.seen.append(seen)
        behaviour = self.behaviour
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if behaviour.hang or behaviour.delay or behaviour.hold:
                gone = asyncio.ensure_future(reader.read(1))
                done, _ = await asyncio.wait(
                    (gone,), timeout=None if behaviour.hang else behaviour.delay
                )
                while behaviour.hold and not done:
                    done, _ = await asyncio.wait((gone,), timeout=0.005)
                if done:
                    self.aborted += 1
                    return False
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
        finally:
            self.running -= 1
        if behaviour.raw is not None:
            writer.write(behaviour.raw)
            await writer.drain()
            return False
        streamed = self._streamed(seen)
        if streamed is None:
            writer.write(self._answer(seen))
            return behaviour.keep_alive
        gone = asyncio.ensure_future(reader.read(1))
        streaming = asyncio.ensure_future(self._stream(writer, seen, streamed))
        self.running += 1
        try:
            await asyncio.wait((gone, streaming), return_when=asyncio.FIRST_COMPLETED)
            if not streaming.done():
                self.aborted += 1
            return streaming.done() and streaming.result() and behaviour.keep_alive
        finally:
            self.running -= 1
            gone.cancel()
            streaming.cancel()
            await asyncio.gather(gone, streaming, return_exceptions=True)

    def _streamed(self, seen: Seen) -> list[bytes] | None:
        """The events of the answer, if it is to be streamed and can be."""
        codec = POST_ROUTES.get(seen.path)
        if codec not in (chat.CODEC, completions.CODEC) or self.behaviour.refuse is not None:
            return None
        try:
            call = codec.parse(seen.body)
            if call.stream is None:
                return None
            check_task(call, self.behaviour.tasks, "stub")
            items = [self._item(call, index, text) for index, text in enumerate(call.inputs)]
        except ApiError:
            return None
        include, asked = call.stream.include_usage, seen.headers.get(names.WANTS_ITEM) == "1"
        writer = codec.writer(call.model or "stub", include_usage=include)
        events = []
        choices = call.parameters.get("n", 1)
        for index in range(choices * len(items)):
            written = self._writes(call, call.inputs[index // choices])
            events += [writer.start(index)]
            events += [writer.delta(delta) for delta in written.deltas(index)]
        if include or asked:
            events.append(writer.usage(usage_of(items)))
        if asked:
            events += [item_event(item) for item in items]
        return [event for event in (*events, DONE) if event]

    async def _stream(self, writer: asyncio.StreamWriter, seen: Seen, events: list[bytes]) -> bool:
        """Send the head and the events, and do what a test wants to go wrong. False: close."""
        behaviour, request_id = self.behaviour, seen.headers.get(names.REQUEST_ID, "-")
        headers = [
            ("content-type", "text/event-stream"),
            ("transfer-encoding", "chunked"),
            (names.REQUEST_ID, request_id),
            (names.ANSWER_DIGEST, behaviour.digest),
            (names.REVISION, behaviour.revision),
            (names.CAPACITY, self._capacity().header()),
        ]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(f"HTTP/1.1 200 X\r\n{lines}\r\n".encode())
        for number, event in enumerate(events):
            if behaviour.pace:
                await asyncio.sleep(behaviour.pace)
            while behaviour.hold_at == number:
                await writer.drain()
                await asyncio.sleep(0.005)
            if behaviour.cut_at == number:
                return False
            if behaviour.fail_at == number:
                writer.write(_chunk(error_event(behaviour.failure, request_id)))
                await writer.drain()
                return False
            size = behaviour.fragment or len(event)
            for start in range(0, len(event), size):
                writer.write(_chunk(event[start : start + size]))
                if behaviour.fragment:
                    await asyncio.sleep(0)
            await writer.drain()
            self.events += 1
        writer.write(b"0\r\n\r\n")
        return True

    def _writes(self, call: Call, text: Input) -> "Written":
        """What is generated after ``text``; it follows from that and from the parameters."""
        behaviour, parameters = self.behaviour, parameters_of(call)
        if parameters.json_schema is not None:
            words = ['{"answer"', ": ", str(len(str(text))), "}"]
        else:
            words = [str(len(str(text))), " characters"]
            words += [f" {number}" for number in range(len(words), behaviour.words)]
        words = words[: behaviour.words]
        finish: FinishReason = "stop"
        for stop in parameters.stop:
            if stop.strip() in (stripped := [word.strip() for word in words]):
                words = words[: stripped.index(stop.strip())]
        if parameters.max_tokens is not None and parameters.max_tokens < len(words):
            words, finish = words[: parameters.max_tokens], "length"
        call_of = None
        if parameters.tools is not None and parameters.tool_choice not in ("auto", "none"):
            tool = msgspec.json.decode(parameters.tools)[0]["function"]["name"]
            call_of, finish = FunctionCall(tool, json.dumps({"text": words[0]})), "tool_calls"
        return Written(
            words, finish, parameters.logprobs is not None, call_of, behaviour.padding * "x"
        )

    def _readiness(self) -> bytes:
        behaviour = self.behaviour
        readiness = wire.Readiness(
            phase=behaviour.phase,
            model="stub",
            revision=behaviour.revision,
            answer_digest=behaviour.digest,
            tasks=behaviour.tasks,
            labels=LABELS,
            dimensions=4,
            capacity=self._capacity(),
        )
        status = 200 if behaviour.phase is wire.Phase.READY else 503
        return self._response(status, msgspec.json.encode(readiness), [])

    def _capacity(self) -> wire.Capacity:
        return wire.Capacity(limit=self.behaviour.limit, in_flight=self.running)

    def _answer(self, seen: Seen) -> bytes:
        request_id = seen.headers.get(names.REQUEST_ID, "-")
        said = self.behaviour.service_seconds
        took = self.behaviour.delay if said is None else said
        try:
            if self.behaviour.refuse is not None:
                raise self.behaviour.refuse
            body = self._compute(seen)
        except ApiError as error:
            rendered = render(error, path=seen.path, request_id=request_id)
            return self._response(
                rendered.status, rendered.body, [*rendered.headers, (names.REQUEST_ID, request_id)]
            )
        return self._response(
            200,
            body,
            [
                ("content-type", "application/json"),
                (names.REQUEST_ID, request_id),
                (names.ANSWER_DIGEST, self.behaviour.digest),
                (names.REVISION, self.behaviour.revision),
                (names.CAPACITY, self._capacity().header()),
                (names.SERVICE_TIME, f"{took:.6f}"),
            ],
        )

    def _compute(self, seen: Seen) -> bytes:
        if seen.path.startswith(V2_PREFIX) and seen.path.endswith(V2_SUFFIX):
            codec = v2.CODEC
        else:
            codec = POST_ROUTES[seen.path]
        call = codec.parse(seen.body)
        check_task(call, self.behaviour.tasks, "stub")
        items = [self._item(call, index, text) for index, text in enumerate(call.inputs)]
        return codec.render(call, call.model or "stub", items)

    def _item(self, call: Call, index: int, text: Input) -> Item:
        self.inputs[str(text)] += 1
        if "too long" in str(text):
            where = place(call, index)
            raise ApiError("input_too_long", f"{where}: has 9 tokens, at most 8.", param=where)
        if call.task == Task.EMBEDDINGS:
            return embeddings.item(vector_of(text).tobytes(), tokens_of(text))
        if call.task in STUB_ANSWERS:
            return listing.item(STUB_ANSWERS[call.task], tokens_of(text))
        if call.task in (Task.TEXT_GENERATION, Task.CHAT):
            return self._written(call, text)
        pairs = call.parameters.get("labels") or [[label, None] for label in LABELS]
        winner = len(str(text)) % len(pairs)
        ranked = [(pairs[winner][0], 0.75, winner)]
        ranked += [(name, 0.25, i) for i, (name, _) in enumerate(pairs) if i != winner]
        return classify.item(ranked, tokens_of(text))

    def _written(self, call: Call, text: Input) -> Item:
        """An answer to one prompt that follows from it; a choice for each that is asked for."""
        codec = chat.CODEC if call.task == Task.CHAT else completions.CODEC
        written = self._writes(call, text)
        choices = [written.choice()] * call.parameters.get("n", 1)
        sampled = call.sampled or (self.behaviour.draws and leaves_open(call))
        tokens = len(written.words) * len(choices)
        return codec.item(choices, tokens_of(text), tokens, sampled=sampled)

    def _response(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def until(
    condition: Callable[[], bool | Awaitable[bool]], seconds: float = 60.0, what: str = ""
) -> None:
    """Wait for ``condition``, and fail when it does not come true in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        result = condition()
        if not isinstance(result, bool):
            result = await result
        if result:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    told = msgspec.json.decode(sys.argv[2], type=Behaviour) if len(sys.argv) > 2 else None
    with StubWorker(told, port=int(sys.argv[1])) as worker:
        print(worker.url, flush=True)
        threading.Event().wait()
