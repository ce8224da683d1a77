"""Services that cannot be, each for one reason, and what Kubernetes shows of that reason.

Used by tests/cluster/test_failures.py: every case is an InferenceService with the objects around
it, made for real; nothing here writes a status. Kinds of evidence look at pods, Deployments and
Events as the API server has them.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sluice_api.names import SERVICE_LABEL
from tests.support.cluster import archives
from tests.support.resources import document

MISBEHAVING = "localhost/misbehaving:1"
UNSTARTABLE = "localhost/unstartable:1"
STUB = "localhost/sluice-stub:test"
ROOM = {"requests": {"cpu": "5m", "memory": "32Mi"}}

_SCRIPT = """\
case "${SLUICE_MODEL_URI##*/}" in
end) exit 0 ;;
oom) exec dd if=/dev/zero of=/dev/null bs=200M count=1 ;;
leave) trap 'exit 0' TERM; dd if=/dev/zero of=/tmp/full bs=1M count=64; sleep 1000 & wait ;;
disk) dd if=/dev/zero of=/tmp/full bs=1M count=64; exec sleep 1000 ;;
unready) mkdir /tmp/www; echo yes >/tmp/www/livez; exec httpd -f -p 8081 -h /tmp/www ;;
fits) dd if=/dev/zero of=/dev/null bs=24M count=1 || exit 137
  mkdir /tmp/www; echo yes | tee /tmp/www/livez >/tmp/www/readyz
  exec httpd -f -p 8081 -h /tmp/www ;;
silent) exec sleep 1000 ;;
*) echo "the last words" >&2; exit 3 ;;
esac
"""

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """What the API server shows of one service."""

    pods: Sequence[Object]
    deployments: Sequence[Object]
    services: Sequence[Object]
    events: Sequence[Object]


Evidence = Callable[[Scene], bool]


@dataclass(frozen=True)
class Case:
    """One failure.

    Attributes:
        name: of the service.
        reason: that status must give.
        told: words that the message must contain.
        shown: whether Kubernetes shows the failure; the five seconds begin then.
        spec: changes of the smallest spec, see :func:`document`.
        around: objects that are made first.
        condition: which condition must give the reason, and its status.
        only_told: the worker says it, Kubernetes shows nothing of it: there is no time to keep.
    """

    name: str
    reason: str
    told: tuple[str, ...]
    shown: Evidence
    spec: Mapping[str, Any] = field(default_factory=dict)
    around: tuple[Object, ...] = ()
    condition: tuple[str, str] = ("Ready", "False")
    only_told: bool = False

    def resource(self, namespace: str) -> dict[str, Any]:
        changes = {
            "model__uri": "hf://stub/start100",
            "engine__image": STUB,
            "hardware__resources": ROOM,
            **self.spec,
        }
        resource = document(**changes)
        resource["metadata"] = {"name": self.name, "namespace": namespace}
        return resource


def images() -> tuple[Path, ...]:
    """Archives of the two images that the cases need beside the stub."""
    busybox = shutil.which("busybox", path="/usr/bin:/bin") or "/bin/busybox"
    files = {path.lstrip("/"): Path(path).read_bytes() for path in archives.libraries(busybox)}
    files |= {"bin/busybox": Path(busybox).read_bytes()}
    applets = ("sh", "dd", "sleep", "mkdir", "httpd", "echo", "tee")
    links = {f"bin/{name}": "busybox" for name in applets}
    user = {"User": archives.NOBODY}
    entry = {"Entrypoint": ["/bin/sh", "-c", _SCRIPT], "Env": ["PATH=/bin"]}
    return (
        archives.write(MISBEHAVING, files, links, {**user, **entry}),
        archives.write(UNSTARTABLE, {"x": b""}, {}, {**user, "Entrypoint": ["/absent"]}),
    )


# Evidence ----------------------------------------------------------------------------------------


def scheduler_says(words: str) -> Evidence:
    return lambda scene: any(
        words in (condition.get("message") or "")
        for pod in scene.pods
        for condition in pod["status"].get("conditions") or ()
        if condition["type"] == "PodScheduled" and condition["status"] == "False"
    )


def container_waits(*reasons: str) -> Evidence:
    return lambda scene: any(
        (container["state"].get("waiting") or {}).get("reason") in reasons
        for pod in scene.pods
        for container in pod["status"].get("containerStatuses") or ()
    )


def container_ended(code: int | None = None, reason: str | None = None) -> Evidence:
    def shown(scene: Scene) -> bool:
        ends = [
            state["terminated"]
            for pod in scene.pods
            for container in pod["status"].get("containerStatuses") or ()
            for state in (container["state"], container.get("lastState") or {})
            if state.get("terminated")
        ]
        return any(
            (code is None or end["exitCode"] == code)
            and (reason is None or end["reason"] == reason)
            for end in ends
        )

    return shown


def event_says(reason: str, words: str = "") -> Evidence:
    return lambda scene: any(
        event["reason"] == reason and words in (event.get("message") or "")
        for event in scene.events
    )


def pods_refused(words: str) -> Evidence:
    return lambda scene: any(
        words in (condition.get("message") or "")
        for deployment in scene.deployments
        for condition in deployment.get("status", {}).get("conditions") or ()
        if condition["type"] == "ReplicaFailure"
    )


def pod_evicted(scene: Scene) -> bool:
    return any(pod["status"].get("reason") == "Evicted" for pod in scene.pods)


def pod_left_well(scene: Scene) -> bool:
    return any(
        pod["status"]["phase"] in ("Succeeded", "Failed") and end.get("exitCode") == 0
        for pod in scene.pods
        for container in pod["status"].get("containerStatuses") or ()
        for end in [container["state"].get("terminated") or {}]
    )


def workers_run(count: int) -> Evidence:
    """So many of them have been started."""
    return lambda scene: (
        sum(
            "running" in container["state"]
            for pod in scene.pods
            for container in pod["status"].get("containerStatuses") or ()
        )
        >= count
    )


def workers_are_ready(count: int) -> Evidence:
    return lambda scene: (
        sum(
            (condition["type"], condition["status"]) == ("Ready", "True")
            for pod in scene.pods
            for condition in pod["status"].get("conditions") or ()
        )
        >= count
    )


def at_once(scene: Scene) -> bool:
    """Nothing has to be shown: the spec or an object that was there says it."""
    return True


def deployment_comes_next(scene: Scene) -> bool:
    """The API server says what it has against a Deployment to nobody but who writes it, which the
    operator does after the Service of its pods."""
    return bool(scene.services)


# Cases -------------------------------------------------------------------------------------------


def ending(name: str, code: int, reason: str) -> Case:
    told = (f"exit code {code}", "the stub was told to end", "container worker", name)
    uri = f"hf://stub/start100-exit{code}"
    return Case(name, reason, told, container_ended(code), {"model__uri": uri})


def misbehaving(uri: str, **spec: Any) -> dict[str, Any]:
    return {"model__uri": f"hf://test/{uri}", "engine__image": MISBEHAVING, **spec}


def volume(name: str, claim: str) -> tuple[Object, ...]:
    """A claim that is bound to a volume whose folder does not exist on the node."""
    shape = {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadOnlyMany"]}
    return (
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                **shape,
                "storageClassName": name,
                "hostPath": {"path": "/no/such/folder", "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": name,
                "volumeName": name,
                "resources": {"requests": {"storage": "1Mi"}},
            },
        },
    )


UNBOUND = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "unbound"},
    "spec": {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "no-such-class",
        "resources": {"requests": {"storage": "1Mi"}},
    },
}
TOKENLESS_SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "tokenless"},
    "stringData": {"password": "hf_test"},
}
FOREIGN_ACCOUNT = {
    "apiVersion": "v1",
    "kind": "ServiceAccount",
    "metadata": {"name": "foreign-workers"},
}
LITTLE_DISK = {"storage": "8Mi", "memory": "128Mi"}
CPU_LIMITS = {"requests": {"cpu": "64", "memory": "32Mi"}}


def cases(volume_name: str) -> tuple[Case, ...]:
    """Failures that one namespace can hold side by side. ``volume_name``: of a PersistentVolume."""
    return (
        # First what takes longest: the kubelet looks at disks every ten seconds.
        Case(
            "full-disk",
            "Evicted",
            ("full-disk-", "ephemeral"),
            pod_evicted,
            misbehaving("disk", hardware__resources={**ROOM, "limits": {"storage": "8Mi"}}),
        ),
        Case(
            "leaves-well",
            "Evicted",
            ("leaves-well-", "evicted"),
            # Whether the kubelet keeps the code is a matter of moments; the pod has ended.
            lambda scene: pod_evicted(scene) or pod_left_well(scene),
            misbehaving("leave", hardware__resources={**ROOM, "limits": LITTLE_DISK}),
        ),
        Case(
            "no-cpu",
            "Unschedulable",
            ("Insufficient cpu", "no-cpu-"),
            scheduler_says("Insufficient cpu"),
            {"hardware__resources": CPU_LIMITS},
        ),
        Case(
            "no-gpu",
            "Unschedulable",
            ("Insufficient nvidia.com/gpu",),
            scheduler_says("nvidia.com/gpu"),
            {"hardware__device": "gpu"},
        ),
        Case(
            "no-node",
            "Unschedulable",
            ("node affinity/selector",),
            scheduler_says("selector"),
            {"hardware__nodeSelector": {"pool": "nowhere"}},
        ),
        Case(
            "no-image",
            "ImagePullFailed",
            ("localhost/absent:1", "pull secrets"),
            container_waits("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"),
            {"engine__image": "localhost/absent:1"},
        ),
        Case(
            "bad-image",
            "ImagePullFailed",
            ("InvalidImageName",),
            container_waits("InvalidImageName"),
            {"engine__image": "localhost/UPPER:1"},
        ),
        Case(
            "no-claim",
            "VolumeFailed",
            ('"absent" not found', "claim"),
            scheduler_says("not found"),
            {"model__uri": "pvc://absent/model"},
        ),
        Case(
            "unbound-claim",
            "VolumeFailed",
            ("PersistentVolumeClaim", "claim"),
            scheduler_says("PersistentVolumeClaim"),
            {"model__uri": "pvc://unbound/model"},
            (UNBOUND,),
        ),
        Case(
            "no-folder",
            "VolumeFailed",
            ("/no/such/folder", "no-folder-"),
            event_says("FailedMount"),
            {"model__uri": "pvc://broken/model"},
            volume(volume_name, "broken"),
        ),
        Case(
            "no-model-image",
            "ImagePullFailed",
            ("localhost/model:1",),
            container_waits("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"),
            {"model__uri": "oci://localhost/model:1"},
        ),
        Case(
            "no-secret",
            "ConfigMissing",
            ('secret "absent" not found',),
            event_says("FailedMount", "absent"),
            {"model__credentials": "absent"},
        ),
        Case(
            "no-token",
            "ConfigMissing",
            ("references non-existent secret key: token", "correct spec.model.credentials"),
            event_says("FailedMount", "token"),
            {"model__credentials": "tokenless"},
            (TOKENLESS_SECRET,),
        ),
        Case(
            "no-priority",
            "ConfigMissing",
            ("no PriorityClass with name absent",),
            pods_refused("PriorityClass"),
            {"hardware__priorityClassName": "absent"},
        ),
        Case(
            "no-runtime",
            "ConfigMissing",
            ('RuntimeClass "absent" not found',),
            pods_refused("RuntimeClass"),
            {"hardware__runtimeClassName": "absent"},
        ),
        ending("no-model", 64, "ModelNotFound"),
        ending("no-download", 65, "ModelDownloadFailed"),
        ending("bad-model", 66, "ModelRejected"),
        ending("bad-settings", 78, "InvalidSpec"),
        Case(
            "crash",
            "CrashLoop",
            ("exit code 3", "the last words", "logs"),
            container_ended(3),
            misbehaving("crash"),
        ),
        Case(
            "ends",
            "CrashLoop",
            ("exit code 0", "container worker", "logs"),
            container_waits("CrashLoopBackOff"),
            misbehaving("end"),
        ),
        Case(
            "no-program",
            "CrashLoop",
            ("/absent",),
            container_ended(reason="StartError"),
            {"engine__image": UNSTARTABLE},
        ),
        Case(
            "no-memory",
            "OutOfMemory",
            ("exit code 137", "limits.memory"),
            container_ended(reason="OOMKilled"),
            misbehaving("oom"),
        ),
        Case(
            "two-contents",
            "DigestMismatch",
            ("two-contents-", "gets no requests", "spec.model.revision"),
            workers_are_ready(2),
            {
                "model__uri": "hf://stub/start100-owndigest",
                "scaling__minReplicas": 2,
                "scaling__initialReplicas": 2,
            },
            condition=("WorkersAvailable", "True"),
        ),
        Case(
            "downloads",
            "Starting",
            ("downloads-", "downloads the model: ", " % after "),
            workers_run(1),
            {"model__uri": "hf://stub/start60000-download"},
            only_told=True,
        ),
        Case(
            "never-ready",
            "ProbeFailed",
            ("Readiness probe failed", "404"),
            event_says("Unhealthy", "statuscode: 404"),
            misbehaving("unready"),
        ),
        Case(
            "foreign",
            "FieldConflict",
            ("ServiceAccount foreign-workers", "Delete it, or rename the service"),
            at_once,
            {},
            (FOREIGN_ACCOUNT,),
            condition=("Stalled", "True"),
        ),
        Case(
            "bad-selector",
            "InvalidSpec",
            ("bad key!", "Correct spec.hardware.nodeSelector."),
            deployment_comes_next,
            {"hardware__nodeSelector": {"bad key!": "x"}},
            condition=("Stalled", "True"),
        ),
        Case(
            "bad-affinity",
            "InvalidSpec",
            ("not declared in schema", "Correct spec.hardware.affinity.nodeAffinity.nonsense."),
            deployment_comes_next,
            {"hardware__affinity": {"nodeAffinity": {"nonsense": True}}},
            condition=("Stalled", "True"),
        ),
        Case(
            "sleeps",
            "Asleep",
            ("wakes the service",),
            at_once,
            {"scaling__initialReplicas": 0},
            condition=("Ready", "True"),
        ),
        Case(
            "paused",
            "Paused",
            ("spec.paused",),
            at_once,
            {"paused": True},
            condition=("Ready", "False"),
        ),
    )


def scene_of(name: str, pods: Any, deployments: Any, services: Any, events: Any) -> Scene:
    """What concerns one service, of all that a namespace holds."""

    def belongs(item: Object) -> bool:
        return bool((item["metadata"].get("labels") or {}).get(SERVICE_LABEL) == name)

    mine = [pod for pod in pods if belongs(pod)]
    names = {pod["metadata"]["name"] for pod in mine}
    return Scene(
        mine,
        [deployment for deployment in deployments if belongs(deployment)],
        [service for service in services if belongs(service)],
        [event for event in events if event["involvedObject"].get("name") in names],
    )


def manifest(namespace: str, objects: Sequence[Object]) -> str:
    """All objects as one document for kubectl, those with a namespace in ``namespace``."""
    items = []
    for item in objects:
        metadata = dict(item["metadata"])
        if item["kind"] != "PersistentVolume":
            metadata["namespace"] = namespace
        items.append({**item, "metadata": metadata})
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
