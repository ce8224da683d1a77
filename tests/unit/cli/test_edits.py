"""Promoting and restarting: the same service otherwise, whatever the canary overrides."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice_api.inference_service import canary_of, revision_of
from sluice_api.names import RESTARTED
from sluice_api.service_files import parse_service
from sluice_api.spec_errors import SpecError
from sluice_cli.edits import edited, promote, restart
from tests.support.resources import document

EXAMPLE = Path(__file__).parents[3] / "manifests/examples/canary.yaml"
NOTHING = "has no canary."


def promoted(text: str) -> list[Any]:
    return list(yaml.safe_load_all(edited(text, "it", promote, NOTHING)))


@pytest.mark.parametrize(
    "canary",
    [
        {"model": {"maxInputTokens": 128}},
        {"model": {"uri": "hf://a/other"}},
        {"model": {"uri": "hf://a/other", "revision": "main2"}},
        {"engine": {"image": "registry.example/other:1"}},
        {"model": {"maxInputTokens": 128}, "engine": {"image": "registry.example/other:1"}},
    ],
)
def test_what_is_promoted_is_the_revision_that_was_on_trial(canary: dict[str, Any]) -> None:
    before = document(
        model__uri="hf://a/b", model__revision="abc", rollout={"canary": {**canary, "weight": 5}}
    )
    trial = canary_of(parse_service(before, "test"))
    assert trial is not None
    [after] = promoted(yaml.safe_dump(before))
    service = parse_service(after, "test")
    assert revision_of(service) == revision_of(trial)
    assert service.spec == trial.spec
    assert "rollout" not in after["spec"]


def test_the_example_can_be_promoted() -> None:
    [after] = promoted(EXAMPLE.read_text())
    assert after["spec"]["model"]["maxInputTokens"] == 128
    assert after["spec"]["scaling"] == {"minReplicas": 1}


def test_what_a_server_added_is_left_out() -> None:
    before = document(rollout={"canary": {"model": {"maxInputTokens": 128}}})
    before["metadata"] |= {
        "uid": "u-1",
        "resourceVersion": "7",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        "labels": {"team": "search"},
    }
    before["status"] = {"replicas": 1}
    [after] = promoted(yaml.safe_dump(before))
    assert set(after) == {"apiVersion", "kind", "metadata", "spec"}
    assert after["metadata"] == {"name": before["metadata"]["name"], "labels": {"team": "search"}}


def test_lists_and_other_documents_go_through() -> None:
    trial = document(rollout={"canary": {"model": {"maxInputTokens": 128}}})
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    text = yaml.safe_dump_all([other, {"kind": "List", "items": [trial, document()]}])
    after = promoted(text)
    assert after[0] == other
    assert [item["spec"].get("rollout") for item in after[1:]] == [None, None]
    assert after[2] == document()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (yaml.safe_dump(document()), "it: has no canary."),
        (yaml.safe_dump(document(rollout={"canary": None})), "it: has no canary."),
        ("a: [", "it: line 1"),
        ("", "it: holds no InferenceService"),
        (yaml.safe_dump(document(scaling={"maxReplica": 3})), "did you mean maxReplicas?"),
    ],
)
def test_what_cannot_be_promoted_says_why(text: str, told: str) -> None:
    with pytest.raises(SpecError) as error:
        promoted(text)
    assert told in str(error.value)


def test_a_restart_is_another_value_of_the_annotation_and_no_other_revision() -> None:
    moment = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
    before = document()
    before["metadata"]["annotations"] = {RESTARTED: "earlier", "team": "search"}
    text = edited(yaml.safe_dump(before), "it", restart(moment), "nothing")
    after = yaml.safe_load(text)
    assert after["metadata"]["annotations"] == {
        RESTARTED: "2026-11-26T10:00:00Z",
        "team": "search",
    }
    one, other = parse_service(before, "test"), parse_service(after, "test")
    assert revision_of(one) == revision_of(other)
