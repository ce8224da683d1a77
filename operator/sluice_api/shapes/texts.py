"""``POST /v1/translate`` and ``POST /v1/summarize``: a text in, another text out.

Canonical item::

    {"text": "…", "finish_reason": "stop", "source": "en", "target": "fr", "chunks": 3,
     "truncated": true, "prompt_tokens": 9, "completion_tokens": 7, "tokens": 16}

``source`` and ``target`` are there where the model knows several languages, ``chunks`` where a text
was written in more than one piece, ``truncated`` where its end was left out at the caller's wish.
``finish_reason`` is ``length`` when ``max_tokens`` (of one piece) cut what was written.
"""

from typing import Annotated, Any, Literal

import msgspec

from sluice_api.call import (
    Call,
    CanonicalCodec,
    Input,
    Item,
    inputs_of,
    join_items,
    split_items,
    write_body,
)
from sluice_api.decode import decode
from sluice_api.errors import ApiError
from sluice_api.shapes.generation import Repetition, Temperature, settled_temperature
from sluice_api.tasks import Task

MAX_NEW_TOKENS = 4096
MAX_BEAMS = 16
DRAWING = ("top_p", "top_k", "seed")
"""Parameters that only mean something where tokens are drawn."""

Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_NEW_TOKENS)]
Language = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]


class WritingParameters(msgspec.Struct, forbid_unknown_fields=True):
    """How the text is written. What is left out is the model's own default.

    The most probable text is written, with beams where the model's defaults ask for them. A
    ``temperature`` of 0.00001 or more, ``top_p``, ``top_k`` or ``seed`` have tokens drawn by chance
    instead.
    """

    max_tokens: Tokens | None = None
    num_beams: Annotated[int, msgspec.Meta(ge=1, le=MAX_BEAMS)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    repetition_penalty: Repetition | None = None
    length_penalty: Annotated[float, msgspec.Meta(ge=-10, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, msgspec.Meta(ge=0, le=64)] | None = None


class TranslateParameters(WritingParameters, forbid_unknown_fields=True):
    """``source`` and ``target`` are languages as the model names them."""

    source: Language | None = None
    target: Language | None = None


class SummarizeParameters(WritingParameters, forbid_unknown_fields=True):
    """``stride`` is how much of one piece of a long text is read again with the next, in tokens.

    With ``truncate`` a text that is too long for the model is not read in pieces: only its
    beginning is.
    """

    min_tokens: Tokens | None = None
    stride: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    truncate: bool = False


class TranslateRequest(msgspec.Struct, forbid_unknown_fields=True):
    input: str | list[str]
    model: str | None = None
    parameters: TranslateParameters | None = None


class SummarizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    input: str | list[str]
    model: str | None = None
    parameters: SummarizeParameters | None = None


class WrittenItem(msgspec.Struct, omit_defaults=True):
    """A canonical item; written in the order of its members."""

    text: str
    finish_reason: Literal["stop", "length"]
    source: str | None = None
    target: str | None = None
    chunks: int = 1
    truncated: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Counted(msgspec.Struct):
    completion_tokens: int = 0
    """A worker that is not ours may count what it read and wrote together."""


_read_counts = msgspec.json.Decoder(_Counted).decode


class TextsCodec:
    """Both routes: they differ in their task and in the parameters they take."""

    field = "input"
    parameters: str | None = "parameters."

    def __init__(
        self,
        name: str,
        task: Task,
        request: type[TranslateRequest] | type[SummarizeRequest],
        parameters: type[WritingParameters],
    ) -> None:
        self.name = name
        self._task = task
        self._decoder = msgspec.json.Decoder(request)
        self._defaults = parameters()

    def parse(self, body: bytes) -> Call:
        request = decode(self._decoder, body)
        inputs, listed = inputs_of(request.input, self.field)
        parameters, sampled = canonical(request.parameters or self._defaults)
        return Call(
            codec=self,
            model=request.model,
            task=self._task,
            inputs=inputs,
            listed=listed,
            parameters=parameters,
            sampled=sampled,
        )

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        data, tokens = join_items(items)
        completion = sum(_read_counts(item.json).completion_tokens for item in items)
        return (
            b'{"object":"list","model":%b,"data":[%b],'
            b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}'
            % (msgspec.json.encode(model), data, tokens - completion, completion, tokens)
        )

    def extract(self, call: Call, body: bytes) -> list[Item]:
        return split_items(body, len(call.inputs))

    def canonical_body(self, call: Call, inputs: list[Input]) -> bytes:
        return write_body(call, inputs, call.parameters)


def canonical(given: WritingParameters) -> tuple[dict[str, Any], bool]:
    """What was given, and whether tokens are drawn. Raises :class:`ApiError`."""
    parameters = {
        name: value
        for name, value in msgspec.structs.asdict(given).items()
        if value is not None and value is not False
    }
    if parameters.get("stride") == 0:
        del parameters["stride"]
    drawn = [name for name in DRAWING if name in parameters]
    temperature = settled_temperature(given.temperature)
    sampled = temperature > 0 if temperature is not None else bool(drawn)
    if sampled and (given.num_beams or 1) > 1:
        raise ApiError(
            "invalid_field",
            f"parameters.num_beams: got {given.num_beams} together with "
            f"parameters.{'temperature' if temperature else drawn[0]}. Beams look for the "
            "most probable text, so nothing is drawn: leave one of them out.",
            param="parameters.num_beams",
        )
    if not sampled:  # The most probable text depends on none of these.
        for name in ("temperature", *DRAWING):
            parameters.pop(name, None)
    return parameters, sampled


def item(written: WrittenItem) -> Item:
    """The canonical item of one text."""
    tokens = written.prompt_tokens + written.completion_tokens
    members = msgspec.structs.asdict(written)
    kept = {
        name: value
        for name, value in members.items()
        if value is not None and value is not False and (name != "chunks" or value > 1)
    }
    return Item(msgspec.json.encode({**kept, "tokens": tokens}), tokens)


TRANSLATE: CanonicalCodec = TextsCodec(
    "translate", Task.TRANSLATION, TranslateRequest, TranslateParameters
)
SUMMARIZE: CanonicalCodec = TextsCodec(
    "summarize", Task.SUMMARIZATION, SummarizeRequest, SummarizeParameters
)
