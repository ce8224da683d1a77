"""``POST /v1/completions``: OpenAI's shape for a text that goes on from a prompt.

A list of prompts has an item each; the choices of prompt ``i`` are numbered from ``i * n``. What a
choice and an item look like otherwise stands in ``generation``.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from sluice_api.call import Call, GivenInputs, Input, Item, inputs_of
from sluice_api.decode import decode
from sluice_api.shapes import generated, generation
from sluice_api.shapes.generated import (
    Choice,
    Delta,
    FinishReason,
    GenerationCodec,
    StreamWriter,
    TokenLogprob,
)
from sluice_api.shapes.generation import GenerationRequest
from sluice_api.tasks import Task

KIND = "text_completion"
PREFIX = "cmpl"
DEFAULT_MAX_TOKENS = 16
"""OpenAI's own."""


class CompletionRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    """`prompt` is a text, a list of texts, a list of token ids, or a list of such lists."""

    REFUSED: ClassVar = ("best_of", "echo", "suffix")
    """Known, but only taken with the value that asks for nothing; no message offers them."""

    prompt: GivenInputs
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=generation.MAX_ALTERNATIVES)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class TextScores(msgspec.Struct):
    """`logprobs` of a choice: four lists of one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    text: str
    finish_reason: FinishReason | None
    logprobs: TextScores | None = None


_TASK = Task.TEXT_GENERATION
"""Reading it off the class costs as much as a call."""

_decoder = msgspec.json.Decoder(CompletionRequest)
_read_choice = msgspec.json.Decoder(CompletionChoice).decode


class CompletionsCodec:
    name = "completions"
    field = "prompt"
    parameters: str | None = ""

    def parse(self, body: bytes) -> Call:
        request = decode(_decoder, body)
        _refuse_unsupported(request)
        parameters = generation.canonical(request)
        parameters.max_tokens = request.max_tokens or DEFAULT_MAX_TOKENS
        parameters.logprobs = request.logprobs
        inputs, listed = inputs_of(request.prompt, self.field)
        generation.check_choices(inputs, parameters)
        return Call(
            codec=self,
            model=request.model,
            task=_TASK,
            inputs=inputs,
            listed=listed,
            parameters=msgspec.to_builtins(parameters),
            sampled=generation.asks_for_sampling(parameters),
            stream=generation.stream_of(request),
        )

    def canonical_body(self, call: Call, inputs: list[Input]) -> bytes:
        """A plain body that asks for ``inputs`` alone, with the parameters of ``call``."""
        body = generation.shared_body(call)
        body["prompt"] = inputs
        if (logprobs := call.parameters.get("logprobs")) is not None:
            body["logprobs"] = logprobs
        return msgspec.json.encode(body)

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        return generated.write_answer(KIND, PREFIX, model, items)

    def extract(self, call: Call, body: bytes) -> list[Item]:
        return generated.read_answer(call, body)

    def item(
        self,
        choices: Sequence[Choice],
        prompt_tokens: int,
        completion_tokens: int,
        *,
        sampled: bool = False,
    ) -> Item:
        """The canonical item of one prompt's choices."""
        written = (
            msgspec.json.encode(
                CompletionChoice(
                    choice.text,
                    choice.finish_reason,
                    None if choice.logprobs is None else scores(choice.logprobs, 0),
                )
            )
            for choice in choices
        )
        return generated.write_item(written, prompt_tokens, completion_tokens, sampled=sampled)

    def writer(self, model: str, *, include_usage: bool) -> StreamWriter:
        """Writes the chunks of one stream."""
        return CompletionWriter(KIND, PREFIX, model, include_usage=include_usage)

    def render_stream(self, call: Call, model: str, items: list[Item]) -> bytes:
        """The whole stream of answers that are there already."""
        assert call.stream is not None
        writer = self.writer(model, include_usage=call.stream.include_usage)
        return generated.write_replay(writer, items)


class CompletionWriter(StreamWriter):
    """Keeps where each choice's text has got to, which is what `text_offset` counts from."""

    def __init__(self, kind: str, prefix: str, model: str, *, include_usage: bool) -> None:
        super().__init__(kind, prefix, model, include_usage=include_usage)
        self._written: dict[int, int] = {}

    def start(self, index: int) -> bytes:
        return b""

    def delta(self, delta: Delta) -> bytes:
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        offset = self._written.get(delta.index, 0)
        self._written[delta.index] = offset + len(delta.text)
        found = None if delta.logprobs is None else scores(delta.logprobs, offset)
        return self._part(delta.index, CompletionChoice(delta.text, delta.finish_reason, found))

    def whole(self, index: int, choice: bytes) -> bytes:
        return self._part(index, _read_choice(choice))

    def _part(self, index: int, choice: CompletionChoice) -> bytes:
        written = msgspec.json.encode(choice)
        return self.chunk(b'{"index":%d,%b' % (index, written[1:]))


def scores(tokens: Sequence[TokenLogprob], offset: int) -> TextScores:
    """The four lists; ``offset`` is where in the choice's text the first token begins."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.chosen.text)
    return TextScores(
        tokens=[token.chosen.text for token in tokens],
        token_logprobs=[token.chosen.logprob for token in tokens],
        top_logprobs=[{top.text: top.logprob for top in token.top} for token in tokens]
        if any(token.top for token in tokens)
        else None,
        text_offset=offsets,
    )


def _refuse_unsupported(request: CompletionRequest) -> None:
    """Members of OpenAI's that are only taken with the value that asks for nothing."""
    given: tuple[tuple[str, Any, Any], ...] = (
        ("best_of", request.best_of, request.n or 1),
        ("echo", request.echo, False),
        ("suffix", request.suffix, ""),
    )
    for name, value, nothing in given:
        if value is not None and value != nothing:
            raise generation.unsupported(name, value)


CODEC: GenerationCodec = CompletionsCodec()
