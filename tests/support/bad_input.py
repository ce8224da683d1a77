"""What no service answers: for each task every kind of bad input, and the error it must get.

One table, asked through a gateway by whichever test serves a task (see :func:`cases`); a test of
the table itself holds that no task and no kind is forgotten.
"""

import re
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from sluice_api.routes import SHAPES
from sluice_api.shapes.tensors import VIEWS
from sluice_api.tasks import Task
from tests.support.http_calls import Reply

KINDS: Final = ("empty", "too long", "wrong type", "unknown value", "unsupported", "wrong task")
"""An unknown value is a label, a language or a choice that model or route do not know; an
unsupported field is one of another task; the wrong task is another than the service's."""

LONG: Final = "word " * 40_000


class Case(NamedTuple):
    """A request to ``path`` that is refused with ``code``, naming ``param``."""

    task: Task
    kind: str
    path: str
    body: dict[str, Any]
    code: str
    param: str

    def check(self, reply: Reply) -> None:
        """Hold the answer against the catalogue: field, value and fix are in it, and no retry."""
        error = reply["error"] if self.path.startswith("/v1/") else _problem(reply)
        assert (error["code"], error["param"]) == (self.code, self.param), error
        assert reply.status == 400, error
        assert reply.headers["x-should-retry"] == "false"
        assert self.param.partition("[")[0] in error["message"] or self.param == "model", error
        assert error["message"].count("Correct") <= 1, f"it says twice what to do: {error}"
        # What is unknown stands beside the members of the object that it stands in.
        if self.code != "unknown_field":
            assert named_parameters(error["message"]) <= self._parameters() | {self.param}, error

    def _parameters(self) -> set[str]:
        """Those that the route takes, as a caller finds them again."""
        if self.path in SHAPES:
            return _parameters(SHAPES[self.path].request)
        # Who names none of the service's tasks is told what another one takes.
        tasks = VIEWS if self.kind == "wrong task" else (self.task,)
        views = [VIEWS[task].parameters.__struct_fields__ for task in tasks]
        return {f"parameters.{name}" for names in views for name in names}


def named_parameters(message: str) -> set[str]:
    """Parameters of any route that ``message`` speaks of."""
    return {match[0] for match in _SPOKEN_OF.finditer(message)}


def _parameters(request: type[msgspec.Struct]) -> set[str]:
    (schema,), parts = msgspec.json.schema_components([request], ref_template="{name}")
    own = parts[schema["$ref"]]["properties"]
    inner = own.get("parameters", {}).get("anyOf", [])
    nested = [parts[kind["$ref"]]["properties"] for kind in inner if "$ref" in kind]
    return {*own, *(f"parameters.{name}" for names in nested for name in names)}


_ALL: Final = {
    name.rpartition(".")[2] for shape in SHAPES.values() for name in _parameters(shape.request)
}
# The others are also words of a sentence.
_TELLING: Final = {name for name in _ALL if "_" in name} | {"truncate", "stride", "dimensions"}
_SPOKEN_OF: Final = re.compile(rf"(?<![\w.])(?:parameters\.)?(?:{'|'.join(sorted(_TELLING))})\b")


def _problem(reply: Reply) -> dict[str, Any]:
    """An error outside of ``/v1``, by the names that it has there."""
    assert reply.headers["content-type"] == "application/problem+json"
    return {"code": reply["code"], "param": reply["param"], "message": reply["detail"]}


def _rows(task: Task, path: str, *rows: tuple[str, dict[str, Any], str, str]) -> list[Case]:
    return [Case(task, kind, path, body, code, param) for kind, body, code, param in rows]


def _asked(**members: Any) -> dict[str, Any]:
    """A body of the shape that most tasks share, with ``members`` as parameters."""
    return {"input": members.pop("input", "a"), "parameters": members}


def _wrong(task: Task, path: str, **body: Any) -> Case:
    return Case(task, "wrong task", path, body or {"input": "a"}, "task_not_supported", "model")


def _user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def _tool(name: str, **schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TABLE: Final[list[Case]] = [
    *_rows(
        Task.EMBEDDINGS,
        "/v1/embeddings",
        ("empty", {"input": ""}, "invalid_field", "input"),
        ("empty", {"input": ["a", ""]}, "invalid_field", "input[1]"),
        ("too long", {"input": LONG}, "input_too_long", "input"),
        ("wrong type", {"input": 7}, "invalid_field", "input"),
        (
            "unknown value",
            {"input": "a", "encoding_format": "hex"},
            "invalid_field",
            "encoding_format",
        ),
        ("unknown value", {"input": "a", "dimensions": 9999}, "invalid_field", "dimensions"),
        ("unsupported", {"input": "a", "top_k": 1}, "unknown_field", "top_k"),
    ),
    _wrong(Task.EMBEDDINGS, "/v1/tokens/classify"),
    *_rows(
        Task.CLASSIFICATION,
        "/v1/classify",
        ("empty", {"input": []}, "invalid_field", "input"),
        ("too long", {"input": ["a", LONG]}, "input_too_long", "input[1]"),
        ("wrong type", {"input": {"text": "a"}}, "invalid_field", "input"),
        ("unknown value", _asked(top_k="all"), "invalid_field", "parameters.top_k"),
        ("unknown value", _asked(labels=["x"]), "task_not_supported", "model"),
        ("unsupported", _asked(multi_label=True), "invalid_field", "parameters.multi_label"),
        ("unsupported", _asked(stride=1), "unknown_field", "parameters.stride"),
    ),
    _wrong(Task.CLASSIFICATION, "/v1/embeddings"),
    *_rows(
        Task.CLASSIFICATION,
        "/classify",
        ("empty", {"text": ""}, "invalid_field", "text"),
        ("too long", {"text": LONG}, "input_too_long", "text"),
        ("wrong type", {"text": ["a"]}, "invalid_field", "text"),
        ("unsupported", {"text": "a", "truncate": True}, "unknown_field", "truncate"),
    ),
    *_rows(
        Task.CLASSIFICATION,
        "/predict",
        ("empty", {"text": ["a", ""]}, "invalid_field", "text[1]"),
        ("too long", {"text": ["a", LONG]}, "input_too_long", "text[1]"),
        ("too long", {"text": "word " * 400}, "input_too_long", "text"),
        ("wrong type", {"text": 7}, "invalid_field", "text"),
        ("unsupported", {"text": "a", "parameters": {}}, "unknown_field", "parameters"),
    ),
    *_rows(
        Task.ZERO_SHOT,
        "/v1/classify",
        ("empty", _asked(input="", labels=["x"]), "invalid_field", "input"),
        ("empty", _asked(labels=[]), "invalid_field", "parameters.labels"),
        ("too long", _asked(input=LONG, labels=["x"]), "input_too_long", "input"),
        ("wrong type", _asked(labels={"x": 7}), "invalid_field", 'parameters.labels["x"]'),
        ("unknown value", _asked(labels=["x", "x"]), "invalid_field", "parameters.labels"),
        (
            "unknown value",
            _asked(labels=["x"], hypothesis_template="no place"),
            "invalid_field",
            "parameters.hypothesis_template",
        ),
        (
            "unsupported",
            _asked(labels=["x"], aggregation="max"),
            "unknown_field",
            "parameters.aggregation",
        ),
    ),
    _wrong(Task.ZERO_SHOT, "/v1/answer", input={"question": "a", "context": "b"}),
    *_rows(
        Task.TOKEN_CLASSIFICATION,
        "/v1/tokens/classify",
        ("empty", {"input": ""}, "invalid_field", "input"),
        ("empty", {}, "missing_field", "input"),
        ("too long", {"input": ["a", LONG]}, "input_too_long", "input[1]"),
        ("wrong type", {"input": [["a"]]}, "invalid_field", "input[0]"),
        ("unknown value", _asked(ignore_labels=["X"]), "invalid_field", "parameters.ignore_labels"),
        ("unknown value", _asked(aggregation="most"), "invalid_field", "parameters.aggregation"),
        ("unsupported", _asked(top_k=1), "unknown_field", "parameters.top_k"),
    ),
    _wrong(Task.TOKEN_CLASSIFICATION, "/v1/embeddings"),
    *_rows(
        Task.RELATION_EXTRACTION,
        "/v1/relations",
        ("empty", {"input": {"text": ""}}, "invalid_field", "input.text"),
        ("empty", {"input": "a"}, "missing_field", "input.entities"),
        (
            "too long",
            {"input": {"text": LONG, "entities": [{"start": i, "end": i + 1} for i in range(70)]}},
            "too_many_inputs",
            "input.entities",
        ),
        (
            "wrong type",
            {"input": [{"text": "a", "entities": [{"start": 0, "end": 2}]}]},
            "invalid_field",
            "input[0].entities[0]",
        ),
        (
            "unknown value",
            _asked(entities_from="relations"),
            "task_not_supported",
            "parameters.entities_from",
        ),
        (
            "unknown value",
            {"input": {"text": "a b", "entities": [{"start": 0, "end": 1}], "pairs": [[0, 3]]}},
            "invalid_field",
            "input.pairs[0]",
        ),
        ("unsupported", _asked(top_k=1), "unknown_field", "parameters.top_k"),
    ),
    _wrong(Task.RELATION_EXTRACTION, "/v1/rerank", query="a", documents=["b"]),
    *_rows(
        Task.QUESTION_ANSWERING,
        "/v1/answer",
        ("empty", {"input": []}, "invalid_field", "input"),
        (
            "too long",
            {"input": [{"question": "who " * 99, "context": "a"}]},
            "input_too_long",
            "input[0].question",
        ),
        ("wrong type", {"input": "a"}, "invalid_field", "input"),
        (
            "unknown value",
            _asked(input={"question": "a", "context": "b"}, top_k=0),
            "invalid_field",
            "parameters.top_k",
        ),
        (
            "unsupported",
            _asked(input={"question": "a", "context": "b"}, labels=["x"]),
            "unknown_field",
            "parameters.labels",
        ),
    ),
    _wrong(Task.QUESTION_ANSWERING, "/v1/fill-mask"),
    *_rows(
        Task.FILL_MASK,
        "/v1/fill-mask",
        ("empty", {"input": ["[MASK]", "a"]}, "invalid_field", "input[1]"),
        ("too long", {"input": "[MASK] " * 300}, "input_too_long", "input"),
        ("wrong type", {"input": None}, "invalid_field", "input"),
        (
            "unknown value",
            _asked(input="[MASK]", targets=["unheard"]),
            "invalid_field",
            "parameters.targets",
        ),
        ("unsupported", _asked(input="[MASK]", stride=1), "unknown_field", "parameters.stride"),
    ),
    _wrong(Task.FILL_MASK, "/v1/embeddings"),
    *_rows(
        Task.RERANK,
        "/v1/rerank",
        ("empty", {"query": "a"}, "missing_field", "documents"),
        ("empty", {"query": "", "documents": ["b"]}, "invalid_field", "query"),
        ("too long", {"query": "a", "documents": ["b", LONG]}, "input_too_long", "documents[1]"),
        ("wrong type", {"query": "a", "documents": ["b", 7]}, "invalid_field", "documents[1]"),
        (
            "unknown value",
            {"query": "a", "documents": ["b"], "top_n": "all"},
            "invalid_field",
            "top_n",
        ),
        (
            "unsupported",
            {"query": "a", "documents": ["b"], "stream": True},
            "unknown_field",
            "stream",
        ),
    ),
    _wrong(Task.RERANK, "/v1/embeddings"),
    *_rows(
        Task.TRANSLATION,
        "/v1/translate",
        ("empty", _asked(input="", target="bo"), "invalid_field", "input"),
        ("empty", {"input": "a"}, "missing_field", "parameters.target"),
        ("too long", _asked(input=["a", LONG * 4], target="bo"), "input_too_long", "input[1]"),
        ("wrong type", {"input": 7}, "invalid_field", "input"),
        ("unknown value", _asked(target="xx"), "invalid_field", "parameters.target"),
        ("unknown value", _asked(target="en"), "invalid_field", "parameters.target"),
        ("unknown value", _asked(num_beams=99), "invalid_field", "parameters.num_beams"),
        ("unsupported", _asked(stop=["a"]), "unknown_field", "parameters.stop"),
    ),
    _wrong(Task.TRANSLATION, "/v1/summarize"),
    *_rows(
        Task.SUMMARIZATION,
        "/v1/summarize",
        ("empty", {"input": [""]}, "invalid_field", "input[0]"),
        ("too long", {"input": ["a", "once . " * 30_000]}, "input_too_long", "input[1]"),
        ("wrong type", {"input": [7]}, "invalid_field", "input[0]"),
        ("unknown value", _asked(max_tokens=0), "invalid_field", "parameters.max_tokens"),
        ("unsupported", _asked(target="bo"), "unknown_field", "parameters.target"),
    ),
    _wrong(Task.SUMMARIZATION, "/v1/classify"),
    *_rows(
        Task.TEXT_GENERATION,
        "/v1/completions",
        ("empty", {}, "missing_field", "prompt"),
        ("too long", {"prompt": "x " * 3000}, "input_too_long", "prompt"),
        ("too long", {"prompt": "x", "max_tokens": 900}, "input_too_long", "max_tokens"),
        ("wrong type", {"prompt": {"text": "x"}}, "invalid_field", "prompt"),
        ("unknown value", {"prompt": [9999]}, "invalid_field", "prompt"),
        (
            "unknown value",
            {"prompt": "x", "logit_bias": {"9999": 1}},
            "invalid_field",
            "logit_bias",
        ),
        ("unsupported", {"prompt": "x", "labels": ["x"]}, "unknown_field", "labels"),
    ),
    _wrong(Task.TEXT_GENERATION, "/v1/embeddings"),
    *_rows(
        Task.CHAT,
        "/v1/chat/completions",
        ("empty", {"messages": []}, "invalid_field", "messages"),
        ("too long", _user("x" * 9000), "input_too_long", "messages"),
        ("wrong type", {"messages": "Hi"}, "invalid_field", "messages"),
        (
            "unknown value",
            {"messages": [{"role": "king", "content": "Hi"}]},
            "invalid_field",
            "messages[0].role",
        ),
        (
            "unknown value",
            _user(
                "x",
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                },
            ),
            "invalid_field",
            "response_format.json_schema.schema",
        ),
        (
            "unknown value",
            _user(
                "Hi",
                tools=[{"type": "function", "function": {"name": "weather"}}],
                tool_choice={"type": "function", "function": {"name": "nobody"}},
            ),
            "invalid_field",
            "tool_choice.function.name",
        ),
        (
            "unknown value",
            _user("Hi", tools=[_tool("a"), _tool("b", type="strnig")]),
            "invalid_field",
            "tools[1].function.parameters",
        ),
        ("unsupported", _user("Hi", labels=["x"]), "unknown_field", "labels"),
    ),
    _wrong(Task.CHAT, "/v1/translate"),
]


def _tensors(
    task: Task,
    given: dict[str, str],
    parameters: dict[str, Any],
    *,
    last: str = "inputs[0].data",
    long: str = LONG,
    other: Task = Task.EMBEDDINGS,
    foreign: str = "dimensions",
    wrong: tuple[str, str] = ("task_not_supported", "model"),
) -> list[Case]:
    """Each kind of bad input by the Open Inference Protocol.

    Args:
        given: the input tensors, the one that is spoiled last.
        parameters: those that a good request has.
        last: how an error names the spoiled one.
        long: what is too long for it.
        other: a task that the service does not do.
        foreign: a parameter of another task.
        wrong: what is said of another task: that is told by its tensors or parameters first.
    """

    def body(text: Any = None, *, datatype: str = "BYTES", **more: Any) -> dict[str, Any]:
        data = {**given, [*given][-1]: text} if text is not None else given
        inputs = [
            {"name": name, "shape": [1], "datatype": "BYTES", "data": [value]}
            for name, value in data.items()
        ]
        inputs[-1]["datatype"] = datatype
        asked = {**parameters, **more.pop("parameters", {})}
        return {"inputs": inputs, "parameters": asked, **more}

    number = len(given) - 1
    rows = [
        ("empty", body(""), "invalid_field", last),
        ("too long", body(long), "input_too_long", last),
        ("wrong type", body(7), "invalid_field", f"inputs[{number}].data[0]"),
        ("wrong type", body(datatype="FP32"), "invalid_field", f"inputs[{number}].datatype"),
        (
            "unknown value",
            body(outputs=[{"name": "nothing"}]),
            "invalid_field",
            "outputs[0].name",
        ),
        (
            "unsupported",
            body(parameters={foreign: 1}),
            "invalid_field",
            f"parameters.{foreign}",
        ),
        ("wrong task", body(parameters={"task": other}), *wrong),
    ]
    return _rows(task, "/v2/models/{model}/infer", *rows)


TENSORS: Final[list[Case]] = [
    Case(
        Task.EMBEDDINGS,
        "unknown value",
        "/v2/models/{model}/infer",
        {
            "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}],
            "parameters": {"task": "embeddings", "dimensions": 9999},
        },
        "invalid_field",
        "parameters.dimensions",
    ),
    *_tensors(Task.EMBEDDINGS, {"text": "a"}, {}, other=Task.SUMMARIZATION, foreign="stride"),
    *_tensors(Task.CLASSIFICATION, {"text": "a"}, {}),
    *_tensors(
        Task.ZERO_SHOT,
        {"text": "a"},
        {"labels": ["x"]},
        wrong=("invalid_field", "parameters.labels"),
    ),
    *_tensors(Task.TOKEN_CLASSIFICATION, {"text": "a"}, {}),
    *_tensors(
        Task.QUESTION_ANSWERING,
        {"question": "a", "context": "b"},
        {},
        last="inputs.context",
        wrong=("invalid_field", "inputs"),
    ),
    *_tensors(Task.FILL_MASK, {"text": "[MASK]"}, {}, long="[MASK] " * 300),
    *_tensors(
        Task.RERANK,
        {"query": "a", "text": "b"},
        {},
        last="inputs[1].data",
        wrong=("invalid_field", "inputs"),
    ),
    *_tensors(
        Task.TRANSLATION,
        {"text": "a"},
        {"target": "bo"},
        long=LONG * 4,
        wrong=("invalid_field", "parameters.target"),
    ),
    *_tensors(Task.SUMMARIZATION, {"text": "a"}, {}, long="once . " * 30_000),
]
"""The same for the tasks whose answers have the shape of tensors."""


def cases(services: dict[Task, str]) -> list[Any]:
    """The rows of some tasks as pytest's parameters, asking the service of each."""
    return [
        pytest.param(
            _asking(case, services[case.task]),
            id=f"{case.path[1:3]}-{case.task}-{case.kind}-{case.param}".replace(" ", "-"),
        )
        for case in TABLE + TENSORS
        if case.task in services
    ]


def _asking(case: Case, model: str) -> Case:
    if "{model}" in case.path:
        return case._replace(path=case.path.format(model=model))
    return case._replace(body={"model": model, **case.body})
