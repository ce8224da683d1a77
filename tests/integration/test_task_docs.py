"""The pages of docs/tasks are whole, and those of generating tasks show what happens.

One real ``sluice up`` serves the manifests of manifests/examples, with the folders that their
comments have people make replaced by the example model of this session. The other pages are run by
the tests of their tasks, which serve their models anyway.
"""

import re
from collections.abc import Iterator

import msgspec
import pytest

from sluice_api.service_files import load_files
from sluice_api.shapes import (
    chat,
    classify,
    completions,
    embeddings,
    fill_mask,
    questions,
    relations,
    rerank,
    texts,
    tokens,
)
from sluice_api.tasks import Task
from tests.support.task_pages import ROOT, RUN_BY, TaskPage, differences
from tests.support.trained import Models
from tests.support.up_process import UpProcess, running_up, write

PAGES = sorted(path.stem for path in (ROOT / "docs" / "tasks").glob("*.md"))
NLI_ONLY = {"labels", "multi_label", "hypothesis_template"}

PARAMETERS: dict[str, tuple[type[msgspec.Struct], set[str]]] = {
    "chat": (chat.ChatRequest, {"model"}),
    "classification": (classify.ClassifyParameters, NLI_ONLY),
    "embeddings": (embeddings.EmbeddingsRequest, {"model"}),
    "fill-mask": (fill_mask.FillMaskParameters, set()),
    "question-answering": (questions.QuestionParameters, set()),
    "relation-extraction": (relations.RelationParameters, set()),
    "rerank": (rerank.RerankRequest, {"model"}),
    "summarization": (texts.SummarizeParameters, set()),
    "text-generation": (completions.CompletionRequest, {"model", "suffix", "echo", "best_of"}),
    "token-classification": (tokens.TokensParameters, set()),
    "translation": (texts.TranslateParameters, set()),
    "written-relations": (relations.RelationParameters, {"entities_from"}),
    "zero-shot": (classify.ClassifyParameters, set()),
}
"""Page → what the route takes, and what of it is not this task's or said elsewhere."""


@pytest.fixture(scope="module")
def up(trained_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    folder = tmp_path_factory.mktemp("tasks")
    pages = [TaskPage(name) for name in RUN_BY["test_task_docs"]]
    write(folder / "tasks.yaml", *(page.service(trained_models.talker) for page in pages))
    with running_up(folder / "state", folder / "tasks.yaml") as process:
        process.until_ready(300)
        process.until(lambda: len(process.ready_workers()) == len(pages), "both workers", 300)
        yield process


@pytest.mark.parametrize("name", RUN_BY["test_task_docs"])
def test_the_page_of_the_task_shows_what_happens(up: UpProcess, name: str) -> None:
    # How a byte-level tokenizer cuts words is learnt anew on each machine.
    TaskPage(name).check(up.url, slack=10)


def test_every_page_is_run_and_every_task_has_one() -> None:
    run = [page for pages in RUN_BY.values() for page in pages]
    assert sorted(run) == PAGES
    assert {TaskPage(name).task for name in PAGES} == {*Task}
    for module in RUN_BY:
        assert f'RUN_BY["{module}"]' in (ROOT / f"tests/integration/{module}.py").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_everything(name: str) -> None:
    page = TaskPage(name)
    headings = [*page.sections]
    route = next(h for h in headings if h.startswith("Request: "))
    order = ["Try it without a download", "Manifest", route, "Answer", "Limits"]
    order += ["What is cached", "Models"]
    assert [heading for heading in headings if heading in order] == order
    path = re.fullmatch(r"Request: `POST (/v1/\S+)`", route)
    assert path is not None and f"http://127.0.0.1:8080{path[1]} " in page.commands[0]
    assert f"{{task: {page.task}, body: {{" in page.sections["What is cached"]
    assert "`cache.precompute`" in page.sections["What is cached"]
    assert re.search(r"^\| `(hf://)?\w\S+/.* [\d.]+ GB \|", page.sections["Models"], re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_the_manifest_on_a_page_is_that_of_its_example(name: str) -> None:
    page = TaskPage(name)
    shown, [example] = page.shown[0], load_files([page.manifest])
    assert shown["metadata"]["name"] in {example.metadata.name, page.answer["model"]}
    assert shown["spec"]["model"].get("task", page.task) == page.task
    assert page.answer["model"] == example.metadata.name
    text = page.manifest.read_text()
    if page.folder is not None:
        # The example says which public model to use in its place, with the memory it needs.
        assert f"sluice example-model {name} {page.folder}" in text
        assert f"docs/tasks/{name}.md" in text
        assert re.search(r"hf://\S+ \([\d.]+ GB", text) or "a classifier of your own" in text


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_every_parameter_and_no_other(name: str) -> None:
    struct, elsewhere = PARAMETERS[name]
    fields, named = {*struct.__struct_fields__} - elsewhere, _named(name)
    # A chat takes what its page names, and what text generation takes but for the prompt.
    said = named | _named("text-generation") if name == "chat" else named
    assert fields - said == set()
    assert named - fields - {"text", "entities", "pairs"} == set()


@pytest.mark.parametrize("name", PAGES)
def test_bounds_of_parameters_are_on_the_page(name: str) -> None:
    struct, elsewhere = PARAMETERS[name]
    rows = _rows(name)
    if name == "chat":
        rows = {**_rows("text-generation"), **rows}
    for field in msgspec.inspect.type_info(struct).fields:  # type: ignore[attr-defined]
        row = rows.get(field.name)
        if field.name in elsewhere or row is None or "as for [" in row:
            continue
        told = _NUMBER.findall(row + TaskPage(name).sections["Limits"])
        said = {float(number.replace(" ", "").replace(",", "")) for number in told}
        assert _bounds(field.type) - said == set(), f"{field.name}: {row}"


_NUMBER = re.compile(r"-?\d+(?:[ ,]\d{3})*(?:\.\d+)?")
_TECHNICAL = {0.0, 1.0, -1.0, 65536.0, 1e6, float(2**31 - 1), float(2**63 - 1), -float(2**63)}
"""Bounds that nobody meets, or that are how one counts."""


def _rows(name: str) -> dict[str, str]:
    """What a page's tables say of each parameter."""
    text = "".join(TaskPage(name).sections.values())
    return {
        word: meaning
        for cell, meaning in re.findall(r"^\| (`.+?) \| (.+) \|$", text, re.MULTILINE)
        for word in re.findall(r"`([a-z_]+)(?:\.\w+)?`", cell)
    }


def _bounds(kind: msgspec.inspect.Type) -> set[float]:
    parts = kind.types if isinstance(kind, msgspec.inspect.UnionType) else [kind]
    found: set[float] = set()
    for part in parts:
        if isinstance(part, msgspec.inspect.IntType | msgspec.inspect.FloatType):
            found |= {float(bound) for bound in (part.ge, part.le) if bound is not None}
        elif isinstance(part, msgspec.inspect.ListType) and part.max_length is not None:
            found.add(float(part.max_length))
    return found - _TECHNICAL


def _named(name: str) -> set[str]:
    """The names in the first columns of a page's tables, without those of models."""
    text = "".join(TaskPage(name).sections.values())
    cells = re.findall(r"^\| (`.+?) \| ", text, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([a-z_]+)(?:\.\w+)?`", cell)}


@pytest.mark.parametrize(
    ("shown", "real", "same"),
    [
        ({"a": [1, "…"]}, {"a": [1, 2, 3]}, True),
        ({"a": [1, "…"]}, {"a": [2]}, False),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": "x…z"}, {"a": "xyz"}, True),
        ({"a": "x…"}, {"a": "yx"}, False),
        ({"a": 1, "…": "…"}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {}, False),
        (0.95, 0.9, True),
        (0.95, 0.5, False),
        (7, 8, False),
        (1, True, False),
        (None, "", False),
        ({"created": 1}, {"created": 2}, True),
    ],
)
def test_an_answer_that_is_not_the_shown_one_is_seen(
    shown: object, real: object, same: bool
) -> None:
    assert (not [*differences(shown, real, 0.2)]) == same
