"""What the two OpenAI routes of generated text share: parameters, items, and server-sent events.

``completions`` and ``chat`` are its two codecs. A canonical item holds every choice of one prompt,
each as the plain route writes it without its ``index``::

    {"choices": [{…}, …], "prompt_tokens": 9, "completion_tokens": 16, "sampled": true?,
     "tokens": 25}

``sampled`` is there when another call could get another answer; such an item is never stored.
Callers may not know beforehand: without a temperature the model's own defaults decide.
"""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol

import msgspec

from sluice_api.call import MAX_INPUTS, Call, CanonicalCodec, Input, Item, Stream, TokenId
from sluice_api.decode import check_depth, shown
from sluice_api.errors import ApiError, render
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


# Choices and items -------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_calls"]


class Alternative(NamedTuple):
    """One token and how probable it was. ``text`` is what its bytes mean, if they mean anything."""

    text: str
    logprob: float
    bytes: bytes


class TokenLogprob(NamedTuple):
    """One generated token, and the most probable tokens in its place."""

    chosen: Alternative
    top: Sequence[Alternative] = ()


class FunctionCall(msgspec.Struct):
    """``arguments`` is JSON text, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Choice(NamedTuple):
    """One answer to one prompt, by whichever route."""

    text: str
    finish_reason: FinishReason
    logprobs: Sequence[TokenLogprob] | None = None
    tool_calls: Sequence[ToolCall] = ()


class Delta(msgspec.Struct, frozen=True):
    """What one step adds to the choice ``index`` of a stream.

    Attributes:
        logprobs: of the tokens behind ``text``; None where they were not asked for.
        tool_calls: each with the place of the call it adds to; a call's first part has its id and
            name, later ones have more of the arguments.
        finish_reason: given once, with the last delta of a choice.
    """

    index: int
    text: str = ""
    logprobs: Sequence[TokenLogprob] | None = None
    tool_calls: Sequence[tuple[int, ToolCall]] = ()
    finish_reason: FinishReason | None = None


class PromptUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Usage(PromptUsage):
    by_prompt: list[PromptUsage] | None = None


class _Answer(msgspec.Struct):
    choices: list[msgspec.Raw]
    usage: _Usage
    sampled: bool = False


class _Item(msgspec.Struct):
    choices: list[msgspec.Raw]
    prompt_tokens: int
    completion_tokens: int
    tokens: int
    sampled: bool = False


class _Indexed(msgspec.Struct):
    index: int


_read_answer = msgspec.json.Decoder(_Answer).decode
_read_item = msgspec.json.Decoder(_Item).decode
_read_index = msgspec.json.Decoder(_Indexed).decode
_read_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def write_item(
    choices: Iterable[bytes], prompt_tokens: int, completion_tokens: int, *, sampled: bool
) -> Item:
    """The canonical item of one prompt; ``choices`` as the plain route writes them, unindexed."""
    tokens = prompt_tokens + completion_tokens
    return Item(
        b'{"choices":[%b],"prompt_tokens":%d,"completion_tokens":%d%b,"tokens":%d}'
        % (
            b",".join(choices),
            prompt_tokens,
            completion_tokens,
            b',"sampled":true' if sampled else b"",
            tokens,
        ),
        tokens,
    )


def is_sampled(item: Item) -> bool:
    """Whether another call could get another answer, so that this one must not be stored."""
    return _read_item(item.json).sampled


def raw_choices(item: Item) -> list[bytes]:
    """The choices inside an item, unindexed."""
    return [bytes(raw) for raw in _read_item(item.json).choices]


def write_answer(kind: str, prefix: str, model: str, items: Sequence[Item]) -> bytes:
    """A whole plain answer. ``usage.by_prompt`` is there when there are several prompts."""
    read = [_read_item(item.json) for item in items]
    unindexed = [bytes(raw) for item in read for raw in item.choices]
    choices = [b'{"index":%d,%b' % (index, raw[1:]) for index, raw in enumerate(unindexed)]
    prompts = [PromptUsage(item.prompt_tokens, item.completion_tokens) for item in read]
    return b'{%b,"choices":[%b],"usage":%b%b}' % (
        _head(kind, prefix, model),
        b",".join(choices),
        usage_json(prompts),
        b',"sampled":true' if any(item.sampled for item in read) else b"",
    )


def read_answer(call: Call, body: bytes) -> list[Item]:
    """Undo :func:`write_answer`. Raises ValueError when the body has another shape."""
    try:
        answer = _read_answer(body)
        prompts = answer.usage.by_prompt or [answer.usage]
        per_prompt = call.parameters.get("n", 1)
        if len(prompts) != len(call.inputs):
            raise ValueError(f"{len(prompts)} answers to {len(call.inputs)} prompts")
        if len(answer.choices) != per_prompt * len(prompts):
            raise ValueError(f"{len(answer.choices)} choices of {per_prompt * len(prompts)}")
        choices = [_unindexed(bytes(raw), index) for index, raw in enumerate(answer.choices)]
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    return [
        write_item(
            choices[place * per_prompt : (place + 1) * per_prompt],
            usage.prompt_tokens,
            usage.completion_tokens,
            sampled=answer.sampled,
        )
        for place, usage in enumerate(prompts)
    ]


def _unindexed(raw: bytes, index: int) -> bytes:
    if _read_index(raw).index != index:
        raise ValueError(f"choice {index} has index {_read_index(raw).index}")
    prefix = b'{"index":%d,' % index
    if raw.startswith(prefix):
        return b"{" + raw[len(prefix) :]
    members = _read_members(raw)
    del members["index"]
    return msgspec.json.encode(members)


def usage_json(prompts: Sequence[PromptUsage]) -> bytes:
    """The ``usage`` object of an answer to ``prompts``."""
    prompt = sum(usage.prompt_tokens for usage in prompts)
    completion = sum(usage.completion_tokens for usage in prompts)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if len(prompts) > 1:
        usage["by_prompt"] = prompts
    return msgspec.json.encode(usage)


def usage_of(items: Sequence[Item]) -> list[PromptUsage]:
    read = [_read_item(item.json) for item in items]
    return [PromptUsage(item.prompt_tokens, item.completion_tokens) for item in read]


def _head(kind: str, prefix: str, model: str) -> bytes:
    return b'"id":"%b-%b","object":"%b","created":%d,"model":%b' % (
        prefix.encode(),
        secrets.token_hex(12).encode(),
        kind.encode(),
        int(time.time()),
        msgspec.json.encode(model),
    )


# Server-sent events ------------------------------------------------------------------------------

DONE: Final = b"data: [DONE]\n\n"
ITEM_COMMENT: Final = b": item "
"""Begins the line in which a worker hands the gateway the canonical item of a stream."""


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % data


def item_event(item: Item) -> bytes:
    """The comment that carries ``item``; a reader that does not know it passes over it."""
    return ITEM_COMMENT + item.json + b"\n\n"


def error_event(error: ApiError, request_id: str) -> bytes:
    """The event that ends a stream which cannot be finished; nothing may follow it."""
    return event(render(error, path="/v1/", request_id=request_id).body)


class StreamWriter(ABC):
    """Writes the chunks of one stream; both codecs give it their own way to write a delta.

    Args:
        include_usage: the caller asked for it: every chunk then has a ``usage``, null but in the
            last. :meth:`usage` writes that last one either way, for the gateway.
    """

    def __init__(self, kind: str, prefix: str, model: str, *, include_usage: bool) -> None:
        self.include_usage = include_usage
        self._head = _head(kind, prefix, model)
        self._tail = b',"usage":null' if include_usage else b""

    def chunk(self, choices: bytes) -> bytes:
        return event(b'{%b,"choices":[%b]%b}' % (self._head, choices, self._tail))

    def usage(self, prompts: Sequence[PromptUsage]) -> bytes:
        return event(b'{%b,"choices":[],"usage":%b}' % (self._head, usage_json(prompts)))

    @abstractmethod
    def start(self, index: int) -> bytes:
        """What comes before the first delta of choice ``index``; may be nothing."""

    @abstractmethod
    def delta(self, delta: Delta) -> bytes:
        """The chunks of one delta; may be none."""

    @abstractmethod
    def whole(self, index: int, choice: bytes) -> bytes:
        """A choice as an item holds it, in as few chunks as clients can read it from."""


class GenerationCodec(CanonicalCodec, Protocol):
    """What the two routes' codecs can do beside the rest: write items and streams."""

    def item(
        self,
        choices: Sequence[Choice],
        prompt_tokens: int,
        completion_tokens: int,
        *,
        sampled: bool = False,
    ) -> Item:
        """The canonical item of one prompt's choices."""
        ...

    def writer(self, model: str, *, include_usage: bool) -> StreamWriter:
        """Writes the chunks of one stream."""
        ...

    def render_stream(self, call: Call, model: str, items: list[Item]) -> bytes:
        """The whole stream of answers that are there already, its end included."""
        ...


def write_replay(writer: StreamWriter, items: Sequence[Item]) -> bytes:
    """The whole stream of answers that are there already."""
    choices = (choice for item in items for choice in raw_choices(item))
    chunks = [writer.whole(index, choice) for index, choice in enumerate(choices)]
    usage = writer.usage(usage_of(items)) if writer.include_usage else b""
    return b"".join([*chunks, usage, DONE])
