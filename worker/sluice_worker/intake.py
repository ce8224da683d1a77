"""From a parsed call to the body of its answer: admit, tokenise, compute, finish, render.

``routes`` calls :meth:`Intake.admit`, then :meth:`Intake.answer`; the computing in between is the
loop's. Tokenising and rendering happen on a small thread pool, so that one long text delays
nobody's probe.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from sluice_api.call import Call
from sluice_api.routes import check_task
from sluice_api.tasks import Task
from sluice_worker.admission import MAX_ON_POOL, Reservation, overloaded
from sluice_worker.cost import Average
from sluice_worker.exchange import Answer, Asked
from sluice_worker.loop import Loop
from sluice_worker.metrics import Metrics

if TYPE_CHECKING:
    from sluice_worker.engines.base import Array
    from sluice_worker.tasks.base import Prepared, TaskModule

T = TypeVar("T")


class Intake:
    """Takes requests to one loaded model.

    Args:
        service: the name of the service, for error messages.
        max_input_tokens: of the model; bounds the estimate for a long text.
        threads: of the pool.
    """

    def __init__(
        self,
        tasks: "Mapping[Task, TaskModule]",
        loop: Loop,
        metrics: Metrics,
        *,
        service: str,
        max_input_tokens: int,
        threads: int = 2,
    ) -> None:
        self.tasks = tasks
        self.loop = loop
        self.metrics = metrics
        self._service = service
        self._max_input_tokens = max_input_tokens
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._on_pool = 0
        self._chars_per_token = Average(4.0)
        self._units_per_input = {task: Average(1.0) for task in tasks}

    def __repr__(self) -> str:
        return f"<Intake {', '.join(self.tasks)}; {self._on_pool} on the pool, {self.loop!r}>"

    def admit(self, call: Call, deadline: float) -> Reservation:
        """Let a call in, or refuse it before any work is done for it.

        The reservation is to be held as a context around :meth:`answer`.

        Args:
            deadline: monotonic seconds.
        Raises:
            ApiError: when the model does not do what is asked, or cannot do it in time.
        """
        check_task(call, list(self.tasks), self._service)
        assert call.task is not None
        if self._on_pool >= MAX_ON_POOL:
            self.metrics.refused.labels("overloaded").inc()
            raise overloaded(self.loop.predicted_wait(time.monotonic()))
        return self.loop.admit(*self._estimate(call, call.task), deadline)

    async def answer(self, call: Call, asked: Asked, reservation: Reservation) -> Answer:
        """Answer an admitted call.

        Cancelling this coroutine withdraws the request: what only it wanted is not computed.
        Raises ApiError when an input is wrong or the exact work turns out too much.
        """
        assert call.task is not None
        self.loop.requests += 1
        try:
            prepared = await self._off_loop(lambda: self._prepare(call))
            reservation.release()
            self._learn(call, call.task, prepared)
            arrays, seconds = await self._compute(prepared, asked.deadline)
            items_of, name = prepared.finish, asked.model
            body = await self._off_loop(lambda: call.codec.render(call, name, items_of(arrays)))
        finally:
            self.loop.requests -= 1
        return Answer(body, seconds)

    async def _compute(
        self, prepared: "Prepared", deadline: float
    ) -> "tuple[Sequence[Array], float]":
        if not prepared.units:
            return [], 0.0
        job = self.loop.submit(prepared.units, deadline)
        try:
            arrays = await job.done
        except asyncio.CancelledError:
            self.loop.abandon(job)
            raise
        return arrays, job.service_seconds

    async def _off_loop(self, work: Callable[[], T]) -> T:
        self._on_pool += 1
        done = asyncio.get_running_loop().run_in_executor(self._pool, work)
        done.add_done_callback(self._left_pool)
        return await done

    def _left_pool(self, _: object) -> None:
        self._on_pool -= 1

    def _prepare(self, call: Call) -> "Prepared":
        assert call.task is not None
        with self.metrics.tokenize_seconds.time():
            return self.tasks[call.task].prepare(call)

    def _estimate(self, call: Call, task: Task) -> tuple[int, int]:
        """Tokens and units of a call, before it is tokenised."""
        per_token = max(0.5, self._chars_per_token.value)
        longest = self._max_input_tokens
        tokens = sum(
            min(longest, int(len(text) / per_token) + 2)
            if isinstance(text, str)
            else min(longest, len(text))
            for text in call.inputs
        )
        ratio = max(self._units_per_input[task].value, 1 / len(call.inputs))
        return max(1, int(tokens * ratio)), max(1, round(len(call.inputs) * ratio))

    def _learn(self, call: Call, task: Task, prepared: "Prepared") -> None:
        tokens = sum(unit.tokens for unit in prepared.units)
        self._units_per_input[task].add(len(prepared.units) / len(call.inputs))
        if tokens and len(prepared.units) == len(call.inputs):
            texts = sum(len(text) for text in call.inputs if isinstance(text, str))
            if texts:
                self._chars_per_token.add(texts / tokens)
        self.metrics.inputs.labels(task).inc(len(call.inputs))
        self.metrics.tokens.labels(task).inc(tokens)

    def close(self) -> None:
        """End the pool's threads; does not wait for what they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)
