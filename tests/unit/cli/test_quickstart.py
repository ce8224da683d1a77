"""The ready line, once; the curl lines of each service, the last again with its headers."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice_api import wire
from sluice_api.inference_service import InferenceService
from sluice_api.routes import CANONICAL_ROUTES, POST_ROUTES
from sluice_api.tasks import Determinism, Task
from sluice_cli.up.quickstart import Quickstart, curl_lines
from sluice_cli.up.service import LocalService, revision_in, template_of
from sluice_cli.up.settings import LogLevel
from sluice_cli.up.state import Learnt, StateFolder
from sluice_cli.up.view import PlainView
from tests.support.up_process import manifest

URL = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("tasks", "paths"),
    [
        ([Task.EMBEDDINGS, Task.ZERO_SHOT], ["/v1/embeddings", "/v1/classify", "/v1/classify"]),
        ([Task.RERANK, Task.CLASSIFICATION], ["/v1/rerank"] * 2),
        (
            [Task.RELATION_EXTRACTION, Task.CLASSIFICATION, Task.ZERO_SHOT],
            ["/v1/relations", "/v1/classify", "/v1/classify"],
        ),
        (
            [Task.CHAT, Task.TEXT_GENERATION],
            ["/v1/chat/completions", "/v1/completions", "/v1/completions"],
        ),
        *(([task], [CANONICAL_ROUTES[task].path] * 2) for task in Task),
        ([], []),
    ],
)
def test_lines_are_shell_commands_whose_bodies_the_codecs_accept(
    tasks: list[Task], paths: list[str]
) -> None:
    lines = curl_lines(URL, "team/minilm", tasks)
    found = []
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "curl"
        path = words[2].removeprefix(URL)
        call = POST_ROUTES[path].parse(words[words.index("-d") + 1].encode())
        assert call.model == "team/minilm"
        assert call.task in tasks
        assert call.determinism is not Determinism.SAMPLED
        found.append(path)
    assert found == paths
    if lines:
        assert lines[-1].replace("-si", "-s") == lines[-2]


def test_a_model_that_writes_relations_is_given_no_entities() -> None:
    def asked(*tasks: Task) -> object:
        return json.loads(shlex.split(curl_lines(URL, "m", tasks)[0])[-1])["input"]

    assert isinstance(asked(Task.RELATION_EXTRACTION), str)
    assert isinstance(asked(Task.RELATION_EXTRACTION, Task.CLASSIFICATION), dict)


def test_relations_of_found_entities_are_asked_for_with_a_text_alone() -> None:
    tasks = [Task.RELATION_EXTRACTION, Task.CLASSIFICATION]
    line = curl_lines(URL, "m", tasks, finds_entities=True)[0]
    assert json.loads(shlex.split(line)[-1])["input"] == "Nina comes from New Haven ."


def test_labels_are_described() -> None:
    line = curl_lines(URL, "m", [Task.ZERO_SHOT])[0]
    labels = json.loads(shlex.split(line)[-1])["parameters"]["labels"]
    assert all(description for description in labels.values())


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFolder]:
    with StateFolder(tmp_path) as folder:
        yield folder


def _service(state: StateFolder, name: str, *, task: str = "auto", **spec: object) -> LocalService:
    made = manifest(name, **spec)
    made["spec"]["model"]["task"] = task
    parsed = InferenceService.model_validate(made)
    service = LocalService(parsed, state, PlainView(LogLevel.WARNING), 0.0, created=0)
    service.decide(0.0)
    service.promote(template_of(parsed))
    return service


def test_a_service_whose_entities_another_finds_is_shown_so(state: StateFolder) -> None:
    said: list[str] = []
    service = _service(
        state,
        "births",
        task="relation-extraction",
        access={"public": True},
        entitiesFrom="ner",
    )
    _answers(service)
    Quickstart(URL, said.append).turn([service])
    assert "Nina comes from New Haven ." in said[1]


def _answers(service: LocalService) -> None:
    """The gateway has a ready worker for it."""
    service.observe(
        wire.Demand(
            sequence=1,
            gateway="g",
            namespace="default",
            service=service.label,
            revision="r",
            interval_seconds=1.0,
            ready_endpoints=1,
        ),
        1.0,
    )


def _learns(state: StateFolder, service: LocalService) -> None:
    learnt = Learnt("sha256:1", [Task.EMBEDDINGS])
    state.remember(revision_in(template_of(service.spec)), learnt)


ASLEEP = {"initialReplicas": 0}


def test_each_service_is_introduced_when_it_first_answers(state: StateFolder) -> None:
    said: list[str] = []
    quickstart = Quickstart(URL, said.append)
    first, second = (_service(state, name) for name in ("first", "second"))
    services = [first, second]
    quickstart.turn(services)
    assert said == []
    _answers(first)
    quickstart.turn(services)
    assert said == [f"ready {URL}"], "what it offers is not known yet"
    _learns(state, first)
    for _ in range(2):
        quickstart.turn(services)
    assert [json.loads(shlex.split(line)[-1])["model"] for line in said[1:]] == ["first"] * 2
    _answers(second)
    for _ in range(2):
        quickstart.turn(services)
    assert [json.loads(shlex.split(line)[-1])["model"] for line in said[3:]] == ["second"] * 2
    assert sum(line.startswith("ready ") for line in said) == 1


def test_a_service_that_sleeps_from_the_start_tells_how_it_is_asked(state: StateFolder) -> None:
    said: list[str] = []
    quickstart = Quickstart(URL, said.append)
    unknown = _service(state, "unknown", scaling=ASLEEP)
    written = _service(state, "written", scaling=ASLEEP, task="classification")
    for _ in range(2):
        quickstart.turn([unknown, written])
    ready, hint, *curl = said
    assert ready == f"ready {URL}"
    assert hint.startswith("# unknown starts with its first request")
    assert '"model": "unknown"' in hint
    assert len(curl) == 2
    assert all(f"{URL}/v1/classify" in line and '"written"' in line for line in curl)
    _learns(state, unknown)
    quickstart.turn([unknown, written])
    assert all('"unknown"' in line for line in said[4:])
    assert len(said) == 6


def test_with_keys_every_service_is_introduced_by_its_full_name(state: StateFolder) -> None:
    said: list[str] = []
    private = _service(
        state, "secret", scaling=ASLEEP, access={"public": False}, task="classification"
    )
    Quickstart(URL, said.append, with_keys=True).turn([private])
    assert len(said) == 3
    assert all('-H "Authorization: Bearer $SLUICE_API_KEY"' in line for line in said[1:])
    assert all('"default/secret"' in line for line in said[1:])


def test_a_service_that_nobody_here_may_call_is_not_introduced(state: StateFolder) -> None:
    said: list[str] = []
    service = _service(state, "secret", scaling=ASLEEP, access={"public": False})
    Quickstart(URL, said.append).turn([service])
    assert said == [f"ready {URL}"]
