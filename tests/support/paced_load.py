"""Open-loop load with unique inputs from inside a cluster's network, at full speed.

Tests and benchmarks :func:`start` it; it runs as a program of its own (``python -m …``), because a
load that shares a process with what looks at it falls behind. It prints one JSON document.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.arrivals import left_out
from tests.support.cluster.access import Access

TIMEOUT_SECONDS = 120.0
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Phase:
    """So many requests a second for so long; a rate of 0 pauses.

    Attributes:
        burst: requests at once at the beginning, beside the rate.
    """

    rate: float
    seconds: float
    burst: int = 0


@dataclass
class Answer:
    """One request. ``at``: seconds from the beginning; ``status`` 0: no answer, see ``error``."""

    model: str
    at: float
    seconds: float
    status: int
    error: str = ""


@dataclass
class Outcome:
    """All requests, in the order of sending.

    Attributes:
        began: wall clock.
    """

    began: float
    answers: list[Answer] = field(default_factory=list)

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def between(self, start: float, end: float) -> "Outcome":
        """Those sent in this part of the time."""
        return Outcome(self.began, [a for a in self.answers if start <= a.at < end])

    def slower(self, seconds: float) -> int:
        """Requests that took longer or failed."""
        return sum(a.status != 200 or a.seconds > seconds for a in self.answers)

    def percentile(self, percent: int) -> float:
        """Seconds within which so many percent of the good answers came."""
        ordered = sorted(a.seconds for a in self.good) or [float("nan")]
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

    @property
    def last(self) -> float:
        """Seconds from the beginning to the last good answer."""
        return max((a.at + a.seconds for a in self.good), default=float("nan"))

    def __repr__(self) -> str:
        median = statistics.median(a.seconds for a in self.good) if self.good else float("nan")
        failures = sorted({f"{a.status} {a.error[:200]}" for a in self.failed})[:3]
        return (
            f"<Outcome {len(self.answers)} requests, {len(self.failed)} failed {failures},"
            f" median {median:.3f} s, p99 {self.percentile(99):.3f} s>"
        )


class Running:
    """A load that goes on; as a context it is ended with the block, whatever happens in there."""

    def __init__(self, child: "subprocess.Popen[str]", seconds: float) -> None:
        self._child = child
        self._seconds = seconds

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._child.returncode is None:
            self._child.communicate()

    def _end(self) -> None:
        """The program too, not only the command that entered the cluster for it."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)

    def finish(self) -> Outcome:
        """Wait for all answers. Raises RuntimeError when the program failed."""
        try:
            out, errors = self._child.communicate(timeout=self._seconds + TIMEOUT_SECONDS + 30)
        finally:
            self._end()
        if self._child.returncode:
            raise RuntimeError(errors)
        told = json.loads(out)
        return Outcome(told["began"], [Answer(*answer) for answer in told["answers"]])


def start(cluster: Access, url: str, models: Sequence[str], phases: Sequence[Phase]) -> Running:
    """Begin to send. Each phase is sent to every model.

    Args:
        url: of the gateway, as it is reached inside.
    """
    plan = json.dumps([[phase.rate, phase.seconds, phase.burst] for phase in phases])
    command = [sys.executable, "-m", __name__, url, json.dumps(list(models)), plan]
    child = subprocess.Popen(
        [*cluster.entering(), *command],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Running(child, sum(phase.seconds for phase in phases))


# The program -------------------------------------------------------------------------------------


async def _send(url: str, models: list[str], phases: list[list[float]]) -> dict[str, Any]:
    run, answers = uuid.uuid4().hex, list[list[Any]]()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        # A pool of connections that exist already: their making is not what is measured.
        began, wall = time.monotonic(), time.time()
        number, due = 0, began
        async with asyncio.TaskGroup() as group:

            def ask() -> None:
                nonlocal number
                for model in models:
                    text = f"{run} {number}"
                    number += 1
                    group.create_task(_ask(session, url, model, text, began, answers))

            for rate, seconds, burst in phases:
                end = due + seconds
                for _ in range(int(burst)):
                    ask()
                while rate and due < end:
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    ask()
                    pause = left_out(due, time.monotonic())
                    due, end = due + pause + 1 / rate, end + pause
                due = end
                await asyncio.sleep(max(0.0, due - time.monotonic()))
    return {"began": wall, "answers": sorted(answers, key=lambda answer: answer[1])}


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    text: str,
    began: float,
    answers: list[list[Any]],
) -> None:
    sent, status, error = time.monotonic(), 0, ""
    try:
        body = {"model": model, "input": text}
        async with session.post(f"{url}/v1/embeddings", json=body) as response:
            said = await response.read()
            status = response.status
            if status != 200:
                error = said.decode(errors="replace")[:500]
    except (aiohttp.ClientError, TimeoutError, OSError) as failure:
        error = repr(failure)
    answers.append([model, sent - began, time.monotonic() - sent, status, error])


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_send(sys.argv[1], *map(json.loads, sys.argv[2:])))))
