"""The first example finds room on the small cluster on which it is tried."""

from pathlib import Path

from sluice_api.service_files import load_files

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"


def test_the_first_example_asks_for_little_and_may_take_what_others_may() -> None:
    [service] = load_files([EXAMPLES / "minilm.yaml"])
    resources = service.spec.hardware.resources
    assert (resources.requests.cpu, resources.requests.memory) == ("250m", "768Mi")
    assert resources.limits.memory == "2Gi"
