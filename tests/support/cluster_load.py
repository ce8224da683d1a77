"""Open-loop load from inside the cluster's network, through a Service as applications see it.

The generator is this module as a program in the cluster's namespaces, without a relay in between;
`cluster_load` starts it and follows its answers while a test does its worst. Every input is unique,
so no cache hides a failure, and no request is sent twice.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp

from sluice_api import names
from tests.support.arrivals import left_out
from tests.support.cluster.cluster import Cluster

ROOT = Path(__file__).parents[2]
ANSWER_SECONDS = 40.0
"""A request that has no answer by then has failed."""


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        began: seconds since the load began.
        took: seconds until the last byte of the answer, or until it failed.
        status: of HTTP; 0 where there was no answer.
        revision: that the answer names.
        why: body or exception of what is no good answer.
    """

    began: float
    took: float
    status: int
    revision: str = ""
    why: str = ""

    @property
    def ended(self) -> float:
        return self.began + self.took


@dataclass
class Load:
    """The answers until now, in the order in which they came."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in list(self.answers) if answer.status != 200]

    @property
    def revisions(self) -> Counter[str]:
        """Good answers by the revision they name."""
        return Counter(answer.revision for answer in list(self.answers) if answer.status == 200)

    def more(self, count: int) -> Callable[[], bool]:
        """A condition: so many more answers than now."""
        goal = len(self.answers) + count
        return lambda: len(self.answers) >= goal

    def __repr__(self) -> str:
        slowest = max((answer.took for answer in list(self.answers)), default=0.0)
        return (
            f"<Load {len(self.answers)} answers, {len(self.failures)} failures, "
            f"slowest {slowest:.2f} s, {dict(self.revisions)}>"
        )


@contextmanager
def cluster_load(
    cluster: Cluster, url: str, model: str, rate: float, *, keep_alive: bool = False
) -> Iterator[Load]:
    """``rate`` requests a second until the block ends; then all answers are awaited.

    Args:
        url: of the gateway as the cluster's pods know it.
        keep_alive: connections are used again, as by a client with a pool; otherwise each request
            makes one of its own. Either way a request is sent once.
    """
    command = [*cluster.entering(), sys.executable, "-m", __spec__.name, url, model, str(rate)]
    command += ["--keep-alive"] if keep_alive else []
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    load, lines = Load(), process.stdout

    def follow() -> None:
        for line in lines:
            load.answers.append(Answer(**json.loads(line)))

    follower = threading.Thread(target=follow, name="load", daemon=True)
    follower.start()
    try:
        yield load
    finally:
        process.stdin.close()
        try:
            code = process.wait(ANSWER_SECONDS + 10)
        finally:
            process.kill()
            process.wait()
            follower.join(5)
            lines.close()
        assert code == 0, f"the load generator ended with {code}"


# The program --------------------------------------------------------------------------------------


async def _generate(url: str, model: str, rate: float, keep_alive: bool) -> None:
    """Ask until standard input ends, then wait for the answers."""
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as requests,
    ):
        start = due = loop.time()
        number = 0
        while not ended.done():
            body = {"model": model, "input": f"{time.time_ns()} {number}"}
            requests.create_task(_ask(session, f"{url}/v1/embeddings", body, start))
            number += 1
            due += left_out(due, loop.time()) + 1 / rate
            await asyncio.wait([ended], timeout=max(0.0, due - loop.time()))


async def _ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, str], start: float
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    status, revision, why = 0, "", ""
    try:
        # POST is not idempotent, so aiohttp never sends it a second time.
        async with session.post(url, json=body) as response:
            text = await response.text()
            status, revision = response.status, response.headers.get(names.REVISION, "")
            why = "" if status == 200 else text[:500]
    except (aiohttp.ClientError, TimeoutError) as error:
        why = repr(error)
    answer = Answer(began - start, loop.time() - began, status, revision, why)
    sys.stdout.write(json.dumps(asdict(answer)) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("rate", type=float, help="requests a second")
    parser.add_argument("--keep-alive", action="store_true")
    told = parser.parse_args()
    asyncio.run(_generate(told.url, told.model, told.rate, told.keep_alive))


if __name__ == "__main__":
    main()
