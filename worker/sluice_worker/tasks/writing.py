"""What all tasks that write share: from defaults and parameters to rules, and back to text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sluice_api.errors import ApiError
from sluice_worker.cost import Average
from sluice_worker.engines.base import Array
from sluice_worker.engines.seq2seq.decoding import (
    Decoding,
    Generated,
    GenerationUnit,
    Sampling,
    generation_unit,
    read,
)
from sluice_worker.models.text_tokenizer import Frame, TextTokenizer
from sluice_worker.models.writer import Writer
from sluice_worker.tasks.sentences import TooManyWindows, windows

USUAL_TOKENS = 256
"""How much a model writes at most that does not say so itself."""
MAX_PIECES = 512
"""Pieces that one input may be read in."""
_CHARACTERS_PER_TOKEN = 16
"""Of a text that is looked at at all: real ones have about four."""


@dataclass(frozen=True, slots=True)
class WritingMaterial:
    """What a task that writes is built from.

    Attributes:
        max_tokens: of one reading, special tokens included.
    """

    writer: Writer
    tokenizer: TextTokenizer
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an input on its way through the model.

    Attributes:
        ids: what the model reads, special tokens included.
    """

    ids: tuple[int, ...]
    start: int
    end: int


def decoding_of(
    writer: Writer,
    parameters: Mapping[str, Any],
    *,
    variant: str = "",
    start: int | None = None,
    forced_first: int | None = None,
) -> Decoding:
    """The rules of a call.

    Args:
        parameters: canonical, of :class:`sluice_api.shapes.texts.WritingParameters`.
        variant: the name under which the configuration has further defaults.
        start, forced_first: replace the model's own, if not None.

    Raises:
        ApiError: a parameter that contradicts the model or another one.
    """
    given = {**writer.defaults, **writer.by_task.get(variant, {})}
    most = _most(given, parameters, writer)
    sampling = _sampling(parameters)
    beams = 1 if sampling else int(parameters.get("num_beams") or given.get("num_beams") or 1)
    if "length_penalty" in parameters and beams == 1:
        raise ApiError(
            "invalid_field",
            "parameters.length_penalty: only means something together with parameters.num_beams "
            "above 1.",
            param="parameters.length_penalty",
        )
    given = {**given, **{name: parameters[name] for name in _SAME_NAMES if name in parameters}}
    first = given.get("forced_bos_token_id") if forced_first is None else forced_first
    return Decoding(
        start=writer.start if start is None else start,
        ends=_tokens(given.get("eos_token_id")),
        most=most,
        least=_least(given, parameters, most),
        beams=beams,
        early_stopping=given.get("early_stopping") or False,
        length_penalty=float(given.get("length_penalty", 1.0)),
        repetition_penalty=float(given.get("repetition_penalty", 1.0)),
        no_repeat_ngram=int(given.get("no_repeat_ngram_size", 0)),
        encoder_repetition_penalty=float(given.get("encoder_repetition_penalty", 1.0)),
        encoder_no_repeat_ngram=int(given.get("encoder_no_repeat_ngram_size", 0)),
        forced_first=first,
        forced_last=_tokens(given.get("forced_eos_token_id")),
        never=tuple(tuple(words) for words in given.get("bad_words_ids") or ()),
        suppressed=_tokens(given.get("suppress_tokens")),
        suppressed_first=_tokens(given.get("begin_suppress_tokens")),
        renormalized=given.get("renormalize_logits") is True,
        sampling=sampling,
    )


_SAME_NAMES = ("length_penalty", "no_repeat_ngram_size", "repetition_penalty")


class Lengths:
    """How much is usually written for how much was read; from this, work is predicted."""

    def __init__(self, ratio: float) -> None:
        self._ratio = Average(ratio)

    def __repr__(self) -> str:
        return f"<Lengths {self._ratio.value:.2f} written per read token>"

    def unit(self, piece: Piece, decoding: Decoding) -> GenerationUnit:
        return generation_unit(piece.ids, decoding, round(len(piece.ids) * self._ratio.value) + 1)

    def learn(self, piece: Piece, written: Generated) -> None:
        self._ratio.add(len(written.ids) / len(piece.ids))


def framed(frame: Frame, prefix: str, text: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """A text as the model reads it."""
    return (*frame.before, *tokenizer.ids(prefix + text), *frame.behind)


def in_windows(
    text: str, prefix: str, room: int, stride: int, tokenizer: TextTokenizer, where: str
) -> list[Piece]:
    """A text as it is read at once, or else in windows of whole sentences. Raises ApiError.

    Args:
        stride: tokens that a window begins with again, at most.
        where: how the caller finds the text again.
    """
    check_characters(text, room, where)
    frame = tokenizer.frame
    whole = framed(frame, prefix, text, tokenizer)
    if len(whole) <= room + frame.size and text.strip():
        return [Piece(whole, 0, len(text))]
    try:
        spans = windows(text, room, stride, tokenizer, MAX_PIECES)
    except TooManyWindows:
        raise too_many_pieces(where) from None
    return [
        Piece(framed(frame, prefix, text[start:end], tokenizer), start, end) for start, end in spans
    ]


def room_for(text_limit: int, frame: Frame, prefix: str, tokenizer: TextTokenizer) -> int:
    """Tokens of text that one reading may have."""
    return max(1, text_limit - frame.size - (len(tokenizer.ids(prefix)) if prefix else 0))


def results(arrays: Sequence[Array]) -> list[Generated]:
    return [read(array) for array in arrays]


def finish_reason(written: Sequence[Generated], decoding: Decoding) -> Literal["stop", "length"]:
    """``stop``, or ``length`` if any piece was cut before it ended.

    An ending at the last possible place counts as cut where the model must end there.
    """

    def ended(part: Generated) -> bool:
        forced = decoding.forced_last and len(part.ids) >= decoding.most
        return bool(part.ids) and part.ids[-1] in decoding.ends and not forced

    return "stop" if all(map(ended, written)) else "length"


def check_characters(text: str, room: int, where: str) -> None:
    """Refuse at once what is longer than any text that can be read. Raises ApiError.

    Args:
        room: tokens of text that one reading may have.
    """
    most = MAX_PIECES * room * _CHARACTERS_PER_TOKEN
    if len(text) > most:
        raise ApiError(
            "input_too_long",
            f"{where}: got {len(text)} characters, at most {most} are taken. Split it over several "
            "requests.",
            param=where,
        )


def too_many_pieces(where: str) -> ApiError:
    """What a text of more than :data:`MAX_PIECES` is refused with."""
    return ApiError(
        "input_too_long",
        f"{where}: the text has more than {MAX_PIECES} pieces, which the model reads one by one. "
        "Split it over several requests.",
        param=where,
    )


def _most(given: Mapping[str, Any], parameters: Mapping[str, Any], writer: Writer) -> int:
    possible = writer.most
    if "max_tokens" in parameters:
        wanted = int(parameters["max_tokens"])
        if possible is not None and wanted > possible:
            raise ApiError(
                "invalid_field",
                f"parameters.max_tokens: got {wanted}, this model writes at most {possible}.",
                param="parameters.max_tokens",
            )
        return wanted
    if given.get("max_new_tokens"):
        most = int(given["max_new_tokens"])
    elif given.get("max_length"):
        most = int(given["max_length"]) - 1  # It counts the start.
    else:
        most = USUAL_TOKENS
    return max(1, min(most, possible or most))


def _least(given: Mapping[str, Any], parameters: Mapping[str, Any], most: int) -> int:
    if "min_tokens" in parameters:
        wanted = int(parameters["min_tokens"])
        if wanted > most:
            raise ApiError(
                "invalid_field",
                f"parameters.min_tokens: got {wanted}, but at most {most} are written "
                "(parameters.max_tokens).",
                param="parameters.min_tokens",
            )
        return wanted
    least = given.get("min_new_tokens") or int(given.get("min_length") or 1) - 1
    return min(max(0, int(least)), most)


def _sampling(parameters: Mapping[str, Any]) -> Sampling | None:
    """As the codec left them: none of these where nothing is drawn."""
    if not any(name in parameters for name in ("temperature", "top_p", "top_k", "seed")):
        return None
    return Sampling(
        temperature=float(parameters.get("temperature", 1.0)),
        top_k=int(parameters.get("top_k", 0)),
        top_p=float(parameters.get("top_p", 1.0)),
        seed=parameters.get("seed"),
    )


def _tokens(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (int(value),) if isinstance(value, int) else tuple(int(token) for token in value)
