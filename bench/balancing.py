"""What choosing costs as there are more of everything: endpoints, tenants, services.

One process, no network: the cost of a choice is a few microseconds of Python and would be lost in a
request's. Each row is a ratio to its first column, so that it says the same on every machine; the
sizes take turns within a round, medians of the rounds.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import measure

from sluice_api import wire
from sluice_gateway.auth import Anonymous
from sluice_gateway.balance import Rules
from sluice_gateway.endpoint import Lease
from sluice_gateway.endpoints import EndpointSet
from sluice_gateway.fair_queue import FairQueue
from sluice_gateway.priority import Priority
from sluice_gateway.services import Services
from sluice_gateway.timers import TimerWheel

ENDPOINTS: Final = (2, 10, 100, 1000)
TENANTS: Final = (1, 10, 100, 1000)
SERVICES: Final = (1, 10, 100, 1000, 5000)
LATER: Final = 1e9
"""A moment at which nothing starts slowly any more."""
Work = Callable[[int], None]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=20_000, help="operations per measurement")
    options = parser.parse_args(arguments)
    asyncio.run(_measure_all(options.rounds, options.count))


async def _measure_all(rounds: int, count: int) -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    report: dict[str, Any] = {}
    for title, sizes, make in (
        ("two choices, nearly idle, by endpoints", ENDPOINTS, lambda n: _choose(wheel, n, 0)),
        ("two choices, one place free, by endpoints", ENDPOINTS, lambda n: _choose(wheel, n, 1)),
        ("prefix, by endpoints", ENDPOINTS, lambda n: _choose(wheel, n, 0, 12345678901234567)),
        ("in and out of the queue, by tenants that wait", TENANTS, _queue),
        ("resolving a name, by services", SERVICES, lambda n: _resolve(wheel, n)),
    ):
        report[title] = _compare(title, sizes, make, rounds, count)
    measure.save("balancing", report)


def _compare(
    title: str, sizes: tuple[int, ...], make: Callable[[int], Work], rounds: int, count: int
) -> dict[str, float]:
    """Print and return microseconds by size."""
    works = {size: make(size) for size in sizes}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, work in works.items():
            began = time.process_time()
            work(count)
            times[size].append((time.process_time() - began) / count * 1e6)
    medians = {size: statistics.median(found) for size, found in times.items()}
    first = medians[sizes[0]]
    measure.table(
        title,
        ["", "µs", "ratio"],
        [[str(size), f"{us:.2f}", f"{us / first:.2f}"] for size, us in medians.items()],
    )
    return {str(size): us for size, us in medians.items()}


class _Holder:
    def __init__(self, affinity: int | None = None) -> None:
        self.affinity = affinity

    def endpoint_lost(self) -> None: ...


def _choose(wheel: TimerWheel, size: int, free: int, affinity: int | None = None) -> Work:
    """Choosing and giving back. ``free`` places in all, or 0 for nearly all of them."""
    endpoints = EndpointSet(wheel, lambda: None, Rules(slow_start_seconds=0.0))
    table = [wire.Endpoint(url=f"http://10.0.{n // 250}.{n % 250}:80") for n in range(size)]
    endpoints.apply(table, "r", "", {})
    capacity = wire.Capacity(limit=16)
    ready = wire.Readiness(phase=wire.Phase.READY, model="m", revision="r", capacity=capacity)
    for endpoint in endpoints.all.values():
        endpoint.proved(ready, 0.0)
    holder = _Holder(affinity)
    held: list[Lease] = []
    while free and len(held) < 16 * size - free:
        lease = endpoints.choose(holder, frozenset(), LATER)
        assert lease is not None
        held.append(lease)

    def work(count: int) -> None:
        for _ in range(count):
            lease = endpoints.choose(holder, frozenset(), LATER)
            assert lease is not None
            lease.release()

    return work


class _Waiting:
    weight = 1
    units = 1
    priority = Priority.NORMAL

    def __init__(self, tenant: bytes) -> None:
        self.tenant = tenant


def _queue(size: int) -> Work:
    queue: FairQueue[_Waiting] = FairQueue()
    for number in range(max(1000, size)):
        queue.add(_Waiting(b"%d" % (number % size)))

    def work(count: int) -> None:
        for _ in range(count):
            queue.add(queue.pop())

    return work


def _resolve(wheel: TimerWheel, size: int) -> Work:
    services = Services(wheel, lambda _: None)
    for number in range(size):
        services.put(wire.Service(name=f"service-{number}", revision="r", public=True))
    tenant = Anonymous(b"secret").identify(None)
    name = f"service-{size // 2}"

    def work(count: int) -> None:
        for _ in range(count):
            services.resolve(name, tenant, None)

    return work


if __name__ == "__main__":
    main([])
