"""``POST /v2/models/{name}/infer``: Open Inference Protocol V2, REST.

One input tensor named ``text`` of datatype BYTES and shape ``[n]`` (or ``[n, 1]``); the outputs
depend on the task:

* embeddings: ``embedding`` FP32 ``[n, dimensions]``
* classification, zero-shot: ``label`` BYTES ``[n]``, ``score`` FP32 ``[n]``, and ``labels`` BYTES
  and ``scores`` FP32 ``[n, k]``, in order of score

The task is the service's first one unless ``parameters.task`` names another.
"""

from typing import Any, Literal

import msgspec

from sluice_api.call import Call, Codec, Input, Item, check_inputs
from sluice_api.decode import decode, shown
from sluice_api.errors import ApiError
from sluice_api.shapes import classify, embeddings
from sluice_api.tasks import Task

INPUT_NAME = "text"


class V2Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class V2Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None


class V2Parameters(classify.ClassifyParameters, forbid_unknown_fields=True):
    task: Literal["embeddings", "classification", "zero-shot"] | None = None
    dimensions: embeddings.Dimensions | None = None


class V2Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[V2Input]
    id: str | None = None
    parameters: V2Parameters = msgspec.field(default_factory=V2Parameters)
    outputs: list[V2Output] | None = None


class V2Options(msgspec.Struct):
    id: str | None
    outputs: list[str] | None


_decoder = msgspec.json.Decoder(V2Request)


class V2Codec:
    name = "v2"
    field = "inputs[0].data"

    def parse(self, body: bytes) -> Call:
        request = decode(_decoder, body)
        texts = _texts(request)
        given = request.parameters
        task = Task(given.task) if given.task is not None else None
        if task is None and given.labels is not None:
            task = Task.ZERO_SHOT
        call = Call(
            codec=self,
            model=None,
            task=task,
            inputs=check_inputs(texts, "inputs[0].data"),
            passthrough=False,
            options=V2Options(
                request.id, [output.name for output in request.outputs] if request.outputs else None
            ),
        )
        if task is not None:
            call.parameters = _parameters(given, task)
        else:
            # Completed by ``with_task`` once the service, and so its task, is known.
            call.parameters = {"given": given}
        return call

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        write = _embedding_outputs if call.task == Task.EMBEDDINGS else _label_outputs
        outputs = write(items)
        options: V2Options = call.options
        if options.outputs is not None:
            known = {output["name"]: output for output in outputs}
            for index, name in enumerate(options.outputs):
                if name not in known:
                    raise ApiError(
                        "invalid_field",
                        f"outputs[{index}].name: got {shown(name)}, allowed {', '.join(known)}.",
                        param=f"outputs[{index}].name",
                    )
            outputs = [known[name] for name in options.outputs]
        answer: dict[str, Any] = {"model_name": model, "outputs": outputs}
        if options.id is not None:
            answer["id"] = options.id
        return msgspec.json.encode(answer)

    def extract(self, call: Call, body: bytes) -> list[Item]:
        raise ValueError("this shape does not hold whole items")


def with_task(call: Call, task: Task) -> Call:
    """Give a V2 call that named no task the service's own; a no-op for every other call."""
    if call.task is None:
        call.task = task
        call.parameters = _parameters(call.parameters["given"], task)
    return call


def _parameters(given: V2Parameters, task: Task) -> dict[str, Any]:
    if task == Task.EMBEDDINGS:
        for name in ("labels", "multi_label", "top_k", "hypothesis_template"):
            if getattr(given, name) is not None:
                raise ApiError(
                    "invalid_field",
                    f"parameters.{name}: not a parameter of embeddings.",
                    param=f"parameters.{name}",
                )
        return {"dimensions": given.dimensions, "truncate": given.truncate}
    if given.dimensions is not None:
        raise ApiError(
            "invalid_field",
            f"parameters.dimensions: not a parameter of {task}.",
            param="parameters.dimensions",
        )
    asked, parameters = classify.canonical(given)
    if asked != task:
        raise ApiError(
            "invalid_field",
            "parameters.labels: zero-shot classification needs labels, classification takes none.",
            param="parameters.labels",
        )
    return parameters


def _texts(request: V2Request) -> list[Input]:
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT_NAME:
        got = shown([tensor.name for tensor in request.inputs])
        raise ApiError(
            "invalid_field",
            f"inputs: got {got}, allowed exactly one tensor, named {INPUT_NAME}.",
            param="inputs",
        )
    tensor = request.inputs[0]
    if tensor.datatype != "BYTES":
        raise ApiError(
            "invalid_field",
            f"inputs[0].datatype: got {shown(tensor.datatype)}, allowed BYTES.",
            param="inputs[0].datatype",
        )
    if tensor.shape not in ([len(tensor.data)], [len(tensor.data), 1]):
        raise ApiError(
            "invalid_field",
            f"inputs[0].shape: got {shown(tensor.shape)}, allowed [{len(tensor.data)}] for "
            f"{len(tensor.data)} elements of data.",
            param="inputs[0].shape",
        )
    for index, value in enumerate(tensor.data):
        if not isinstance(value, str):
            raise ApiError(
                "invalid_field",
                f"inputs[0].data[{index}]: got {shown(value)}, allowed a text.",
                param=f"inputs[0].data[{index}]",
            )
    return list(tensor.data)


def _embedding_outputs(items: list[Item]) -> list[dict[str, Any]]:
    vectors = [embeddings.vector_of(item) for item in items]
    flat = [number for vector in vectors for number in vector]
    return [
        {
            "name": "embedding",
            "datatype": "FP32",
            "shape": [len(vectors), len(vectors[0])],
            "data": flat,
        }
    ]


def _label_outputs(items: list[Item]) -> list[dict[str, Any]]:
    read = [classify.read_item(item.json) for item in items]
    count, width = len(read), len(read[0].labels)
    return [
        {"name": "label", "datatype": "BYTES", "shape": [count], "data": [i.label for i in read]},
        {"name": "score", "datatype": "FP32", "shape": [count], "data": [i.score for i in read]},
        {
            "name": "labels",
            "datatype": "BYTES",
            "shape": [count, width],
            "data": [scored.label for item in read for scored in item.labels],
        },
        {
            "name": "scores",
            "datatype": "FP32",
            "shape": [count, width],
            "data": [scored.score for item in read for scored in item.labels],
        },
    ]


CODEC: Codec = V2Codec()
