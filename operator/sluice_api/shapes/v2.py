"""``POST /v2/models/{name}/infer``: Open Inference Protocol V2, REST.

Input tensors are of datatype BYTES and shape ``[n]`` (or ``[n, 1]``); which ones a task takes and
what it answers stands in ``shapes.tensors``. The task is the service's first one that has tensors,
unless ``parameters.task`` or the inputs' names say another. KServe's client says the model's name
in the body as well.
"""

from functools import cache
from typing import Any, Literal

import msgspec

from sluice_api.call import Call, Codec, Input, Item, check_inputs
from sluice_api.decode import decode, shown
from sluice_api.errors import ApiError
from sluice_api.shapes import (
    classify,
    embeddings,
    fill_mask,
    questions,
    texts,
    tokens,
    v2_binary,
)
from sluice_api.shapes.tensors import VIEWS, Texts, View
from sluice_api.tasks import Task


class V2Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class V2Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None


class V2Parameters(msgspec.Struct, forbid_unknown_fields=True):
    """Those of the task, and ``task`` itself."""

    task: (
        Literal[
            "embeddings",
            "classification",
            "zero-shot",
            "token-classification",
            "question-answering",
            "fill-mask",
            "rerank",
            "translation",
            "summarization",
        ]
        | None
    ) = None
    aggregation: tokens.Aggregation | None = None
    dimensions: embeddings.Dimensions | None = None
    hypothesis_template: str | None = None
    ignore_labels: list[str] | None = None
    length_penalty: float | None = None
    labels: list[classify.Label] | dict[classify.Label, classify.Label] | None = None
    max_answer_tokens: questions.AnswerTokens | None = None
    max_tokens: texts.Tokens | None = None
    min_tokens: texts.Tokens | None = None
    multi_label: bool | None = None
    no_answer: bool | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    raw_scores: bool | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    source: texts.Language | None = None
    stride: tokens.Stride | None = None
    target: texts.Language | None = None
    targets: list[fill_mask.Target] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    truncate: bool | None = None


class V2Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[V2Input]
    id: str | None = None
    model_name: str | None = None
    parameters: V2Parameters = msgspec.field(default_factory=V2Parameters)
    outputs: list[V2Output] | None = None


class V2Options(msgspec.Struct):
    id: str | None
    outputs: list[str] | None


class _Unsettled(msgspec.Struct):
    """What stands in a call's parameters until its task is known."""

    given: dict[str, Any]
    texts: dict[str, list[str]]


_decoder = msgspec.json.Decoder(V2Request)
_INPUTS = sorted({view.inputs for view in VIEWS.values()})


class V2Codec:
    name = "v2"
    parameters: str | None = "parameters."

    def __init__(self, field: str = "inputs[0].data") -> None:
        self.field = field

    def parse(self, body: bytes) -> Call:
        request = decode(_decoder, body)
        _check_parameters(request)
        given_texts = _texts(request)
        texts: list[Input] = [*next(iter(given_texts.values()))]
        given = {
            k: v for k, v in msgspec.structs.asdict(request.parameters).items() if v is not None
        }
        named = given.pop("task", None)
        call = Call(
            codec=self,
            model=request.model_name,
            task=None,
            inputs=check_inputs(texts, self.field, listed=len(texts) > 1),
            parameters={"unsettled": _Unsettled(given, given_texts)},
            passthrough=False,
            options=V2Options(
                request.id, [output.name for output in request.outputs] if request.outputs else None
            ),
        )
        task = Task(named) if named is not None else _told(given, given_texts)
        return call if task is None else with_task(call, task)

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        assert call.task is not None, "settled before it is computed"
        view = VIEWS[call.task]
        outputs = [
            {"name": output.name, "datatype": output.datatype, "shape": shape, "data": data}
            for output, (shape, data) in zip(view.outputs, view.write(items), strict=True)
        ]
        options: V2Options = call.options
        if options.outputs is not None:
            outputs = _chosen(outputs, options.outputs)
        answer: dict[str, Any] = {"model_name": model, "outputs": outputs}
        if options.id is not None:
            answer["id"] = options.id
        return msgspec.json.encode(answer)

    def extract(self, call: Call, body: bytes) -> list[Item]:
        raise ValueError("this shape does not hold whole items")


def named_model(path: str | None, call: Call) -> str | None:
    """The model that is asked for, by the path or the body. Raises ApiError if they disagree."""
    if path is None or call.model is None:
        return call.model if path is None else path
    if call.model not in (path, path.rpartition("/")[2]):
        raise ApiError(
            "invalid_field",
            f"model_name: got {shown(call.model)}, the path names {shown(path)}.",
            param="model_name",
        )
    return path


def with_task(call: Call, *tasks: Task) -> Call:
    """Give a V2 call that named no task the first of ``tasks`` that has tensors.

    Returns the call, which is changed. A no-op for every other call. Raises ApiError when none has,
    or when the call's inputs or parameters are not the task's.
    """
    if call.task is not None:
        return call
    task = next((task for task in tasks if task in VIEWS), None)
    if task is None:
        raise ApiError(
            "task_not_supported",
            f"Of {' and '.join(tasks)} there are no tensors; use the routes under /v1.",
            param="model",
        )
    unsettled: _Unsettled = call.parameters["unsettled"]
    view = VIEWS[task]
    if set(unsettled.texts) != set(view.inputs):
        raise _other_inputs(list(unsettled.texts), f"for {task} {' and '.join(view.inputs)}")
    call.task = task
    parameters = _parameters(unsettled, task, view)
    call.parameters = view.canonical(parameters, unsettled.texts)
    call.sampled = view.sampled(parameters)
    call.codec = _codec_of(view, unsettled.texts)
    inputs = view.inputs_of(unsettled.texts)
    call.listed = len(inputs) > 1  # A tensor of one text is that text.
    call.inputs = check_inputs(inputs, call.codec.field, listed=call.listed)
    return call


def _codec_of(view: View, data: Texts) -> Codec:
    """One that names the tensor in which an input stands, or the row of those that it stands in."""
    if "text" in view.inputs:
        return V2Codec(f"inputs[{list(data).index('text')}].data")
    return V2Codec("inputs")


def _told(given: dict[str, Any], data: Texts) -> Task | None:
    """The task that parameters or inputs can only mean."""
    if "labels" in given:
        return Task.ZERO_SHOT
    alone = [task for task, view in VIEWS.items() if set(view.inputs) == set(data)]
    return alone[0] if len(alone) == 1 else None


def _parameters(unsettled: _Unsettled, task: Task, view: View) -> Any:
    """What was given, as the task's own parameters. Raises ApiError."""
    known = view.parameters.__struct_fields__
    for name in unsettled.given:
        if name not in known:
            allowed = ", ".join(f"parameters.{each}" for each in known)
            raise ApiError(
                "invalid_field",
                f"parameters.{name}: not a parameter of {task} here, allowed {allowed}.",
                param=f"parameters.{name}",
            )
    if (task == Task.ZERO_SHOT) != ("labels" in unsettled.given):
        raise ApiError(
            "invalid_field",
            "parameters.labels: zero-shot classification needs labels, classification takes none.",
            param="parameters.labels",
        )
    # Read once more, now with the bounds of the task.
    body = msgspec.json.encode({"parameters": unsettled.given})
    return decode(_wrapped(view.parameters), body).parameters


@cache
def _wrapped(parameters: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    """Reads them where they stand, so that errors name their place."""
    return msgspec.json.Decoder(msgspec.defstruct("Wrapped", [("parameters", parameters)]))


def _chosen(outputs: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    known = {output["name"]: output for output in outputs}
    for index, name in enumerate(names):
        if name not in known:
            raise ApiError(
                "invalid_field",
                f"outputs[{index}].name: got {shown(name)}, allowed {', '.join(known)}.",
                param=f"outputs[{index}].name",
            )
    return [known[name] for name in names]


def _check_parameters(request: V2Request) -> None:
    """Tensors have no parameters, but that they are not binary. Raises ApiError."""
    tensors = [(f"inputs[{i}]", tensor.parameters) for i, tensor in enumerate(request.inputs)]
    asked = request.outputs or []
    tensors += [(f"outputs[{i}]", tensor.parameters) for i, tensor in enumerate(asked)]
    for place, parameters in tensors:
        for name, value in (parameters or {}).items():
            if name != v2_binary.ASKED or value is not False:
                where = f"{place}.parameters.{name}"
                raise ApiError(
                    "unknown_field", f"{where}: this parameter is not known.", param=where
                )


def _texts(request: V2Request) -> dict[str, list[str]]:
    """The data of every input tensor by its name."""
    names = [tensor.name for tensor in request.inputs]
    if not any(sorted(names) == sorted(inputs) for inputs in _INPUTS):
        raise _other_inputs(names, " or ".join(" and ".join(inputs) for inputs in _INPUTS))
    return {tensor.name: _data(tensor, index) for index, tensor in enumerate(request.inputs)}


def _other_inputs(got: list[str], allowed: str) -> ApiError:
    return ApiError(
        "invalid_field",
        f"inputs: got tensors named {shown(got)}, allowed {allowed}.",
        param="inputs",
    )


def _data(tensor: V2Input, number: int) -> list[str]:
    place = f"inputs[{number}]"
    if tensor.datatype != "BYTES":
        raise ApiError(
            "invalid_field",
            f"{place}.datatype: got {shown(tensor.datatype)}, allowed BYTES.",
            param=f"{place}.datatype",
        )
    data = _flat(tensor)
    if not data or tensor.shape not in ([len(data)], [len(data), 1]):
        raise ApiError(
            "invalid_field",
            f"{place}.shape: got {shown(tensor.shape)}, allowed [{max(1, len(data))}] for "
            f"{len(data)} elements of data, of which one at least is needed.",
            param=f"{place}.shape",
        )
    for index, value in enumerate(data):
        if not isinstance(value, str):
            raise ApiError(
                "invalid_field",
                f"{place}.data[{index}]: got {shown(value)}, allowed a text.",
                param=f"{place}.data[{index}]",
            )
    return data


def _flat(tensor: V2Input) -> list[Any]:
    """The elements in row-major order; rows may stand in lists of their own."""
    if len(tensor.shape) == 2 and all(isinstance(row, list) for row in tensor.data):
        return [value for row in tensor.data for value in row]
    return tensor.data


CODEC: Codec = V2Codec()
