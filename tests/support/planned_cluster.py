"""A cluster that plans are carried out on, in memory: server-side apply, owners of a field, pods.

Only what planning can tell apart is played: who owns ``spec.replicas``, defaults and canonical
quantities of the API server, pods that follow their Deployment. The real API server has its own
tests (tests/cluster).
"""

import hashlib
import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sluice_api import names
from sluice_api.quantities import parse_quantity
from sluice_operator.ownership import Addition
from sluice_operator.plan import child_name
from sluice_operator.planning import plan_service
from sluice_operator.state import ChildKey, Learnt, Observed, Platform, Refusal, Wanted
from sluice_operator.steps import Apply, Delete, Plan, Rank, Scale, Step
from tests.support.resources import document

PLATFORM = Platform(
    namespace="sluice-system",
    gateway_url="http://sluice-gateway.sluice-system",
    gateway_labels={names.APP_NAME: "sluice", names.COMPONENT: "gateway"},
    worker_image="registry.example/sluice/worker:1",
    worker_image_gpu="registry.example/sluice/worker-gpu:1",
    image_volumes=True,
)
START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


class PlannedCluster:
    """One service and all that belongs to it."""

    def __init__(self, platform: Platform = PLATFORM, **changes: Any) -> None:
        self.platform = platform
        self.now = START
        self.wanted: dict[str, Wanted] = {}
        self.learnt = Learnt()
        self.children: dict[ChildKey, dict[str, Any]] = {}
        self.managers: dict[str, frozenset[str]] = {}
        self.orphans: set[ChildKey] = set()
        self.added: dict[ChildKey, dict[Addition, tuple[str, ...]]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, Refusal] = {}
        self.costs: dict[str, int] = {}
        self._numbers = 0
        self.resource = document(**changes)
        self.resource["metadata"] |= {
            "namespace": "default",
            "uid": "u-1",
            "generation": 1,
            "creationTimestamp": _time(START),
        }

    def __repr__(self) -> str:
        children = ", ".join("/".join(key) for key in sorted(self.children))
        return f"<PlannedCluster {children}; {len(self.pods)} pods>"

    def edit(self, **changes: Any) -> None:
        """A new spec, as ``kubectl apply`` of a whole file would bring it."""
        self.resource["spec"] = document(**changes)["spec"]
        self.resource["metadata"]["generation"] += 1

    def want(self, **numbers: int) -> None:
        """What scaling says from now on, as ``r4f1c2ab9d0=2``: a digest may begin with a digit."""
        for name, number in numbers.items():
            self.wanted[name.removeprefix("r")] = Wanted(number, "arrivals", f"{number} are asked")

    def observed(self) -> Observed:
        pods = [deepcopy(self.pods[name]) for name in sorted(self.pods)]
        for pod in pods:
            if cost := self.costs.get(pod["metadata"]["name"]):
                pod["metadata"]["annotations"] = {names.DELETION_COST: str(cost)}
        return Observed(
            resource=deepcopy(self.resource),
            children=deepcopy(self.children),
            replicas_managers=dict(self.managers),
            additions={key: tuple(self.added[key]) for key in self.added.keys() & self.children},
            orphans=frozenset(self.orphans & self.children.keys()),
            pods=tuple(pods),
            refusals=dict(self.refusals),
        )

    def add(self, key: ChildKey, value: Any, *path: str, manager: str = "kubectl-edit") -> None:
        """Somebody else sets a field of a child that the operator does not have."""
        _place(self.children[key], path)[path[-1]] = value
        self.added.setdefault(key, {})[Addition(manager, ".".join(path))] = path

    def orphan(self, key: ChildKey) -> None:
        """Somebody takes a child's owner away."""
        self.children[key]["metadata"]["ownerReferences"] = []
        self.orphans.add(key)

    def plan(self, late: Observed | None = None) -> Plan:
        """What is to be done; with ``late``, as if no number had changed hands since then."""
        seen = self.observed()
        if late is not None:
            children = deepcopy(self.children)
            for key, child in late.children.items():
                if key.kind == "Deployment" and key in children:
                    children[key]["spec"]["replicas"] = child["spec"]["replicas"]
            managers = {**seen.replicas_managers, **late.replicas_managers}
            seen = replace(seen, children=children, replicas_managers=managers)
        return plan_service(seen, self.wanted, self.learnt, self.platform, self.now)

    def carry_out(self, plan: Plan, *, steps: int | None = None) -> None:
        """Write the status and the first ``steps`` steps (all without a number)."""
        self.resource["status"] = deepcopy(plan.status)
        for step in plan.steps[:steps]:
            self._do(step)

    def settle(self, *, most: int = 12) -> Plan:
        """Plan and carry out until nothing is left to write, at one moment. The last plan."""
        for _ in range(most):
            plan = self.plan()
            if not plan.steps and plan.status == self.resource.get("status"):
                return plan
            self.carry_out(plan)
        raise AssertionError(f"no end of writes: {plan.steps}")

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # What Kubernetes does ------------------------------------------------------------------------

    def run_pods(self, *, ready: bool = True) -> None:
        """Every Deployment gets its pods, all of them ready or none of the new ones.

        Pods of the template before stay while a new one is not ready.
        """
        for (kind, name), child in self.children.items():
            if kind != "Deployment":
                continue
            count, made_from = int(child["spec"]["replicas"]), _hash(child)
            mine = sorted(p for p, pod in self.pods.items() if pod["owner"] == name)
            new = [p for p in mine if _hash_of_pod(self.pods[p]) == made_from]
            old = [p for p in mine if p not in new]
            staying = 0 if ready else min(len(old), count)
            for pod in [*old[staying:], *new[count:]]:
                del self.pods[pod]
            for _ in range((min(1, count) if staying else count) - len(new)):
                self._numbers += 1
                pod_name = f"{name}-{self._numbers}"
                self.pods[pod_name] = _pod(pod_name, name, child, ready=ready)
            self._report(name, child)
        for pod in self.pods.values() if ready else ():
            pod["status"] = _status(ready=True)
        for name in [p for p, pod in self.pods.items() if not self._has_owner(pod)]:
            del self.pods[name]

    def _report(self, name: str, deployment: dict[str, Any]) -> None:
        """What the controller writes into a Deployment's status."""
        mine = [pod for pod in self.pods.values() if pod["owner"] == name]
        new = [pod for pod in mine if _hash_of_pod(pod) == _hash(deployment)]
        message = f'ReplicaSet "{name}-{_hash(deployment)}" is progressing.'
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(mine),
            "updatedReplicas": len(new),
            "conditions": [{"type": "Progressing", "status": "True", "message": message}],
        }

    def make_ready(self, revision: str, count: int) -> None:
        """So many pods of a revision are ready, the others are not."""
        owner = child_name(self.resource["metadata"]["name"], revision)
        mine = [pod for pod in self.pods.values() if pod["owner"] == owner]
        for number, pod in enumerate(mine):
            pod["status"] = _status(ready=number < count)

    def _has_owner(self, pod: dict[str, Any]) -> bool:
        return ChildKey("Deployment", pod["owner"]) in self.children

    # What the API server does --------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        match step:
            case Apply():
                self._apply(deepcopy(dict(step.object)), step)
            case Scale():
                key = ChildKey("Deployment", step.deployment)
                if self.children[key]["spec"]["replicas"] != step.replicas:
                    self.children[key]["metadata"]["generation"] += 1
                self.children[key]["spec"]["replicas"] = step.replicas
                before = self.managers.get(step.deployment, frozenset())
                same = {names.FIELD_MANAGER} & before  # shared while the value is the same
                self.managers[step.deployment] = frozenset({names.SCALER_FIELD_MANAGER} | same)
            case Delete():
                found = self.children[ChildKey(step.kind, step.name)]
                assert found["metadata"]["uid"] == step.uid
                del self.children[ChildKey(step.kind, step.name)]
                self.managers.pop(step.name, None) if step.kind == "Deployment" else None
            case Rank():
                self.costs[step.pod] = step.cost

    def _apply(self, wanted: dict[str, Any], step: Apply) -> None:
        key = ChildKey(wanted["kind"], wanted["metadata"]["name"])
        found = self.children.get(key)
        if key.kind == "Deployment":
            self._own_replicas(key.name, wanted, found, step.manager)
        wanted["metadata"]["uid"] = (
            found["metadata"]["uid"] if found else f"uid-{key.kind}-{key.name}"
        )
        served = _served(wanted)
        served["metadata"]["generation"] = 1
        served["metadata"]["creationTimestamp"] = _time(self.now)
        if found:
            served["metadata"]["creationTimestamp"] = found["metadata"]["creationTimestamp"]
            changed = found.get("spec") != served.get("spec")
            served["metadata"]["generation"] = found["metadata"]["generation"] + changed
            served["status"] = found.get("status", {})
        self.children[key] = served
        self.orphans.discard(key)
        added = self.added.pop(key, {})
        if found and not step.take_over:
            for addition, path in added.items():
                self.add(key, _place(found, path)[path[-1]], *path, manager=addition.manager)

    def _own_replicas(
        self, name: str, wanted: dict[str, Any], found: dict[str, Any] | None, manager: str
    ) -> None:
        owners = self.managers.get(name, frozenset())
        if "replicas" in wanted["spec"]:
            self.managers[name] = owners | {manager}
            assert not found or found["spec"]["replicas"] == wanted["spec"]["replicas"]
            return
        left = owners - {manager}
        self.managers[name] = left
        # A field that nobody owns any more falls back to its default.
        wanted["spec"]["replicas"] = found["spec"]["replicas"] if found and left else 1
        if found:
            was, now = found["spec"]["replicas"], wanted["spec"]["replicas"]
            assert was == now, f"{name}: applying changed replicas from {was} to {now}"


def _served(item: dict[str, Any]) -> dict[str, Any]:
    """What the API server hands back: with defaults, quantities in its own spelling."""
    if item["kind"] == "Deployment":
        pod = item["spec"]["template"]["spec"]
        pod |= {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst"}
        for container in pod["containers"]:
            container["terminationMessagePath"] = "/dev/termination-log"
            for amounts in container["resources"].values():
                amounts.update({name: _canonical(text) for name, text in amounts.items()})
    if item["kind"] == "Service":
        item["spec"] |= {"type": "ClusterIP", "clusterIPs": ["None"], "sessionAffinity": "None"}
    return item


def _place(item: dict[str, Any], path: tuple[str, ...]) -> Any:
    """What the last field of a path is in."""
    for step in path[:-1]:
        item = item.setdefault(step, {})
    return item


def _canonical(text: str) -> str:
    amount = parse_quantity(text)
    if amount.denominator != 1:
        return f"{int(amount * 1000)}m"
    for suffix, size in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if text.endswith("i") and amount % size == 0:
            return f"{int(amount / size)}{suffix}"
    return str(int(amount))


def _hash(deployment: dict[str, Any]) -> str:
    """What Kubernetes calls pods of this template."""
    template = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()[:10]


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _hash_of_pod(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["pod-template-hash"])


def _pod(name: str, owner: str, deployment: dict[str, Any], *, ready: bool) -> dict[str, Any]:
    return {
        "owner": owner,
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "creationTimestamp": _time(START),
            "labels": {
                **deployment["spec"]["template"]["metadata"]["labels"],
                "pod-template-hash": _hash(deployment),
            },
        },
        "spec": {"nodeName": "node1"},
        "status": _status(ready=ready),
    }


def _status(*, ready: bool) -> dict[str, Any]:
    return {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [
            {"type": "Ready", "status": "True" if ready else "False"},
            {"type": "PodScheduled", "status": "True"},
        ],
        "containerStatuses": [
            {
                "name": "worker",
                "ready": ready,
                "restartCount": 0,
                "state": {"running": {"startedAt": "2026-11-23T10:00:00Z"}},
            }
        ],
    }
