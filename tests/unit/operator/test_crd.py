"""The CRD is structural, documented, small, and says what the models say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sluice_api.service_files import load_files, parse_service
from sluice_api.spec_errors import SpecError
from sluice_operator import crd
from tests.support.cel_rules import broken_rules
from tests.support.resources import document
from tests.support.structural_schema import violations, with_defaults

SCHEMA = crd.resource_schema()
EXAMPLES = sorted((Path(__file__).parents[3] / "manifests/examples").glob("*.yaml"))
SPEC = SCHEMA["properties"]["spec"]


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, below in schema.get("properties", {}).items():
        preserved = "x-kubernetes-preserve-unknown-fields"
        in_pods_words = any(preserved in part for part in below.get("properties", {}).values())
        if "properties" in below and not in_pods_words:
            yield from leaves(below, f"{path}.{name}")
        else:
            yield f"{path}.{name}", below


def test_the_schema_is_structural() -> None:
    assert list(violations(SCHEMA)) == []


def test_the_checker_sees_what_is_not_structural() -> None:
    broken = {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "x"},
            "b": {"type": "string", "description": "x"},
            "c": {"type": "array", "maxItems": 1, "description": "x", "items": {"type": "object"}},
            "d": {"type": "boolean"},
        },
    }
    found = "\n".join(violations(broken))
    for sentence in ("type is None", "without maxLength", "x-kubernetes-list-type", "no descr"):
        assert sentence in found


def test_it_is_far_below_what_an_object_may_measure() -> None:
    assert len(crd.crd_yaml()) < 200 * 1024


def test_every_spec_field_is_described_with_default_and_example() -> None:
    for path, field in leaves(SPEC):
        assert "Example: " in field["description"], path
        required = path == ".model.uri"
        override = path.startswith(".rollout.canary.model")
        assert ("Required." in field["description"]) is required, path
        assert ("Left out: as in the spec." in field["description"]) is override, path
        assert ("default" in field) is not (required or override), path


def test_the_yaml_reads_back_as_the_object() -> None:
    assert yaml.safe_load(crd.crd_yaml()) == crd.crd()


def test_columns_scale_and_names() -> None:
    spec = crd.crd()["spec"]
    version = spec["versions"][0]
    columns = [(c["name"], c.get("priority", 0)) for c in version["additionalPrinterColumns"]]
    assert [name for name, priority in columns if priority == 0] == [
        *("Model", "Ready", "Reason", "Replicas", "URL", "Age")
    ]
    assert [name for name, priority in columns if priority] == ["Min", "Max", "Device", "Revision"]
    for path in version["subresources"]["scale"].values():
        place = SCHEMA
        for step in path.strip(".").split("."):
            place = place["properties"][step]
        assert place["type"] in {"integer", "string"}
    assert spec["names"]["shortNames"] == ["inf"]


def test_every_column_points_at_a_field() -> None:
    for column in crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = column["jsonPath"]
        if path.startswith((".status.conditions", ".metadata")):
            continue
        place = SCHEMA
        for step in path.strip(".").split("."):
            place = place["properties"][step]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_models_schema_and_rules(path: Path) -> None:
    resources = list(yaml.safe_load_all(path.read_text()))
    for service, resource in zip(load_files([path]), resources, strict=True):
        jsonschema.validate(resource, SCHEMA, cls=jsonschema.Draft202012Validator)
        complete = with_defaults(SCHEMA, resource)
        assert list(broken_rules(SCHEMA, complete)) == []
        # The API server and we fill in the same defaults.
        assert complete["spec"] == service.to_dict()["spec"]


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"minilm", "classifier", "zero-shot"}


def schema_refuses(resource: dict[str, Any]) -> bool:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return not validator.is_valid(with_defaults(SCHEMA, resource))


EMBEDDED = {"task": "embeddings", "body": {"input": "a"}}
REFUSED_BY_RULE = [
    {"scaling__minReplicas": 5},
    {"scaling__initialReplicas": 5},
    {"scaling__minReplicas": 9, "scaling__initialReplicas": 8, "scaling__maxReplicas": 7},
    {"access__public": True, "access__tenants": ["a", "b"]},
    {"model__uri": "s3://bucket/model"},
    {"model__uri": "file://relative"},
    {"model__uri": "file:///models/a/"},
    {"model__uri": "hf://org/name/more"},
    {"model__uri": "file:///m", "model__revision": "v2"},
    {"model__revision": "-x"},
    {"limits__timeout": "99ms"},
    {"limits__timeout": "61m"},
    {"limits__timeout": "30"},
    {"limits__timeout": "10 seconds"},
    {"limits__timeout": ""},
    {"scaling__idleAfter": "never"},
    {"scaling__idleAfter": "500ms"},
    {"access__tenants": ["-"]},
    {"model__uri": "pvc://Claim/x"},
    {"model__uri": "pvc://claim/../x"},
    {"model__uri": "pvc://claim/x", "model__revision": "v2"},
    {"model__uri": "oci://registry.example/m:1", "model__revision": "2"},
    {"model__credentials": "Not A Name"},
    {"engine__image": "-image"},
    {"hardware__gpu": {"product": "NVIDIA-H200"}},
    {"hardware__gpu": {"count": 2}, "hardware__device": "gpu"},
    {"hardware__device": "gpu", "hardware__gpu": {"resource": "gpu"}},
    {"hardware__resources": {"requests": {"cpu": "much"}}},
    {"hardware__resources": {"requests": {"memory": "4Gi"}, "limits": {"memory": "4000M"}}},
    {"hardware__resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}},
    {"hardware__priorityClassName": "A"},
    {"entitiesFrom": "Ner"},
    {"entitiesFrom": "a/b/c", "model__task": "relation-extraction"},
    {"entitiesFrom": "ner", "model__task": "embeddings"},
    {"rollout__canary": {"weight": 5}},
    {"cache__precompute": [{"task": "embeddings", "body": {"input": "a"}}]},
    {"cache__precompute": [EMBEDDED], "cache__sharing": "service", "cache__enabled": False},
    {"rollout__canary": {"model": {"uri": "file:///m", "revision": "v2"}}},
    {"model__uri": "file:///m", "rollout__canary": {"model": {"revision": "v2"}}},
]


@pytest.mark.parametrize("changes", REFUSED_BY_RULE, ids=json.dumps)
def test_a_rule_of_the_api_server_says_what_our_own_check_says(changes: dict[str, Any]) -> None:
    resource = document(**changes)
    with pytest.raises(SpecError) as caught:
        parse_service(resource, "test")
    ours = {(p.field.replace("tenants.0", "tenants"), p.message) for p in caught.value.problems}
    assert not schema_refuses(resource)
    theirs = {
        (path.replace("tenants[0]", "tenants"), message)
        for path, message in broken_rules(SCHEMA, with_defaults(SCHEMA, resource))
    }
    assert ours == theirs


REFUSED_BY_SCHEMA = [
    {"scaling__minReplicas": -1},
    {"scaling__maxReplicas": 0},
    {"scaling__maxReplicas": 1001},
    {"scaling__minReplicas": "1"},
    {"scaling__minReplicas": True},
    {"scaling__target": {"concurrency": 0}},
    {"scaling__target": {"concurrency": "many"}},
    {"model__task": "dancing"},
    {"model__dtype": "int8"},
    {"model__uri": 5},
    {"hardware__device": "tpu"},
    {"limits__timeout": 30},
    {"cache__enabled": "true"},
    {"cache__sharing": "all"},
    {"cache__generation": "drawn"},
    {"cache__precompute": [{"task": "dancing", "body": {}}]},
    {"cache__precompute": [{"task": "embeddings"}]},
    {"cache__precompute": [{"task": "embeddings", "body": "hello"}]},
    {"cache__precompute": [{"task": "embeddings", "body": {}}] * 65},
    {"batching": []},
    {"paused": "yes"},
    {"scaling__mode": "auto"},
    {"hardware__gpu": {"count": 0}},
    {"hardware__resources": {"requests": {"cpu": 0.5}}},
    {"hardware__tolerations": {"key": "a"}},
    {"hardware__tolerations": [{"tolerationSeconds": "1"}]},
    {"hardware__tolerations": [{"key": "a", "operator": "Wrong"}]},
    {"hardware__tolerations": [{"key": "a", "effect": "Never"}]},
    {"hardware__affinity": {"nodeAffinity": []}},
    {"hardware__topologySpreadConstraints": [{"maxSkew": 1}]},
    {"hardware__nodeSelector": {"a": 1}},
    {"rollout__canary": {"model": {"task": "dancing"}}},
    {"rollout__canary": {"engine": {"image": "a"}, "weight": 101}},
]


@pytest.mark.parametrize("changes", REFUSED_BY_SCHEMA, ids=json.dumps)
def test_what_the_schema_refuses_our_own_check_refuses(changes: dict[str, Any]) -> None:
    resource = document(**changes)
    assert schema_refuses(resource)
    with pytest.raises(SpecError):
        parse_service(resource, "test")


ACCEPTED = [
    {"paused": True},
    {"model__uri": "pvc://claim", "model__revision": "sha256:" + "0" * 64},
    {"model__uri": "pvc://my-claim.v2/models/bert_base"},
    {"model__uri": "oci://registry.example:5000/team/model:1.2@sha256:" + "0" * 64},
    {"model__credentials": "hub-token"},
    {"engine__image": "localhost/sluice-stub:test"},
    {"hardware__device": "gpu", "hardware__gpu": {"product": "NVIDIA-H200"}},
    {"hardware__device": "gpu", "hardware__gpu": {"count": 2}, "engine__image": "a/b:1"},
    {"hardware__resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}},
    {"hardware__resources": {"requests": {"cpu": 1}, "limits": {"cpu": "1.5", "memory": "4Gi"}}},
    {"hardware__tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 5}]},
    {"hardware__affinity": {"podAntiAffinity": {"anything": [1]}}},
    {
        "hardware__topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
        ]
    },
    {"scaling__mode": "off", "scaling__minReplicas": 2},
    {
        "cache__sharing": "service",
        "cache__precompute": [{"task": "embeddings", "body": {"input": ["a"], "x": {"y": 1}}}],
    },
    {
        "cache__sharing": "service",
        "cache__precompute": [EMBEDDED, {"task": "zero-shot", "body": {}}],
        "model__task": "embeddings",
    },
    {
        "cache__sharing": "service",
        "cache__precompute": [EMBEDDED],
        "model__task": "chat",
        "engine__image": "a/b:1",
    },
    {"rollout__canary": {"engine": {"image": "a/b:1"}, "weight": 0}},
    {"rollout__canary": {"model": {"uri": "hf://a/b", "maxInputTokens": "auto"}}},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=json.dumps)
def test_what_fits_is_accepted_by_both(changes: dict[str, Any]) -> None:
    resource = document(**changes)
    service = parse_service(resource, "test")
    assert not schema_refuses(resource)
    complete = with_defaults(SCHEMA, resource)
    assert list(broken_rules(SCHEMA, complete)) == []
    assert parse_service(service.to_dict(), "test") == service
    assert parse_service(complete, "test") == service


@pytest.mark.parametrize("name", ["a", "minilm", "a-1", "x" * 40, "", "1a", "a-", "A", "x" * 41])
def test_names_are_judged_alike(name: str) -> None:
    resource = document(metadata__name=name)
    complete = with_defaults(SCHEMA, resource)
    refused = any("metadata.name" in message for _, message in broken_rules(SCHEMA, complete))
    if refused:
        with pytest.raises(SpecError, match=r"metadata\.name"):
            parse_service(resource, "test")
    else:
        parse_service(resource, "test")
