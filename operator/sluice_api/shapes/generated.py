"""What the two OpenAI routes of generated text share of an answer: items and server-sent events.

``completions`` and ``chat`` are its two codecs; ``generation`` has what they share of a request. A
canonical item holds every choice of one prompt, each as the plain route writes it without its
``index``::

    {"choices": [{…}, …], "prompt_tokens": 9, "completion_tokens": 16, "sampled": true?,
     "tokens": 25}

``sampled`` is there when another call could get another answer; such an item is never stored.
Callers may not know beforehand: without a temperature the model's own defaults decide.
"""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from sluice_api.call import Call, CanonicalCodec, Item
from sluice_api.errors import ApiError, render

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
