"""The examples: the first finds room on a small cluster, and the local ones say that they are."""

from pathlib import Path

from sluice_api.service_files import load_files

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"


def test_the_first_example_asks_for_little_and_may_take_what_others_may() -> None:
    [service] = load_files([EXAMPLES / "minilm.yaml"])
    resources = service.spec.hardware.resources
    assert (resources.requests.cpu, resources.requests.memory) == ("250m", "768Mi")
    assert resources.limits.memory == "2Gi"


def test_an_example_with_a_folder_of_this_machine_says_what_it_is_for() -> None:
    local = [path for path in EXAMPLES.glob("*.yaml") if "uri: file:///tmp/" in path.read_text()]
    assert len(local) >= 10
    for path in local:
        assert "# It is for `sluice up`: the folder is on your machine," in path.read_text(), path
