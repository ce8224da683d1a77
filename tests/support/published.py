"""One InferenceService on a real cluster as its owner sees it: the resource, its pods, its counts.

Cluster tests publish services with this, mostly of the stub engine, which answers without a model.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sluice_api import metric_names, names
from tests.support.cluster.access import PATIENCE_SECONDS
from tests.support.cluster.cluster import Cluster

STUB_IMAGE = "localhost/sluice-stub:test"
GATEWAY = "http://sluice-gateway.sluice-system.svc.cluster.local"
"""As pods of every namespace reach it."""


@dataclass(frozen=True)
class Reply:
    """One HTTP answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: Any


def ask(url: str, body: Any, *, key: str = "", seconds: float = 60.0) -> Reply:
    """POST JSON, read JSON. Raises OSError where there is no answer."""
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=seconds)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status, headers, json.load(response))


def stub(behaviour: str = "ms20-slots8-start300", **spec: Any) -> dict[str, Any]:
    """The spec of a public service that the stub engine serves, with sections added or replaced.

    Args:
        behaviour: see `tests.support.stub_engine.engine`; another one is another revision.
    """
    requests = {"cpu": "10m", "memory": "48Mi"}
    return {
        "model": {"uri": f"hf://stub/{behaviour}"},
        "engine": {"image": STUB_IMAGE},
        "hardware": {"resources": {"requests": requests}},
        "access": {"public": True},
        **spec,
    }


def fixed(replicas: int) -> dict[str, Any]:
    """A scaling section: exactly so many."""
    return {"minReplicas": replicas, "maxReplicas": replicas, "initialReplicas": replicas}


@dataclass(frozen=True)
class Published:
    """A service of one name in one namespace, there or not."""

    cluster: Cluster
    namespace: str
    name: str = "model"
    seconds: float = field(default=PATIENCE_SECONDS, kw_only=True)

    @property
    def model(self) -> str:
        """How callers name it."""
        return f"{self.namespace}/{self.name}"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin).stdout

    def apply(self, spec: dict[str, Any]) -> None:
        """As `kubectl apply` of a file: what an earlier one had and this has not is removed."""
        resource = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": self.name},
            "spec": spec,
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(resource))

    def get(self) -> dict[str, Any]:
        path = f"/apis/{names.API_VERSION}/namespaces/{self.namespace}/{names.PLURAL}/{self.name}"
        found: dict[str, Any] = self.cluster.read(path)
        return found

    @property
    def status(self) -> dict[str, Any]:
        """Empty as long as the operator has not seen the resource."""
        found: dict[str, Any] = self.get().get("status") or {}
        return found

    @property
    def revision(self) -> str:
        return str(self.status.get("revision", ""))

    def condition(self, kind: str = "Ready") -> dict[str, str]:
        """Empty where there is none, or where it tells of an older generation."""
        return condition_of(self.get(), kind)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Raises AssertionError with what stands in status if it takes too long."""
        try:
            self.cluster.until(condition, what, self.seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(self.status, indent=1)}") from error

    def until_ready(self, replicas: int = 1) -> None:
        """Until the spec has come true with so many workers."""
        self.until(lambda: self._has(replicas), f"{self.model} has {replicas} ready workers")

    def _has(self, replicas: int) -> bool:
        resource = self.get()
        ready = condition_of(resource, "Ready")
        return (
            (ready.get("status"), ready.get("reason")) == ("True", "Ready")
            and condition_of(resource, "Reconciling").get("status") == "False"
            and len(self.workers(ready=True)) >= replicas
        )

    def workers(self, revision: str = "", *, ready: bool = False) -> dict[str, dict[str, Any]]:
        """Pods by name that are not on their way out."""
        return {
            pod["metadata"]["name"]: pod
            for pod in self._pods(revision)
            if "deletionTimestamp" not in pod["metadata"] and (is_ready(pod) or not ready)
        }

    def _pods(self, revision: str = "") -> list[dict[str, Any]]:
        labels = f"{names.SERVICE_LABEL}={self.name}"
        labels += f",{names.REVISION_LABEL}={revision}" if revision else ""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        found: list[dict[str, Any]] = self.cluster.read(path, labelSelector=labels)["items"]
        return found

    def answered(self, revision: str = "") -> int:
        """Good answers that the workers have counted themselves, also those that drain."""
        return sum(
            answered(self.cluster, pod["status"]["podIP"])
            for pod in self._pods(revision)
            if is_ready(pod) or "deletionTimestamp" in pod["metadata"]
        )

    def warnings(self) -> list[dict[str, Any]]:
        """Warning Events about services of its namespace."""
        fields = f"involvedObject.kind={names.KIND},type=Warning"
        path = f"/api/v1/namespaces/{self.namespace}/events"
        found: list[dict[str, Any]] = self.cluster.read(path, fieldSelector=fields)["items"]
        return found

    def objects(self) -> set[str]:
        """``kind/name`` of all that carries the service's label, of every kind there is."""
        kinds = self.cluster.kubectl(
            "api-resources", "--namespaced", "--verbs=list", "-o", "name"
        ).stdout.split()
        listed = self.kubectl(
            *("get", ",".join(kinds), "-l", f"{names.SERVICE_LABEL}={self.name}", "-o", "name")
        )
        return set(listed.split())

    def until_gone(self) -> None:
        """Until nothing of it is left. Raises AssertionError with what there still is."""
        try:
            patience = 3 * self.seconds  # A pod may use up its grace, and is the last to go.
            self.cluster.until(lambda: not self._pods(), f"{self.model} has no pods", patience)
            self.cluster.until(lambda: not self.objects(), f"{self.model} is gone", patience)
        except AssertionError as error:
            raise AssertionError(f"{error}: {sorted(self.objects())}") from error


def condition_of(resource: dict[str, Any], kind: str) -> dict[str, str]:
    """See `Published.condition`."""
    for entry in (resource.get("status") or {}).get("conditions") or ():
        if entry["type"] == kind:
            current = entry["observedGeneration"] == resource["metadata"]["generation"]
            return dict(entry) if current else {}
    return {}


def is_ready(pod: dict[str, Any]) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod["status"].get("conditions") or ()
    )


def answered(cluster: Cluster, address: str) -> int:
    """Good answers that the worker of a pod has counted."""
    with urllib.request.urlopen(
        f"{cluster.url(address, names.ADMIN_PORT)}/metrics", timeout=60
    ) as response:
        text = response.read().decode()
    name = re.escape(metric_names.WORKER_REQUESTS.name)
    counts = re.findall(rf'^{name}\{{[^}}]*status="200"[^}}]*\}} (\S+)$', text, re.MULTILINE)
    return int(sum(map(float, counts)))
