"""What a local run refuses, before anything starts, and what it only says is unused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice_api.spec_errors import SpecError
from sluice_cli.up.files import load_services
from sluice_operator.plan import notes
from tests.support.resources import document, service


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump(document(**changes)))
    return path


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"model__uri": "pvc://claim/m"}, "spec.model.uri", "Name the folder with file://"),
        ({"model__uri": "oci://r/m:1"}, "spec.model.uri", "got oci://r/m:1"),
        ({"engine__image": "a/b:1"}, "spec.engine.image", "no containers"),
        (
            {"rollout__canary": {"model": {"uri": "hf://a/b"}}},
            *("spec.rollout.canary", "a file of its own"),
        ),
        ({"scaling__mode": "off"}, "spec.scaling.mode", "allowed hpa or direct"),
        ({"scaling__mode": "signal"}, "spec.scaling.mode", "allowed hpa or direct"),
        ({"paused": True}, "spec.paused", "allowed false"),
    ],
)
def test_what_needs_a_cluster_is_refused(
    tmp_path: Path, changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(SpecError, match="default/minilm") as caught:
        load_services([written(tmp_path, **changes)])
    [problem] = caught.value.problems
    assert problem.field == field
    assert words in problem.message
    assert str(caught.value).startswith(f"default/minilm: {field}: "), "the command says itself"


def test_what_changes_no_answer_is_taken_and_called_unused(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "access__public": True,
        "hardware__nodeSelector": {"pool": "a"},
        "hardware__priorityClassName": "high",
        "hardware__resources": {"requests": {"cpu": "2"}},
        "model__credentials": "hub",
        "scaling__mode": "direct",
    }
    [loaded] = load_services([written(tmp_path, **changes)])
    assert loaded == service(**changes)
    [placement, credentials] = notes(loaded)
    assert placement.startswith(
        "spec.hardware.nodeSelector, spec.hardware.priorityClassName, spec.hardware.resources:"
    )
    assert "HF_TOKEN" in credentials


def test_other_mistakes_come_first(tmp_path: Path) -> None:
    path = written(tmp_path, model__uri="pvc://claim", scaling__minReplicas=9)
    with pytest.raises(SpecError) as caught:
        load_services([path])
    assert [problem.field for problem in caught.value.problems] == ["spec.scaling.minReplicas"]
