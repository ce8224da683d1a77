"""What the two OpenAI routes of generated text share of a request: its parameters.

``completions`` and ``chat`` are the two codecs. ``generated`` has what they share of an answer.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from sluice_api.call import MAX_INPUTS, Call, Input, Stream, TokenId
from sluice_api.decode import check_depth, shown
from sluice_api.errors import ApiError
from sluice_api.shapes.template_variables import Variables
from sluice_api.tasks import Task

MAX_CHOICES = 64
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_ALTERNATIVES = 20
"""Alternatives reported beside each token; OpenAI's own bound for chat."""

JSON_OBJECT: Final = "object"
"""The canonical ``json_schema`` of the response format ``json_object``."""

LEAST_TEMPERATURE = 1e-5
"""Below this the most probable token is as good as certain, and dividing by it overflows: it is
taken as 0."""

Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Repetition = Annotated[float, msgspec.Meta(ge=0.01, le=10)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool = False


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The members that both routes take. `top_k` 0 or -1 means no bound, and a `temperature`
    below 0.00001 is 0.

    A member left out has the value of the model's own `generation_config.json`.
    """

    model: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    logit_bias: (
        Annotated[
            dict[TokenId, Bias], msgspec.Meta(extra_json_schema={"maxProperties": MAX_BIASES})
        ]
        | None
    ) = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class Parameters(msgspec.Struct, omit_defaults=True):
    """``Call.parameters`` of both routes, typed. What is left out is the model's own default.

    Attributes:
        logprobs: alternatives reported beside each token; None reports no probabilities.
        json_schema: JSON text the answer must fit, or :data:`JSON_OBJECT`. A text, because the
            order of properties is the order in which they are written.
        tools: JSON text of the list of tools, as the chat template takes them.
        tool_choice: ``auto``, ``none``, ``required``, or ``=`` and the name of one function.
        chat_template_kwargs: variables of the chat template.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int = 1
    stop: list[str] = []
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] = {}
    logprobs: int | None = None
    json_schema: str | None = None
    tools: str | None = None
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: Variables = {}


def parameters_of(call: Call) -> Parameters:
    """The canonical parameters of a call by either route, read back."""
    return msgspec.convert(call.parameters, Parameters)


def canonical(request: GenerationRequest) -> Parameters:
    """The shared members in canonical form: equal meaning, equal values. Raises ApiError."""
    biases = request.logit_bias or {}
    # Not by its type: to say what does not fit that, the whole body is read once more.
    if len(biases) > MAX_BIASES:
        raise ApiError(
            "invalid_field",
            f"logit_bias: got {len(biases)} tokens, at most {MAX_BIASES} are allowed.",
            param="logit_bias",
        )
    parameters = Parameters(
        max_tokens=request.max_tokens,
        temperature=settled_temperature(request.temperature),
        n=request.n or 1,
        stop=[request.stop] if isinstance(request.stop, str) else (request.stop or []),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty,
        logit_bias={str(token): bias for token, bias in biases.items()},
        json_schema=_json_schema(request.response_format),
    )
    if parameters.temperature != 0:  # The most probable token does not depend on these.
        parameters.top_p, parameters.min_p = request.top_p, request.min_p
        parameters.top_k = None if request.top_k is None else max(0, request.top_k)
        parameters.seed = request.seed
    return parameters


def settled_temperature(given: float | None) -> float | None:
    """What a temperature means: see :data:`LEAST_TEMPERATURE`."""
    return 0.0 if given is not None and given < LEAST_TEMPERATURE else given


def check_choices(inputs: Sequence[Input], parameters: Parameters) -> None:
    """Refuse more texts than a request may have inputs. Raises ApiError."""
    if len(inputs) * parameters.n > MAX_INPUTS:
        raise ApiError(
            "too_many_inputs",
            f"n: got {parameters.n} choices of {len(inputs)} prompts each, at most {MAX_INPUTS} "
            "texts are written together. Ask for fewer, or send several requests.",
            param="n",
        )


def asks_for_sampling(parameters: Parameters) -> bool:
    """Whether the caller wants tokens drawn; without a word of it the model's defaults decide."""
    if parameters.temperature is not None:
        return parameters.temperature > 0
    drawing = (parameters.top_p, parameters.top_k, parameters.min_p, parameters.seed)
    return parameters.n > 1 or any(value is not None for value in drawing)


_OPEN: Final = frozenset((Task.TEXT_GENERATION, Task.CHAT))
"""Tasks whose temperature is the model's where the caller names none."""


def leaves_open(call: Call) -> bool:
    """Whether only the model's own defaults can tell if chance has a part in the answer."""
    return call.task in _OPEN and not call.sampled and "temperature" not in call.parameters


def _json_schema(given: ResponseFormat | None) -> str | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return JSON_OBJECT
    if given.json_schema is None:
        raise ApiError(
            "missing_field",
            "response_format.json_schema: required, because the type is json_schema.",
            param="response_format.json_schema",
        )
    check_depth(given.json_schema.schema, "response_format.json_schema.schema")
    return msgspec.json.encode(given.json_schema.schema).decode()


def response_format(json_schema: str | None) -> dict[str, Any] | None:
    """Undo the canonical form of a response format."""
    if json_schema is None:
        return None
    if json_schema == JSON_OBJECT:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": msgspec.Raw(json_schema.encode())},
    }


def unsupported(name: str, value: Any) -> ApiError:
    """A member that is known, with a value that cannot be honoured."""
    message = f"{name}: got {shown(value)}, which is not supported. Leave it out."
    return ApiError("invalid_field", message, param=name)


def stream_of(request: GenerationRequest) -> Stream | None:
    """How the caller wants it streamed, if so. Raises ApiError."""
    if not request.stream:
        if request.stream_options is not None:
            raise ApiError(
                "invalid_field",
                "stream_options: only allowed together with stream: true.",
                param="stream_options",
            )
        return None
    options = request.stream_options
    return Stream(include_usage=options is not None and options.include_usage)


def shared_body(call: Call) -> dict[str, Any]:
    """The members of a body that ask for ``call``'s parameters again, whatever the route."""
    body: dict[str, Any] = {
        name: value
        for name, value in call.parameters.items()
        if name not in ("json_schema", "logprobs", "tools", "tool_choice")
    }
    if call.model is not None:
        body["model"] = call.model
    if format_ := response_format(call.parameters.get("json_schema")):
        body["response_format"] = format_
    return body
