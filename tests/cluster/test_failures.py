"""Failures of real pods and objects: each shows its reason in status within five seconds.

Nothing here patches a status. Services fail side by side in one namespace, while one look after the
other notes when Kubernetes shows a failure and when the service says so.
"""

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from sluice_api import names
from tests.support import chart
from tests.support.cluster.access import Access
from tests.support.cluster.choice import release
from tests.support.cluster.cluster import Cluster
from tests.support.failure_cases import (
    Case,
    at_once,
    cases,
    container_ended,
    images,
    manifest,
    pods_refused,
    scene_of,
)
from tests.support.release import Release

REACTION_SECONDS = 5.0
WRITES = 7
"""Most that the operator writes one after the other until it has told: a status, what all revisions
share (3), the Service, the Deployment, the status again."""
RENEWAL_SECONDS = 1.0
"""The leader means to renew its lease, which is one write, so often."""
DEADLINE_SECONDS = 240.0
AT_ONCE = 5
"""Services made side by side: more would measure how fast the machine starts containers."""
LOOK_SECONDS = 0.3
NAMESPACE = "failures"
"""Of those that fail side by side."""

pytestmark = pytest.mark.usefixtures("platform")

TABLE = {case.name: case for case in cases("no-folder-of-failures")}


@dataclass
class Record:
    """When something was first seen, on the monotonic clock, and what was said last."""

    until: float
    shown_at: float | None = None
    told_at: float | None = None
    longest_look: float = 0.0
    """Seconds between two looks: no time is known better."""
    longest_pause: float = 0.0
    """Seconds between two renewals of the leader's lease: what keeps it from that, as a busy
    machine does, keeps it from all else."""
    condition: dict[str, Any] = field(default_factory=dict)
    under_way_and_stalled: bool = False
    """Whether it was ever both, of which tools can make nothing."""
    story: list[str] = field(default_factory=list)
    """Each thing that was seen of it and was new, with the monotonic clock."""

    @property
    def is_complete(self) -> bool:
        return self.shown_at is not None and self.told_at is not None

    def __str__(self) -> str:
        times = f"shown at {self.shown_at}, told at {self.told_at}; at most"
        pauses = f"{self.longest_look:.1f} s between looks, {self.longest_pause:.1f} of the leader"
        return "\n".join([f"{times} {pauses}", *self.story])

    def tell(self, at: float, seen: str) -> None:
        """Take it into the story, if the last of its kind was another."""
        kind = seen.partition(":")[0]
        last = next((one for one in reversed(self.story) if f" {kind}:" in one), "")
        if not last.endswith(f" {seen}"):
            self.story.append(f"{at:.1f} {seen}")


def pods_told(pods: Sequence[Mapping[str, Any]]) -> str:
    """What the pods are, in a line."""
    told = []
    for pod in pods:
        status = pod["status"]
        ends = [
            str(name)
            for container in status.get("containerStatuses") or ()
            for name in container["state"]
        ]
        held = [c["type"] for c in status.get("conditions") or () if c["status"] == "True"]
        parts = [status["phase"], status.get("reason", ""), *ends, *held]
        told.append(f"{pod['metadata']['name']} ({' '.join(filter(None, parts))})")
    return f"pods: {', '.join(told)}"


class Eyes:
    """Looks at everything in a namespace, again and again."""

    def __init__(self, cluster: Access, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._renewed = self._renewal()

    def _renewal(self) -> datetime:
        """When the leader renewed its lease last."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{chart.NAMESPACE}/leases/{names.LEASE}"
        return datetime.fromisoformat(self._cluster.read(path)["spec"]["renewTime"])

    def list(self, prefix: str, plural: str) -> list[dict[str, Any]]:
        found = self._cluster.read(f"{prefix}/namespaces/{self._namespace}/{plural}")
        items: list[dict[str, Any]] = found["items"]
        return items

    def service(self, name: str) -> dict[str, Any]:
        services = self.list(f"/apis/{names.API_VERSION}", names.PLURAL)
        return next(item for item in services if item["metadata"]["name"] == name)

    def follow(self, coming: Sequence[Case]) -> dict[str, Record]:
        """Make the services, a few at a time, until every case was told or its time is over."""
        waiting = list(coming)
        made: dict[str, Case] = {}
        records: dict[str, Record] = {}
        looked_at = time.monotonic()
        while True:
            self._look(made, records)
            before, self._renewed = self._renewed, self._renewal()
            pause = (self._renewed - before).total_seconds()
            now = time.monotonic()
            for record in records.values():
                if record.told_at is None or record.told_at > looked_at:
                    record.longest_look = max(record.longest_look, now - looked_at)
                    record.longest_pause = max(record.longest_pause, pause)
            looked_at = now
            open_ones = [r for r in records.values() if not r.is_complete and now < r.until]
            if not open_ones and not waiting:
                return records
            while waiting and len(open_ones) < AT_ONCE:
                case = waiting.pop(0)
                resource = manifest(self._namespace, [case.resource(self._namespace)])
                self._cluster.kubectl("apply", "-f", "-", stdin=resource)
                made[case.name] = case
                records[case.name] = Record(until=time.monotonic() + DEADLINE_SECONDS)
                open_ones.append(records[case.name])
            time.sleep(LOOK_SECONDS)

    def _look(self, watched: Mapping[str, Case], records: dict[str, Record]) -> None:
        pods = self.list("/api/v1", "pods")
        deployments = self.list("/apis/apps/v1", "deployments")
        addresses = self.list("/api/v1", "services")
        events = self.list("/api/v1", "events")
        seen_at = time.monotonic()
        services = {
            item["metadata"]["name"]: item
            for item in self.list(f"/apis/{names.API_VERSION}", names.PLURAL)
        }
        told_at = time.monotonic()
        for name, case in watched.items():
            record = records[name]
            scene = scene_of(name, pods, deployments, addresses, events)
            record.tell(seen_at, pods_told(scene.pods))
            if record.shown_at is None and case.shown(scene):
                record.shown_at = seen_at
            conditions = services.get(name, {}).get("status", {}).get("conditions") or ()
            holds = {c["type"] for c in conditions if c["status"] == "True"}
            record.under_way_and_stalled |= {"Reconciling", "Stalled"} <= holds
            kind, status = case.condition
            condition: dict[str, Any] = next((c for c in conditions if c["type"] == kind), {})
            said = (condition.get("status"), condition.get("reason"), condition.get("message"))
            record.tell(told_at, f"{kind}: {' '.join(map(str, said))}")
            right = (condition.get("reason"), condition.get("status")) == (case.reason, status)
            # A claim that is not bound yet is a reason of the same name, and passes.
            right = right and all(word in condition["message"] for word in case.told)
            if record.told_at is None:
                record.condition = condition
                record.told_at = told_at if right else None


@pytest.fixture(scope="module")
def records(cluster: Cluster, platform: Release) -> Iterator[dict[str, Record]]:
    """What became of all cases, side by side."""
    cluster.load(*images())
    cluster.kubectl("create", "namespace", NAMESPACE)
    around = [item for case in TABLE.values() for item in case.around]
    cluster.kubectl("apply", "-f", "-", stdin=manifest(NAMESPACE, around))
    yield Eyes(cluster, NAMESPACE).follow(list(TABLE.values()))
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    cluster.kubectl("delete", "persistentvolume", "no-folder-of-failures", "--wait=false")


@pytest.mark.parametrize("name", TABLE)
def test_the_reason_shows(records: dict[str, Record], name: str) -> None:
    case, record = TABLE[name], records[name]
    if name == "no-model-image" and release() == "1.34":
        assert record.condition["reason"] == "VolumeFailed"
        assert "needs Kubernetes 1.35" in record.condition["message"]
        return
    check(record, case)


def check(record: Record, case: Case) -> None:
    """In time, with the words that help."""
    assert record.shown_at is not None, f"Kubernetes did not show it\n{record}"
    assert record.told_at is not None, f"the service did not say it\n{record}"
    if not case.only_told:
        pause = record.longest_pause
        late = max(0.0, pause - RENEWAL_SECONDS)  # One write, by the machine's doing.
        allowed = REACTION_SECONDS + record.longest_look + pause + (WRITES - 1) * late
        assert record.told_at - record.shown_at <= allowed, f"it was said too late\n{record}"
    assert not record.under_way_and_stalled, record
    for words in case.told:
        assert words in record.condition["message"], record.condition["message"]


def test_there_are_enough() -> None:
    failures = [
        case for case in TABLE.values() if case.reason not in ("Asleep", "Paused", "Starting")
    ]
    # Four more have tests of their own below: a quota, a policy, a broken revision, a lost node.
    assert len(failures) + 4 >= 25
    assert len({case.reason for case in failures}) >= 12


def follow(cluster: Cluster, namespace: str, case: Case) -> Record:
    """Make one service and look at it."""
    if case.around:
        cluster.kubectl("apply", "-f", "-", stdin=manifest(namespace, case.around))
    return Eyes(cluster, namespace).follow([case])[case.name]


def test_a_quota_shows(cluster: Cluster, namespace: str) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    told = ("exceeded quota: none", "describe resourcequota")
    case = Case("poor", "QuotaExceeded", told, pods_refused("exceeded quota"), around=(quota,))
    check(follow(cluster, namespace, case), case)


def test_what_the_cluster_forbids_shows(cluster: Cluster, namespace: str) -> None:
    """A policy of the platform team refuses the pods."""
    name = f"no-workers-{namespace}"
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                    }
                ]
            },
            "validations": [{"expression": "false", "message": "no pods on Sundays"}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {
            "policyName": name,
            "validationActions": ["Deny"],
            "matchResources": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
            },
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(binding))
    try:
        cluster.until(lambda: _pods_are_denied(cluster, namespace), "the policy to be in force")
        told = ("no pods on Sundays", "platform team")
        case = Case("forbidden", "PermissionDenied", told, pods_refused("Sundays"))
        check(follow(cluster, namespace, case), case)
    finally:
        cluster.kubectl("delete", "validatingadmissionpolicybinding", name)
        cluster.kubectl("delete", "validatingadmissionpolicy", name)


def _pods_are_denied(cluster: Cluster, namespace: str) -> bool:
    run = ("run", "probe", "-n", namespace, "--image=localhost/busybox:1", "--dry-run=server")
    return cluster.kubectl(*run, check=False).returncode != 0


def test_a_broken_revision_leaves_the_old_one_in_charge(cluster: Cluster, namespace: str) -> None:
    good = Case("rolls", "Ready", ("answers",), at_once, condition=("Ready", "True"))
    first = follow(cluster, namespace, good)
    assert first.told_at is not None, first.condition
    uri = {"model__uri": "hf://stub/start100-exit64"}
    told = ("exit code 64", "Correct spec.model")
    stalls = ("Stalled", "True")
    broken = Case("rolls", "ModelNotFound", told, container_ended(64), uri, condition=stalls)
    check(follow(cluster, namespace, broken), broken)
    answered = Eyes(cluster, namespace).service("rolls")["status"]
    conditions = {entry["type"]: entry for entry in answered["conditions"]}
    assert conditions["Ready"]["status"] == "True"
    assert conditions["Ready"]["reason"] == "RollingOut"
    assert "does not come up" in conditions["Ready"]["message"]
    assert conditions["Reconciling"]["status"] == "False"
    assert answered["readyReplicas"] == 1
    assert [entry["role"] for entry in answered["revisions"]] == ["stable", "next"]
    # Back to what works: nothing of the attempt is left.
    back = follow(cluster, namespace, good)
    assert back.told_at is not None
    cluster.until(
        lambda: len(Eyes(cluster, namespace).list("/apis/apps/v1", "deployments")) == 1,
        "the broken revision's Deployment to go",
    )


def test_a_service_that_is_held_back_from_going_says_so(cluster: Cluster, namespace: str) -> None:
    case = Case("going", "Ready", ("answers",), at_once, condition=("Ready", "True"))
    assert follow(cluster, namespace, case).told_at is not None
    finalizers = '{"metadata":{"finalizers":["example.com/held"]}}'
    patch = ("patch", "inf", "going", "-n", namespace, "--type=merge", "-p")
    cluster.kubectl(*patch, finalizers)
    cluster.kubectl("delete", "inf", "going", "-n", namespace, "--wait=false")

    def is_told() -> bool:
        conditions = Eyes(cluster, namespace).service("going")["status"]["conditions"]
        return any((c["type"], c["reason"]) == ("Ready", "Deleting") for c in conditions)

    try:
        cluster.until(is_told, "the status to say Deleting")
    finally:
        cluster.kubectl(*patch, '{"metadata":{"finalizers":null}}')
    cluster.until(
        lambda: not Eyes(cluster, namespace).list("/apis/apps/v1", "deployments"),
        "the children to go with it",
    )


def _is_given_up(cluster: Cluster) -> bool:
    conditions = cluster.read("/api/v1/nodes/node1")["status"]["conditions"]
    return any((each["type"], each["status"]) == ("Ready", "Unknown") for each in conditions)


@pytest.mark.minutes
def test_a_lost_node_shows(cluster: Cluster, namespace: str) -> None:
    awake = {"scaling__minReplicas": 1}  # while nobody asks for longer than a node takes to be lost
    case = Case("lost", "Ready", ("answers",), at_once, awake, condition=("Ready", "True"))
    assert follow(cluster, namespace, case).told_at is not None
    cluster.send("kubelet", signal.SIGSTOP)
    try:
        node_fell_silent = cluster.until(
            lambda: _is_given_up(cluster),
            "the node to be given up",
            seconds=180,
        )
        assert node_fell_silent

        def is_told() -> bool:
            conditions = Eyes(cluster, namespace).service("lost")["status"]["conditions"]
            return any((c["type"], c["reason"]) == ("Ready", "NodeLost") for c in conditions)

        cluster.until(is_told, "the status to say NodeLost")
    finally:
        cluster.send("kubelet", signal.SIGCONT)

    seen: list[object] = []

    def is_back() -> bool:
        seen[:] = conditions = Eyes(cluster, namespace).service("lost")["status"]["conditions"]
        return any((c["type"], c["reason"]) == ("Ready", "Ready") for c in conditions)

    try:
        # A kubelet that was stopped may first have to find out which of its connections are dead.
        cluster.until(is_back, "the service to be ready again", seconds=120)
    except AssertionError as error:
        node = "still given up" if _is_given_up(cluster) else "back"
        raise AssertionError(f"{error}; the node is {node}; its conditions: {seen}") from None
