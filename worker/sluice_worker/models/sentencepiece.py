"""SentencePiece models, read without SentencePiece: a ``.spm`` file to a fast tokenizer.

Marian and M2M100 ship their vocabularies in this form only. The file is a protocol buffer
(sentencepiece_model.proto); of it we read what encoding needs and hand that to the library that
tokenises everything else here. ``text_tokenizer`` maps the pieces to the model's own token ids.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from sluice_worker.models.errors import ModelRejected

SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
_NEVER_READ = (_UNKNOWN, _CONTROL, _UNUSED)


@dataclass(frozen=True, slots=True)
class PieceModel:
    """What a file says.

    Attributes:
        pieces: spelling, score and type of each, in the order of their ids.
        algorithm: 1 for unigram, 2 for byte pairs.
        charsmap: how characters are normalised, as a compiled table; may be empty.
        leading_space: texts begin as if a space stood before them.
        trims: spaces at both ends are dropped, and runs of them become one.
    """

    pieces: tuple[tuple[str, float, int], ...]
    algorithm: int = _UNIGRAM
    charsmap: bytes = b""
    leading_space: bool = True
    trims: bool = True
    byte_fallback: bool = False


def read_pieces(content: bytes, name: str) -> PieceModel:
    """Read a ``.spm`` file. Raises ModelRejected naming ``name``."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(content):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                trainer = {n: v for n, v in _fields(value) if isinstance(v, int)}
            elif number == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
    except (IndexError, ValueError, struct.error) as error:
        raise ModelRejected(
            f"{name} is no SentencePiece model ({error}). Fetch it again."
        ) from None
    algorithm = trainer.get(3, _UNIGRAM)
    if not pieces or algorithm not in (_UNIGRAM, _BPE):
        raise ModelRejected(
            f"{name} holds {len(pieces)} pieces and algorithm {algorithm}; served are unigram (1) "
            "and byte pair (2) models."
        )
    charsmap = normalizer.get(2, b"")
    return PieceModel(
        pieces=tuple(pieces),
        algorithm=algorithm,
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        leading_space=bool(normalizer.get(3, 1)),
        trims=bool(normalizer.get(4, 1)),
        byte_fallback=bool(trainer.get(35, 0)),
    )


def tokenizer_of(model: PieceModel) -> Tokenizer:
    """A tokenizer that splits texts as SentencePiece does; ids are places among the pieces.

    Texts are expected without white space at their ends.
    """
    unknown = next(
        (place for place, (_, _, kind) in enumerate(model.pieces) if kind == _UNKNOWN), None
    )
    if model.algorithm == _UNIGRAM:
        # A text may spell "</s>", but must not turn into it: U+FFFF stands in no text.
        scored = [
            (f"\uffff{place}" if kind in _NEVER_READ else piece, score)
            for place, (piece, score, kind) in enumerate(model.pieces)
        ]
        tokenizer = Tokenizer(Unigram(scored, unknown, model.byte_fallback))
    else:
        tokenizer = Tokenizer(_byte_pairs(model, unknown))
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.trims:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme="first" if model.leading_space else "never"
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece, normalized=False)
            for piece, _, kind in model.pieces
            if kind == _USER_DEFINED
        ]
    )
    return tokenizer


def _byte_pairs(model: PieceModel, unknown: int | None) -> BPE:
    """Merges are not in the file: every way to put a piece together from two, best piece first."""
    places = {piece: place for place, (piece, _, _) in enumerate(model.pieces)}
    merges: list[tuple[float, int, int, str, str]] = []
    for piece, score, _ in model.pieces:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in places and right in places:
                merges.append((-score, places[left], places[right], left, right))
    return BPE(
        vocab=places,
        merges=[(left, right) for *_, left, right in sorted(merges)],
        unk_token=None if unknown is None else model.pieces[unknown][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _piece(content: bytes) -> tuple[str, float, int]:
    spelling, score, kind = "", 0.0, 1
    for number, value in _fields(content):
        if number == 1 and isinstance(value, bytes):
            spelling = value.decode()
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return spelling, score, kind


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one message: its number, and a whole number or the bytes of anything else."""
    place = 0
    while place < len(content):
        tag, place = _whole(content, place)
        number, form = tag >> 3, tag & 7
        if form == 0:
            value, place = _whole(content, place)
            yield number, value
            continue
        if form == 2:
            length, place = _whole(content, place)
        elif form in (1, 5):
            length = 8 if form == 1 else 4
        else:
            raise ValueError(f"field {number} has form {form}")
        if place + length > len(content):
            raise ValueError("it ends too early")
        yield number, content[place : place + length]
        place += length


def _whole(content: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
