"""From a call to generated text: admit, tokenise, submit, gather, render – plain or in parts. ★

``routes`` calls :meth:`GenerationIntake.admit`, then :meth:`answer` or :meth:`stream`. The engine's
thread tells of each step once; everything here but tokenising runs on the event loop.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, cast

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_api.routes import check_task
from sluice_api.shapes import generated, generation
from sluice_api.shapes.generated import Choice, Delta, GenerationCodec, PromptUsage
from sluice_api.tasks import Task
from sluice_api.wire import Capacity
from sluice_worker.admission import MAX_ON_POOL, Reservation, Reserved, judge, overloaded
from sluice_worker.cost import Average, Load
from sluice_worker.engines.decoder.engine import DecoderEngine, Step
from sluice_worker.engines.decoder.sequence import Sequence
from sluice_worker.exchange import Answer, Asked, Broken
from sluice_worker.generation.choice import Writing
from sluice_worker.generation.compiler import Compiler
from sluice_worker.generation.prompts import PromptMaker, Prompts
from sluice_worker.lifecycle import Progress
from sluice_worker.metrics import Metrics

T = TypeVar("T")


class Request:
    """One call on its way: its sequences, and a bell that rings when there is news.

    Attributes:
        deltas: told by the engine and not yet passed on.
        finished: sequences that have ended.
    """

    def __init__(self, call: Call, prompts: Prompts) -> None:
        self.call = call
        self.prompts = prompts
        self.sequences: list[Sequence] = []
        self.writings: list[Writing] = []
        self.deltas: list[Delta] = []
        self.finished = 0
        self.error: Exception | None = None
        self.bell = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Request {self.finished} of {len(self.sequences)} finished>"

    @property
    def over(self) -> bool:
        return self.finished == len(self.sequences)

    @property
    def seconds(self) -> float:
        return sum(sequence.seconds for sequence in self.sequences)

    def hear(self, deltas: list[Delta], error: Exception | None) -> None:
        """News of one of the sequences."""
        self.deltas += deltas
        self.finished += error is None and any(delta.finish_reason for delta in deltas)
        self.error = self.error or error
        self.bell.set()

    def check(self) -> None:
        """Raises ApiError when a sequence has failed."""
        if isinstance(self.error, ApiError):  # Of the caller's own rules.
            raise self.error
        if self.error is not None:
            raise ApiError("internal_error", "The model failed on this prompt.")

    def usage(self) -> list[PromptUsage]:
        """What each prompt took; copies of a choice count, as they are told."""
        usage = []
        at = 0
        for prompt in self.prompts.prompts:
            sequences = self.sequences[at : at + prompt.choices]
            at += prompt.choices
            written = sum(sequence.written for sequence in sequences)
            usage.append(PromptUsage(len(prompt.ids), written * prompt.copies))
        return usage

    def items(self) -> list[Item]:
        """The canonical items. Needs to be :attr:`over`."""
        codec = cast(GenerationCodec, self.call.codec)
        items = []
        choices = iter(writing.choice() for writing in self.writings)
        for prompt, usage in zip(self.prompts.prompts, self.usage(), strict=True):
            own: list[Choice] = []
            for _ in range(prompt.choices):
                own += [next(choices)] * prompt.copies
            items.append(
                codec.item(
                    own,
                    usage.prompt_tokens,
                    usage.completion_tokens,
                    sampled=self.prompts.sampled,
                )
            )
        return items


class GenerationIntake:
    """Takes requests to one loaded generating model.

    Args:
        service: the name of the service, for error messages.
        max_backlog_seconds: predicted wait beyond which requests are refused.
        threads: of the tokeniser's pool.
    """

    def __init__(
        self,
        tasks: tuple[Task, ...],
        maker: PromptMaker,
        engine: DecoderEngine,
        metrics: Metrics,
        progress: Progress,
        *,
        service: str,
        max_backlog_seconds: float,
        threads: int = 2,
    ) -> None:
        self.tasks = tasks
        self.engine = engine
        self.metrics = metrics
        self.progress = progress
        self.requests = 0
        self.reserved = Reserved()
        self._maker = maker
        self._service = service
        self._max_backlog_seconds = max_backlog_seconds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._compiler = Compiler(maker.vocabulary)
        self._on_pool = 0
        self._chars_per_token = Average(4.0)
        self._written = Average(64.0)
        self._live: set[Sequence] = set()
        self._learnt_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._touched: dict[Writing, Request] = {}
        self._preemptions = 0
        self._captures: Mapping[str, int] = {}
        engine.on_step = self._stepped

    def __repr__(self) -> str:
        return f"<GenerationIntake {self.requests} requests, {self.engine!r}>"

    # admitting ------------------------------------------------------------------------------------

    def admit(self, call: Call, deadline: float) -> Reservation:
        """As :meth:`sluice_worker.intake.Intake.admit`."""
        check_task(call, list(self.tasks), self._service)
        now = time.monotonic()
        wait = self.predicted_wait()
        if self._on_pool >= MAX_ON_POOL:
            self.metrics.refused.labels("overloaded").inc()
            raise overloaded(wait)
        texts = self._texts(call)
        own = self._own_seconds(call, texts)
        try:
            judge(
                wait=wait,
                own=own,
                left=deadline - now,
                max_backlog=self._max_backlog_seconds,
                quiet=now - self._learnt_at,
            )
        except ApiError as error:
            self.metrics.refused.labels(error.code).inc()
            raise
        return self.reserved.hold(own * min(1.0, texts / self.engine.most_running))

    def predicted_wait(self) -> float:
        """Seconds until a newcomer's prompt would be read: prompts ahead, and a free place."""
        live = list(self._live)
        reading = sum(max(0, sequence.prompt - sequence.computed) for sequence in live)
        wait = self.reserved.seconds + reading * self.engine.cost.seconds_per_token
        if len(live) < self.engine.most_running:
            return wait
        left = sum(max(1.0, self._expected(s.max_tokens) - s.written) for s in live)
        return wait + left / self.engine.most_running * self._step_seconds()

    def capacity(self) -> Capacity:
        """How many requests this worker wants: those it can run side by side."""
        return Capacity(
            limit=self.engine.most_running,
            in_flight=self.requests,
            backlog_seconds=self.predicted_wait(),
        )

    def _texts(self, call: Call) -> int:
        """How many differing texts ``call`` has written."""
        parameters = generation.parameters_of(call)
        choices = parameters.n if self._maker.defaults.draws(parameters) else 1
        return len(call.inputs) * choices

    def _own_seconds(self, call: Call, texts: int) -> float:
        asked = call.parameters.get("max_tokens") or self._maker.most_tokens
        per_token = max(0.5, self._chars_per_token.value)
        lengths = (len(i) / per_token if isinstance(i, str) else len(i) for i in call.inputs)
        tokens = sum(min(length, self._maker.most_tokens) for length in lengths)
        reading = tokens * self.engine.cost.seconds_per_token
        # As many texts as there are places share their steps; the others come after them.
        rounds = max(1.0, texts / self.engine.most_running)
        return reading + self._expected(asked) * rounds * self._step_seconds(texts)

    def _expected(self, max_tokens: int) -> float:
        return min(float(max_tokens), self._written.value)

    def _step_seconds(self, more: int = 1) -> float:
        rows = min(len(self._live) + more, self.engine.most_running)
        return self.engine.cost.predict(Load(rows, rows * 256.0))

    # answering ------------------------------------------------------------------------------------

    async def answer(self, call: Call, asked: Asked, reservation: Reservation) -> Answer:
        """Answer an admitted call as a whole. Cancelling this withdraws the request."""
        self.requests += 1
        try:
            request = await self._begin(call, asked, reservation)
            try:
                while not request.over:
                    request.bell.clear()
                    await request.bell.wait()
                    request.check()
            finally:
                self._end(request)
            body = await self._off_loop(
                lambda: call.codec.render(call, asked.model, request.items())
            )
        finally:
            self.requests -= 1
        return Answer(body, request.seconds)

    async def stream(
        self, call: Call, asked: Asked, reservation: Reservation
    ) -> AsyncGenerator[bytes, None]:
        """The parts of a streamed answer. The first comes with the first token.

        Closing this withdraws the request. Raises ApiError before the first part; after it, the
        last part tells of the error and :class:`Broken` follows.
        """
        self.requests += 1
        request: Request | None = None
        told = False
        try:
            request = await self._begin(call, asked, reservation)
            parts = _Parts(request, asked)
            while not request.over:
                async with asyncio.timeout(asked.deadline - time.monotonic()):
                    await request.bell.wait()
                request.bell.clear()  # Before the part goes out: it may ring again meanwhile.
                request.check()
                if part := parts.write():
                    yield part
                    told = True
            # While a part was on its way, the rest may have come.
            yield parts.write() + parts.end()
        except (ApiError, TimeoutError) as failure:
            error = failure if isinstance(failure, ApiError) else _too_late()
            if not told:
                raise error from None
            yield generated.error_event(error, asked.request_id)
            raise Broken from None
        finally:
            if request is not None:
                self._end(request)
            self.requests -= 1

    async def _begin(self, call: Call, asked: Asked, reservation: Reservation) -> Request:
        grammar = await self._compiler.grammar(generation.parameters_of(call))
        with self.metrics.tokenize_seconds.time():
            prompts = await self._off_loop(lambda: self._maker.prepare(call, grammar))
        reservation.release()
        self._learn(call, prompts)
        request = Request(call, prompts)
        now = time.monotonic()
        for prompt in prompts.prompts:
            leader: Sequence | None = None
            for sampler in prompt.samplers:
                writing = self._writing(request, prompt.ids)
                sequence = Sequence(
                    [*prompt.ids],
                    prompt.max_tokens,
                    sampler,
                    writing,
                    self._maker.defaults.stop_ids,
                    asked.tenant,
                    leader,
                    queued_at=now,
                )
                leader = leader or sequence
                request.sequences.append(sequence)
                request.writings.append(writing)
        self._live.update(request.sequences)
        if self.progress.waiting_since is None:
            self.progress.waiting_since = now
        self.engine.submit(*request.sequences)
        return request

    def _writing(self, request: Request, ids: list[int]) -> Writing:
        parameters = request.prompts.parameters
        return Writing(
            len(request.writings),
            ids,
            self._maker.tokenizer.fast,
            self._maker.vocabulary.bytes_of,
            stops=parameters.stop,
            tools=self._maker.tool_parser(parameters),
            parallel_calls=parameters.parallel_tool_calls,
            named_call=parameters.tool_choice.startswith("="),
            scored=parameters.logprobs is not None,
            on_news=partial(self._note, request),
        )

    def _end(self, request: Request) -> None:
        """Nobody waits any more, or nothing is left to wait for."""
        unfinished = [s for s in request.sequences if not s.done]
        if unfinished:
            self.engine.cancel(*unfinished)
        for sequence in request.sequences:
            self.metrics.written.inc(sequence.written)
            if sequence.done:
                self._written.add(sequence.written)
        self._live.difference_update(request.sequences)
        if not self._live:
            self.progress.waiting_since = None

    def _learn(self, call: Call, prompts: Prompts) -> None:
        assert call.task is not None
        tokens = sum(len(prompt.ids) for prompt in prompts.prompts)
        texts = sum(len(text) for text in call.inputs if isinstance(text, str))
        if texts:
            self._chars_per_token.add(texts / tokens)
        self.metrics.inputs.labels(call.task).inc(len(call.inputs))
        self.metrics.tokens.labels(call.task).inc(tokens)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        self._on_pool += 1
        try:
            return await self._loop.run_in_executor(self._pool, work)
        finally:
            self._on_pool -= 1

    # What the engine tells ------------------------------------------------------------------------

    def _note(self, request: Request, writing: Writing) -> None:
        """On the engine's thread: ``writing`` has something to collect once the step is over."""
        self._touched[writing] = request

    def _stepped(self, step: Step) -> None:
        """On the engine's thread, after each step: hand over what is new, all at once."""
        self._count(step)
        news = [(request, w.collect(), w.error) for w, request in self._touched.items()]
        self._touched = {}
        self._loop.call_soon_threadsafe(self._hear, news, step.error is None)

    def _hear(
        self, news: list[tuple[Request, list[Delta], Exception | None]], succeeded: bool
    ) -> None:
        self.progress.failures_in_a_row = 0 if succeeded else self.progress.failures_in_a_row + 1
        self._learnt_at = time.monotonic()
        self.progress.waiting_since = self._learnt_at if self._live else None
        for request, deltas, error in news:
            request.hear(deltas, error)

    def _count(self, step: Step) -> None:
        metrics, ended = self.metrics, step.began + step.seconds
        metrics.batch_seconds.observe(step.seconds)
        metrics.batch_tokens.observe(step.load.tokens)
        metrics.preemptions.inc(self.engine.scheduler.preemptions - self._preemptions)
        self._preemptions = self.engine.scheduler.preemptions
        for outcome, count in self.engine.network.captures.items():
            metrics.captures.labels(outcome).inc(count - self._captures.get(outcome, 0))
        self._captures = dict(self.engine.network.captures)
        for sequence in step.sequences:
            if not sequence.began_at:
                sequence.began_at = step.began
                metrics.queue_seconds.observe(step.began - sequence.queued_at)
                metrics.found.inc(sequence.cached)
            if not sequence.written:
                continue
            if sequence.last_at:
                metrics.next_token_seconds.observe(ended - sequence.last_at)
            else:
                metrics.first_token_seconds.observe(ended - sequence.queued_at)
            sequence.last_at = ended

    def close(self) -> None:
        """End the threads; what they do is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._compiler.close()
        self.engine.stop()


class _Parts:
    """Writes what a request has to tell as server-sent events."""

    def __init__(self, request: Request, asked: Asked) -> None:
        stream = request.call.stream
        assert stream is not None, "else nobody asks for parts"
        codec = cast(GenerationCodec, request.call.codec)
        self._request = request
        self._asked = asked
        self._usage = stream.include_usage
        self._writer = codec.writer(asked.model, include_usage=stream.include_usage)
        self._started: set[int] = set()
        prompt = request.prompts.prompts[0]
        self._copies = prompt.copies

    def write(self) -> bytes:
        """The news as chunks; may be nothing."""
        deltas, self._request.deltas = self._request.deltas, []
        parts: list[bytes] = []
        for delta in deltas:
            for copy in range(self._copies):
                index = delta.index * self._copies + copy
                if index not in self._started:
                    self._started.add(index)
                    parts.append(self._writer.start(index))
                parts.append(self._writer.delta(_numbered(delta, index)))
        return b"".join(parts)

    def end(self) -> bytes:
        """What comes after the last delta."""
        parts: list[bytes] = []
        if self._usage or self._asked.wants_item:
            parts.append(self._writer.usage(self._request.usage()))
        if self._asked.wants_item:
            parts += [generated.item_event(item) for item in self._request.items()]
        return b"".join([*parts, generated.DONE])


def _numbered(delta: Delta, index: int) -> Delta:
    if delta.index == index:
        return delta
    return Delta(index, delta.text, delta.logprobs, delta.tool_calls, delta.finish_reason)


def _too_late() -> ApiError:
    return ApiError("deadline_exceeded", "The deadline passed while the answer was written.")
