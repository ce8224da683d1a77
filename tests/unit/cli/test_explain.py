"""A status in sentences, for every rule that there is."""

import pytest
import yaml
from typer.testing import CliRunner

from sluice_cli.explain import RULES, explained
from sluice_cli.main import app
from sluice_operator.fleet import FIXED_RULE
from sluice_operator.scaling.recommend import Rule
from sluice_operator.state import Wanted
from tests.support.planned_cluster import PlannedCluster
from tests.support.resources import document


def test_every_rule_has_words() -> None:
    assert {*map(str, Rule), FIXED_RULE} == RULES.keys()


def test_what_the_operator_writes_is_explained() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods()
    revision = cluster.settle().status["revision"]
    cluster.wanted[revision] = Wanted(3, "trend", "96.0 req/s and climbing")
    cluster.settle()
    text = "\n".join(explained(cluster.resource))
    assert "default/minilm: replicas wanted 3, ready 1." in text
    assert "Why 3: requests climb, and a replica takes its time to start (trend)." in text
    assert "From: 96.0 req/s and climbing" in text
    assert f"Revision {revision} (stable): 1 of 3 ready." in text
    assert "Ready is True, Ready: Revision" in text


def test_the_command_reads_what_kubectl_prints() -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": [document()]}
    result = CliRunner().invoke(app, ["explain", "-"], input=yaml.safe_dump(listed))
    assert (result.exit_code, result.output) == (
        0,
        "default/minilm: the operator has not looked at it yet.\n",
    )


@pytest.mark.parametrize("text", ["kind: Pod", "a: ["])
def test_what_cannot_be_explained_says_so(text: str) -> None:
    assert CliRunner().invoke(app, ["explain", "-"], input=text).exit_code == 1
