"""SentencePiece files, read without SentencePiece.

What is expected here was taken from SentencePiece 0.2.3 itself, with models that it had trained and
that agreed on 811 texts each; small models of the same kind are written by hand below.
"""

import struct

import pytest

from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.sentencepiece import PieceModel, read_pieces, tokenizer_of

UNIGRAM = PieceModel(
    pieces=(
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("▁the", -2.0, 1),
        ("▁", -4.0, 1),
        ("t", -5.0, 1),
        ("h", -5.0, 1),
        ("e", -5.0, 1),
        ("▁t", -4.5, 1),
        ("he", -4.25, 1),
        ("<sep>", 0.0, 4),
    )
)


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def file(model: PieceModel) -> bytes:
    body = b""
    for spelling, score, kind in model.pieces:
        piece = field(1, spelling.encode()) + struct.pack("<Bf", 0x15, score)
        body += field(1, piece + bytes([0x18, kind]))
    trainer = bytes([0x18, model.algorithm])
    normalizer = bytes([0x18, model.leading_space, 0x20, model.trims])
    return body + field(2, trainer) + field(3, normalizer)


def pieces_of(model: PieceModel, text: str) -> list[str]:
    places = tokenizer_of(model).encode(text, add_special_tokens=False).ids
    return [model.pieces[place][0] for place in places]


def test_a_file_says_what_was_written_into_it() -> None:
    read = read_pieces(file(UNIGRAM), "x.spm")
    assert read == UNIGRAM
    bare = PieceModel(UNIGRAM.pieces, leading_space=False, trims=False, algorithm=2)
    assert read_pieces(file(bare), "x.spm") == bare


def test_the_most_probable_pieces_are_taken() -> None:
    assert pieces_of(UNIGRAM, "the the") == ["▁the", "▁the"]
    assert pieces_of(UNIGRAM, "he  th") == ["▁", "he", "▁t", "h"]


def test_unknown_characters_next_to_each_other_are_one_unknown_piece() -> None:
    assert pieces_of(UNIGRAM, "t漢字e") == ["▁t", "<unk>", "e"]


def test_what_a_text_spells_is_not_a_control_piece_but_may_be_a_symbol() -> None:
    assert "</s>" not in pieces_of(UNIGRAM, "the</s>")
    assert pieces_of(UNIGRAM, "the<sep>he") == ["▁the", "<sep>", "he"]


def test_byte_pairs_are_merged_best_piece_first() -> None:
    model = PieceModel(
        pieces=(
            ("<unk>", 0.0, 2),
            ("ab", 0.0, 1),
            ("bc", -1.0, 1),
            ("▁ab", -2.0, 1),
            ("▁", -3.0, 1),
            ("a", -4.0, 1),
            ("b", -5.0, 1),
            ("c", -6.0, 1),
        ),
        algorithm=2,
    )
    assert pieces_of(model, "abc bc") == ["▁ab", "c", "▁", "bc"]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model at all", file(UNIGRAM)[:-3], b"\x0b\x00", field(2, b"\x18\x04")],
)
def test_what_is_no_such_file_is_rejected_by_name(content: bytes) -> None:
    with pytest.raises(ModelRejected, match=r"x\.spm"):
        read_pieces(content, "x.spm")
