"""Scaling on a real Kubernetes with its default 15 s HPA sync, beside what its peers did there.

The steps of the peers' measurement: a stub engine of 100 ms and four requests at once (40 requests
a second of one replica), ready about 1 s after its order. Their figures come from a quiet machine
of the same size; the load of this one is printed with ours. Every request is unique, the cache is
on and of no use. Run by ``make bench-cluster``.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

from tests.support.cluster.cluster import Cluster
from tests.support.paced_load import Outcome, Phase, start
from tests.support.published import GATEWAY, Published, stub
from tests.support.release import Release
from tests.support.replica_log import ReplicaLog, replica_log

BEHAVIOUR = "ms100-slots4-start1000"
SLOW_SECONDS = 0.5
PATIENCE_SECONDS = 180.0


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, ours, and what the peers had."""

    step: str
    ours: str
    knative: str
    kubeai: str
    keda: str

    def cells(self) -> list[str]:
        return [self.step, self.ours, self.knative, self.kubeai, self.keda]


class Bench:
    """The platform on one cluster, and a namespace for the services."""

    def __init__(self, cluster: Cluster, release: Release, namespace: str) -> None:
        self.cluster = cluster
        self.release = release
        self.namespace = namespace
        self.figures: dict[str, Any] = {}

    def publish(self, name: str, **scaling: Any) -> Published:
        service = Published(self.cluster, self.namespace, name, seconds=PATIENCE_SECONDS)
        service.apply(stub(BEHAVIOUR, scaling={"maxReplicas": 20, "initialReplicas": 0, **scaling}))
        service.until(lambda: service.condition().get("status") == "True", f"{name} is known")
        return service

    def send(self, services: list[Published], *phases: Phase) -> Outcome:
        models = [service.model for service in services]
        return start(self.cluster, GATEWAY, models, phases).finish()

    # The steps -----------------------------------------------------------------------------------

    def wake_one(self, log: ReplicaLog) -> list[Row]:
        """A sleeping service gets one request; three times."""
        seconds, beside, orders = [], [], []
        for number in range(3):
            service = self.publish(f"one-{number}")
            outcome = self.send([service], Phase(0, 0.1, burst=1))
            # The gateway asks a new worker itself, and may be answered before Kubernetes knows.
            service.until(lambda name=service.name: log.now(name).ready == 1, "it is ready")
            ready = log.first(service.name, outcome.began, ready=1)
            ordered = log.first(service.name, outcome.began, ordered=1)
            assert ready is not None
            assert ordered is not None
            seconds.append(outcome.last)
            orders.append(ordered - outcome.began)
            beside.append(outcome.last - (ready - ordered))
        self.figures["wake_one"] = {"seconds": seconds, "ordered": orders, "beside_start": beside}
        mine = (
            f"{statistics.median(seconds):.2f} s (order after {statistics.median(orders):.2f} s;"
            f" pod start + {statistics.median(beside):.2f} s)"
        )
        return [Row("wake, one request", mine, "0.77 s", "2.6–3.3 s", "cannot hold")]

    def wake_fifty(self, log: ReplicaLog) -> list[Row]:
        """A service that has run before sleeps and gets 50 requests at once."""
        service = self.publish("fifty", idleAfter="5s")
        self.send([service], Phase(0, 2.0, burst=1), Phase(20, 3))
        service.until(lambda: log.now("fifty").ordered == 0, "asleep again")
        outcome = self.send([service], Phase(0, 0.1, burst=50))
        risen = [s for s in log.history["fifty"] if s.at >= outcome.began and s.ordered]
        p99, failed = outcome.percentile(99), len(outcome.failed)
        first, peak = risen[0].ordered, log.peak("fifty", outcome.began)
        self.figures["wake_fifty"] = {"first": first, "peak": peak, "p99": p99, "failed": failed}
        return [
            Row(
                "wake, 50 at once: first order → peak / p99 / failed",
                f"{first} → {peak} / {p99:.1f} s / {failed}",
                "1 → 9–11 / 2.4 s / 0",
                "1 / 4.3–4.6 s / 0",
                "1 → 8 / 3.1–4.4 s / 0",
            )
        ]

    def wake_twenty(self, log: ReplicaLog) -> list[Row]:
        """Twenty sleeping services get one request each at one instant."""
        services = [self.publish(f"many-{n}", maxReplicas=1) for n in range(20)]
        outcome = self.send(services, Phase(0, 0.1, burst=1))
        orders = [log.first(s.name, outcome.began, ordered=1) for s in services]
        last_order = max(at or float("inf") for at in orders) - outcome.began
        self.figures["wake_twenty"] = {
            "last_order": last_order,
            "last_answer": outcome.last,
            "failed": len(outcome.failed),
        }
        for service in services:
            service.kubectl("delete", "inf", service.name, "--wait=false")
        failed = len(outcome.failed)
        mine = f"{outcome.last:.1f} s (last order after {last_order:.2f} s), {failed} failed"
        return [Row("wake of 20 models at one instant, last answer", mine, "–", "60 s", "–")]

    def step_fall_stop(self, log: ReplicaLog) -> list[Row]:
        """20 → 120 requests a second for a minute, back to 20, and then nothing."""
        service = self.publish("step", initialReplicas=1)
        service.until_ready(1)
        phases = [Phase(20, 15), Phase(120, 60), Phase(20, 60), Phase(0, 1.0)]
        outcome = self.send([service], *phases)
        up, down, end = (outcome.began + seconds for seconds in (15, 75, 135))
        history = log.history["step"]
        service.until(lambda: log.now("step").ordered == 0, "asleep")
        first = next(s.at for s in history if s.at > up and s.ordered > 1) - up
        enough = log.first("step", up, ready=4)
        peak = log.peak("step", up)
        single = next((s.at - down for s in history if s.at > down and s.ordered == 1), None)
        asleep = history[-1].at - end
        risen = outcome.between(15, 75)
        rest = outcome.between(75, 200)
        slow = risen.slower(SLOW_SECONDS)
        self.figures["step"] = {
            "first": first,
            "enough": enough and enough - up,
            "peak": peak,
            "slow": slow,
            "of": len(risen.answers),
            "failed": len(risen.failed),
            "to_one": single,
            "failed_after": len(rest.failed),
            "to_zero": asleep,
            "orders": [(round(s.at - up, 2), s.ordered, s.ready) for s in history if s.at > up],
        }
        return [
            Row(
                "step 20 → 120 req/s: desired first raised",
                f"{first:.2f} s",
                "1.2 s",
                "9.5 s",
                "1.2–9.5 s",
            ),
            Row(
                "… enough pods ready",
                f"{enough - up:.1f} s" if enough else "never",
                "17 s (9.7)",
                "12 s (7.4)",
                "2.9–11 s",
            ),
            Row("… peak replicas (comfortable 4–5)", str(peak), "184 (62)", "8–13", "20 = cap"),
            Row(
                "… requests over 500 ms or failed",
                f"{slow} of {len(risen.answers)} ({len(risen.failed)} failed)",
                "1 978 of 7 200",
                "1 413–1 811",
                "855–2 122",
            ),
            Row(
                "load falls: peak → 1 / failed meanwhile",
                f"{f'{single:.0f} s' if single else 'never'} / {len(rest.failed)}",
                "57 s / 0",
                "552 s / 17",
                "287 s / 17",
            ),
            Row("load stops: → 0", f"{asleep:.0f} s", "61 s", "622 s", "271 s"),
        ]

    def kills(self, log: ReplicaLog) -> list[Row]:
        """A worker's pod, a gateway, and both operators go under 40 requests a second."""
        service = self.publish("kills", minReplicas=2, initialReplicas=2, maxReplicas=5)
        service.until_ready(2)
        rows = []
        killed = {
            "worker pod deleted at once": ("delete", "pod", "--grace-period=0", "--force"),
            "gateway deleted (2 replicas)": (),
            "both operators deleted at once": (),
        }
        for step in killed:
            load = start(self.cluster, GATEWAY, [service.model], [Phase(40, 12), Phase(0, 0.1)])
            time.sleep(3)  # a load that has settled, not a condition
            self._kill(step, service)
            outcome = load.finish()
            failed = len(outcome.failed)
            self.figures[step] = {"failed": failed, "of": len(outcome.answers)}
            peers = _PEERS_KILLS[step]
            rows.append(Row(f"{step}: failed", f"{failed} of {len(outcome.answers)}", *peers))
        self._until_scaling_is_back(rows, log)
        return rows

    def _kill(self, step: str, service: Published) -> None:
        if step.startswith("worker"):
            pod = next(iter(service.workers(ready=True)))
            service.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
            return
        component = "gateway" if step.startswith("gateway") else "operator"
        pods = list(self.release.pods(component))[: 1 if component == "gateway" else None]
        force = ["--grace-period=0", "--force"] if component == "operator" else []
        self.cluster.kubectl("delete", "pod", "-n", self.release.namespace, *pods, *force)

    def _until_scaling_is_back(self, rows: list[Row], log: ReplicaLog) -> None:
        """Both operators are killed, and a sleeping service is asked for at the same moment."""
        service = self.publish("after-kill")
        pods = list(self.release.pods("operator"))
        namespace = self.release.namespace
        self.cluster.kubectl("delete", "pod", "-n", namespace, *pods, "--grace-period=0", "--force")
        outcome = self.send([service], Phase(0, 0.1, burst=1))
        ordered = log.first(service.name, outcome.began, ordered=1)
        back = (ordered or float("inf")) - outcome.began
        self.figures["scaling_back"] = {"seconds": back, "failed": len(outcome.failed)}
        rows.append(
            Row(
                "both operators killed: next wake ordered after",
                f"{back:.1f} s ({len(outcome.failed)} failed)",
                "75 s",
                "12–21 s",
                "60 s and more",
            )
        )


_PEERS_KILLS = {
    "worker pod deleted at once": ("22 (engine)", "0 (engine)", "–"),
    "gateway deleted (2 replicas)": ("603 (Envoy)", "7–11", "–"),
    "both operators deleted at once": ("0", "587–1 047", "1 910–6 600"),
}


def measure_all(cluster: Cluster, release: Release, namespace: str) -> tuple[list[Row], Any]:
    """Every step in turn, each with the cluster to itself."""
    bench = Bench(cluster, release, namespace)
    rows: list[Row] = []
    with replica_log(cluster, namespace) as log:
        for step in (
            bench.wake_one,
            bench.wake_fifty,
            bench.wake_twenty,
            bench.step_fall_stop,
            bench.kills,
        ):
            rows += step(log)
            print(f"  {step.__name__}: {[row.ours for row in rows]}", flush=True)
    return rows, bench.figures
