"""The examples: the first finds room on a small cluster, and the local ones say that they are."""

from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from sluice_api.inference_service import InferenceService
from sluice_api.quantities import parse_quantity
from sluice_api.service_files import load_files

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "manifests" / "examples"
IN_THE_IMAGE = sorted(p for p in EXAMPLES.glob("*.yaml") if "uri: python://" in p.read_text())
"""Those that anybody can apply to `make cluster`, with nothing to prepare or download."""

NODE_CORES = 2
"""Of a small machine, all of which `make cluster` gives its node."""


def test_the_first_example_asks_for_little_and_may_take_what_others_may() -> None:
    [service] = load_files([EXAMPLES / "minilm.yaml"])
    resources = service.spec.hardware.resources
    assert (resources.requests.cpu, resources.requests.memory) == ("250m", "768Mi")
    assert resources.limits.memory == "2Gi"


def cores(service: InferenceService) -> Fraction:
    """What its pods ask for once it has started, those of a canary too."""
    scaling, revisions = service.spec.scaling, 1 + (service.spec.rollout.canary is not None)
    pods = max(scaling.min_replicas, scaling.initial_replicas) * revisions
    return pods * parse_quantity(service.spec.hardware.resources.requests.cpu)


def platform_cores() -> Fraction:
    values = yaml.safe_load((ROOT / "charts/sluice/values.yaml").read_text())
    parts = [values[part] for part in ("operator", "gateway", "redis")]
    return sum(
        (p.get("replicas", 1) * parse_quantity(p["resources"]["requests"]["cpu"]) for p in parts),
        Fraction(),
    )


@pytest.mark.parametrize("path", IN_THE_IMAGE, ids=lambda path: path.stem)
def test_an_example_finds_room_on_a_small_node_beside_the_platform(path: Path) -> None:
    asked = sum(map(cores, load_files([path])), platform_cores())
    assert asked <= NODE_CORES


def test_the_examples_find_room_beside_each_other() -> None:
    assert {path.stem for path in IN_THE_IMAGE} >= {"minilm", "canary", "always-on"}
    assert sum(map(cores, load_files(IN_THE_IMAGE)), platform_cores()) <= NODE_CORES


def test_an_example_with_a_folder_of_this_machine_says_what_it_is_for() -> None:
    local = [path for path in EXAMPLES.glob("*.yaml") if "uri: file:///tmp/" in path.read_text()]
    assert len(local) >= 10
    for path in local:
        assert "# It is for `sluice up`: the folder is on your machine," in path.read_text(), path
