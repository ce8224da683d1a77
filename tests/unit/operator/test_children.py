"""What is made for a service: each kind as Kubernetes wants it, and how drift is noticed."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from sluice_api import names
from sluice_api.inference_service import revision_of
from sluice_operator.children.autoscaler import render_autoscaler
from sluice_operator.children.comparison import difference
from sluice_operator.children.deployment import render_deployment
from sluice_operator.children.disruption_budget import render_disruption_budget
from sluice_operator.children.identity import Rendering
from sluice_operator.children.network_policy import render_network_policy
from sluice_operator.children.service import render_service
from sluice_operator.children.service_account import render_service_account
from sluice_worker.settings import read_settings
from tests.support.planned_cluster import PLATFORM
from tests.support.pod_security import breaches
from tests.support.resources import service

RENDERERS = (
    *(render_deployment, render_service, render_autoscaler, render_disruption_budget),
    *(render_network_policy, render_service_account),
)


def rendering(floor: int = 0, **changes: Any) -> Rendering:
    parsed = service(metadata__namespace="team", **changes)
    return Rendering(parsed, "u-1", revision_of(parsed), "worker:1", PLATFORM, floor)


def pod(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = render_deployment(rendering(**changes))["spec"]["template"]["spec"]
    return spec


def container(**changes: Any) -> dict[str, Any]:
    [only] = pod(**changes)["containers"]
    assert isinstance(only, dict)
    return only


def environment(**changes: Any) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(**changes)["env"]}


@pytest.mark.parametrize("render", RENDERERS)
def test_every_child_belongs_to_its_service(render: Any) -> None:
    made = render(rendering())
    metadata = made["metadata"]
    assert metadata["namespace"] == "team"
    assert metadata["labels"][names.MANAGED_BY] == names.MANAGER
    assert metadata["labels"][names.SERVICE_LABEL] == "minilm"
    [owner] = metadata["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("u-1", True)
    assert metadata["annotations"][names.RENDERED]


@pytest.mark.parametrize("render", RENDERERS)
def test_rendering_twice_gives_the_same(render: Any) -> None:
    assert render(rendering()) == render(rendering())


def test_the_digest_tells_what_is_no_longer_asked_for() -> None:
    before = render_deployment(rendering(hardware__nodeSelector={"pool": "a"}))
    after = render_deployment(rendering())
    assert difference(after, before) == f"metadata.annotations.{names.RENDERED}"


def test_the_pod_is_restricted() -> None:
    assert breaches(pod()) == []
    broken = pod()
    broken["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert breaches(broken) != []


def test_the_worker_understands_what_it_is_told() -> None:
    settings = read_settings([], environment(limits__timeout="90s", model__uri="pvc://c/a/b"))
    assert settings.model_uri == "file:///models/a/b"
    assert settings.host == "0.0.0.0"
    assert settings.drain_timeout_seconds == 90.0
    assert settings.log_format == "json"


def test_there_is_time_to_drain() -> None:
    told = environment(limits__timeout="90s")
    grace = pod(limits__timeout="90s")["terminationGracePeriodSeconds"]
    settings = read_settings([], told)
    assert grace > settings.drain_grace_seconds + settings.drain_timeout_seconds
    hook = container()["lifecycle"]["preStop"]["httpGet"]
    assert (hook["path"], hook["port"]) == ("/drain", "admin")


def test_loading_is_live_but_not_ready() -> None:
    worker = container()
    assert worker["startupProbe"]["httpGet"]["path"] == "/livez"
    assert worker["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert worker["startupProbe"]["periodSeconds"] == worker["readinessProbe"]["periodSeconds"] == 1
    assert worker["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize(
    ("resources", "requests", "limits", "threads"),
    [
        ({}, {"cpu": "1", "memory": "2Gi"}, {"memory": "2Gi"}, "1"),
        (
            {"requests": {"cpu": "2500m", "memory": "3Gi"}},
            {"cpu": "2500m", "memory": "3Gi"},
            {"memory": "3Gi"},
            "2",
        ),
        (
            {"limits": {"cpu": 4, "memory": "8Gi", "storage": "1Gi"}},
            {"cpu": "1", "memory": "8Gi"},
            {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "1Gi"},
            "4",
        ),
        ({"requests": {"cpu": "50m"}}, {"cpu": "50m", "memory": "2Gi"}, {"memory": "2Gi"}, "1"),
    ],
)
def test_resources(
    resources: dict[str, Any], requests: dict[str, str], limits: dict[str, str], threads: str
) -> None:
    given = container(hardware__resources=resources)["resources"]
    assert given == {"requests": requests, "limits": limits}
    assert environment(hardware__resources=resources)[names.ENV_WORKER_THREADS] == threads


def test_a_gpu_is_asked_for_by_name() -> None:
    gpu = {"product": "NVIDIA-H200", "resource": "nvidia.com/gpu"}
    made = pod(hardware={"device": "gpu", "gpu": gpu})
    resources = made["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert made["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in (
        made["tolerations"]
    )
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in made["volumes"]
    assert environment(hardware={"device": "gpu"})[names.ENV_DEVICE] == "cuda"


def test_placement_is_handed_on() -> None:
    made = pod(
        hardware={
            "nodeSelector": {"pool": "a"},
            "tolerations": [{"key": "a"}],
            "affinity": {"podAntiAffinity": {"x": 1}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
            ],
            "priorityClassName": "high",
            "runtimeClassName": "kata",
        }
    )
    assert made["nodeSelector"] == {"pool": "a"}
    assert made["tolerations"][0] == {"key": "a"}
    assert made["affinity"] == {"podAntiAffinity": {"x": 1}}
    assert made["priorityClassName"] == "high"
    assert made["runtimeClassName"] == "kata"
    [spread] = made["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"][names.REVISION_LABEL]


def test_a_replica_waits_half_a_minute_for_a_lost_node() -> None:
    lost = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    ]
    assert pod()["tolerations"] == lost
    own = {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 900}
    assert pod(hardware__tolerations=[own])["tolerations"] == [own, lost[1]]
    every = {"operator": "Exists"}
    assert pod(hardware__tolerations=[every])["tolerations"] == [every]
    other = {"operator": "Exists", "effect": "NoSchedule"}
    assert pod(hardware__tolerations=[other])["tolerations"] == [other, *lost]


def test_what_is_not_said_is_left_out() -> None:
    assert (
        pod()
        .keys()
        .isdisjoint({"nodeSelector", "affinity", "priorityClassName", "imagePullSecrets"})
    )


def test_models_on_volumes_are_mounted_read_only() -> None:
    claim = pod(model__uri="pvc://claim.v2/a")
    assert {
        "name": "model",
        "persistentVolumeClaim": {"claimName": "claim.v2", "readOnly": True},
    } in claim["volumes"]
    image = pod(model__uri="oci://r.example/m:1")
    assert {
        "name": "model",
        "image": {"reference": "r.example/m:1", "pullPolicy": "IfNotPresent"},
    } in image["volumes"]
    for made in (claim, image):
        mounts = made["containers"][0]["volumeMounts"]
        assert {"name": "model", "mountPath": "/models", "readOnly": True} in mounts
    assert environment(model__uri="oci://r.example/m:1")[names.ENV_MODEL_URI] == "file:///models"
    assert environment(model__uri="pvc://claim")[names.ENV_MODEL_URI] == "file:///models"


def test_credentials_are_mounted_and_never_read_by_us() -> None:
    made = pod(model__credentials="hub")
    [secret] = [volume["secret"] for volume in made["volumes"] if volume["name"] == "credentials"]
    # The key by its name: without it the kubelet refuses the pod, and the library would do without.
    assert secret == {"secretName": "hub", "items": [{"key": "token", "path": "token"}]}
    told = environment(model__credentials="hub")
    [mount] = [m for m in made["containers"][0]["volumeMounts"] if m["name"] == "credentials"]
    assert mount["readOnly"]
    assert told["HF_TOKEN_PATH"] == f"{mount['mountPath']}/token"


def test_the_autoscaler_follows_the_wanted_number() -> None:
    spec = render_autoscaler(rendering(scaling__maxReplicas=7))["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 7)
    [metric] = spec["metrics"]
    assert metric["object"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert metric["object"]["metric"]["name"] == names.METRIC_DESIRED
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 0
    assert render_autoscaler(rendering(floor=3))["spec"]["minReplicas"] == 3


def test_a_drain_is_never_blocked_for_ever() -> None:
    spec = render_disruption_budget(rendering())["spec"]
    assert spec["maxUnavailable"] == 1
    assert "minAvailable" not in spec
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_only_gateways_get_through() -> None:
    spec = render_network_policy(rendering())["spec"]
    [rule] = spec["ingress"]
    [source] = rule["from"]
    assert source["podSelector"]["matchLabels"] == dict(PLATFORM.gateway_labels)
    namespace = source["namespaceSelector"]["matchLabels"]
    assert namespace == {"kubernetes.io/metadata.name": PLATFORM.namespace}
    assert spec["policyTypes"] == ["Ingress"]


def test_the_image_and_its_secrets_come_from_the_platform() -> None:
    given = replace(rendering(), platform=replace(PLATFORM, pull_secrets=("a", "b")))
    made = render_deployment(given)["spec"]["template"]["spec"]
    assert made["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert made["containers"][0]["image"] == "worker:1"


# Comparison --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found", "where"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, ""),
        ({"a": 1}, {"a": 2}, "a"),
        ({"a": {"b": 1}}, {}, "a.b"),
        ({"a": {}}, {}, ""),
        ({"a": [1, 2]}, {"a": [1, 2]}, ""),
        ({"a": [1, 2]}, {"a": [2, 1]}, "a[0]"),
        ({"a": [1]}, {"a": [1, 2]}, "a"),
        ({"a": [{"name": "x", "v": 1}]}, {"a": [{"name": "y"}, {"name": "x", "v": 1}]}, ""),
        ({"a": [{"name": "x", "v": 1}]}, {"a": [{"name": "x", "v": 2}]}, "a[0].v"),
        ({"a": [{"name": "x"}]}, {"a": []}, "a[0].name"),
        ({"requests": {"cpu": "1000m"}}, {"requests": {"cpu": "1"}}, ""),
        ({"requests": {"memory": "1024Mi"}}, {"requests": {"memory": "1Gi"}}, ""),
        ({"requests": {"cpu": "1000m"}}, {"requests": {"cpu": "2"}}, "requests.cpu"),
        ({"value": "1000m"}, {"value": "1"}, "value"),
        ({"on": False}, {}, "on"),
    ],
)
def test_only_our_part_is_compared(wanted: Any, found: Any, where: str) -> None:
    assert difference(wanted, found) == where


@pytest.mark.parametrize(
    ("render", "path", "added"),
    [
        (render_service, "selector", {"a": "b"}),
        (render_network_policy, "podSelector.matchLabels", {"a": "b"}),
        (render_network_policy, "podSelector", {"matchExpressions": [{"key": "a"}]}),
        (render_network_policy, "ingress.0", {"a": "b"}),
        (render_network_policy, "ingress.0.ports.0", {"endPort": 9999}),
        (render_network_policy, "ingress.0.ports", [{"port": 22, "protocol": "TCP"}]),
        (render_network_policy, "ingress.0.from", [{"ipBlock": {"cidr": "0.0.0.0/0"}}]),
        (render_network_policy, "ingress.0.from.0.podSelector.matchLabels", {"a": "b"}),
        (render_network_policy, "ingress", [{}]),
        (render_disruption_budget, "selector.matchLabels", {"a": "b"}),
        (render_deployment, "template.spec.nodeSelector", {"a": "b"}),
    ],
)
def test_what_is_added_to_a_selector_is_drift(render: Any, path: str, added: Any) -> None:
    wanted = render(rendering(hardware__nodeSelector={"disk": "fast"}))
    found = deepcopy(wanted)
    place = found["spec"]
    for step in path.split("."):
        place = place[int(step)] if step.isdigit() else place[step]
    place.extend(added) if isinstance(place, list) else place.update(added)
    assert difference(wanted, found).startswith(f"spec.{path.split('.')[0]}")


def test_what_is_empty_in_a_selector_is_no_drift() -> None:
    wanted = {"labelSelector": {"matchLabels": {"a": "b"}, "matchExpressions": []}}
    assert difference(wanted, {"labelSelector": {"matchLabels": {"a": "b"}}}) == ""
    assert difference({"nodeSelector": {}}, {}) == ""


def test_a_foreign_container_beside_ours_is_no_drift() -> None:
    wanted = render_deployment(rendering())
    found = deepcopy(wanted)
    found["spec"]["template"]["spec"]["containers"].insert(0, {"name": "sidecar"})
    assert difference(wanted, found) == ""
    found["spec"]["template"]["spec"]["containers"][1]["image"] = "other:1"
    assert difference(wanted, found).endswith("image")


def test_a_restart_is_another_template_and_nothing_else() -> None:
    plain = render_deployment(rendering())
    marked = render_deployment(rendering(metadata__annotations={names.RESTARTED: "2026-11-26"}))
    template = marked["spec"]["template"]
    assert template["metadata"].pop("annotations") == {names.RESTARTED: "2026-11-26"}
    assert template == plain["spec"]["template"]
    assert marked["metadata"]["name"] == plain["metadata"]["name"], "no other revision"
