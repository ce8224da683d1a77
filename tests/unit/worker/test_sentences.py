"""Sentences and windows: where texts are cut, and that nothing of them is lost."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_worker.tasks.sentences import TooManyWindows, cut, sentences, windows
from sluice_worker.tasks.translation import joined


class Letters:
    """Every character that is no space is a token."""

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(ord(letter) for letter in text if not letter.isspace())

    def ends(self, text: str) -> list[int]:
        return [place + 1 for place, letter in enumerate(text) if not letter.isspace()]


LETTERS = Letters()
TEXTS = st.text(st.sampled_from("ab.!?。 \n\tÄ…3,”"), max_size=60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met J. R. Tolkien. He left.", ["Dr. Smith met J. R. Tolkien.", "He left."]),
        ("Das gilt z.B. Hier. Und so.", ["Das gilt z.B. Hier.", "Und so."]),
        ("It costs 3.50 dollars. Good.", ["It costs 3.50 dollars.", "Good."]),
        ("See www.example.com. or not", ["See www.example.com. or not"]),
        ("It rains today. we stay.", ["It rains today.", "we stay."]),
        ("Is it late? we must go!", ["Is it late?", "we must go!"]),
        ('"Is it late?" he asked.', ['"Is it late?" he asked.']),
        ("He went to the Univ. of Bern.", ["He went to the Univ. of Bern."]),
        ("Take a qty. of it. Go.", ["Take a qty. of it.", "Go."]),
        ("no capitals at all . none", ["no capitals at all .", "none"]),
        ("see dr. no, e.g. today. or not", ["see dr. no, e.g. today.", "or not"]),
        ('He said "No." Then he went.', ['He said "No."', "Then he went."]),
        ("今日は。明日も。", ["今日は。", "明日も。"]),
        ("क्या हाल है। ठीक है।", ["क्या हाल है।", "ठीक है।"]),
        ("آپ کیسے ہیں؟ میں ٹھیک ہوں۔ شکریہ۔", ["آپ کیسے ہیں؟", "میں ٹھیک ہوں۔", "شکریہ۔"]),  # Urdu
        ("နေကောင်းလား။ ကောင်းပါတယ်။", ["နေကောင်းလား။", "ကောင်းပါတယ်။"]),  # Burmese
        ("ሰላም ነው። ደህና ነኝ።", ["ሰላም ነው።", "ደህና ነኝ።"]),  # Amharic
        ("Բարև։ Ինչպես ես։", ["Բարև։", "Ինչպես ես։"]),  # Armenian
        ("សួស្តី។ អរគុណ។", ["សួស្តី។", "អរគុណ។"]),  # Khmer
        ("ｷｮｳﾊ｡ｱｽﾓ｡", ["ｷｮｳﾊ｡", "ｱｽﾓ｡"]),
        ("a line\nanother line\r\n\r\nlast", ["a line", "another line", "last"]),
        ("Wait... What?!  Yes", ["Wait...", "What?!", "Yes"]),
        (" \n\t ", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


@given(TEXTS)
def test_between_sentences_stands_white_space_only(text: str) -> None:
    spans = sentences(text)
    assert all(start < end for start, end in spans)
    edges = [0, *itertools.chain.from_iterable(spans), len(text)]
    assert edges == sorted(edges)
    gaps = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    assert "".join(gaps).strip() == ""
    echoed = joined(text, spans, [text[start:end] for start, end in spans])
    assert "".join(echoed.split()) == "".join(text.split())


@given(TEXTS, st.integers(1, 9))
def test_pieces_fit_and_hold_everything(text: str, room: int) -> None:
    pieces = [piece for span in sentences(text) for piece in cut(text, span, room, LETTERS)]
    assert all(len(LETTERS.ids(text[start:end])) <= room for start, end in pieces)
    kept = "".join("".join(text[start:end].split()) for start, end in pieces)
    assert kept == "".join(text.split())


def test_a_long_sentence_is_cut_between_words_where_it_can_be() -> None:
    text = "aaa bbb cccccccccc dd"
    pieces = list(cut(text, (0, len(text)), 6, LETTERS))
    assert [text[start:end] for start, end in pieces] == ["aaa bbb", "cccccc", "cccc dd"]


@given(TEXTS, st.integers(4, 12), st.integers(0, 6))
def test_windows_fit_hold_everything_and_move_on(text: str, room: int, stride: int) -> None:
    spans = windows(text, room, stride, LETTERS)
    assert all(len(LETTERS.ids(text[start:end])) <= room for start, end in spans)
    assert all(one[1] < other[1] for one, other in itertools.pairwise(spans))
    covered = {place for start, end in spans for place in range(start, end)}
    missing = "".join(letter for place, letter in enumerate(text) if place not in covered)
    assert missing.strip() == ""
    for one, other in itertools.pairwise(spans):
        assert len(LETTERS.ids(text[other[0] : one[1]])) <= max(stride, 0)
    assert windows(text, room, stride, LETTERS, len(spans)) == spans
    if spans:
        with pytest.raises(TooManyWindows):
            windows(text, room, stride, LETTERS, len(spans) - 1)


class Counted(Letters):
    """Counts the characters that it is shown."""

    def __init__(self) -> None:
        self.shown = 0

    def ids(self, text: str) -> tuple[int, ...]:
        self.shown += len(text)
        return super().ids(text)

    def ends(self, text: str) -> list[int]:
        self.shown += len(text)
        return super().ends(text)


def test_the_rest_of_a_text_of_too_many_windows_is_not_looked_at() -> None:
    counted = Counted()
    with pytest.raises(TooManyWindows):
        windows("Aaa. " * 10_000, 12, 0, counted, 10)
    assert counted.shown < 10 * 12 * 5


def test_a_sentence_that_fits_is_tokenised_once() -> None:
    counted, text = Counted(), "Ab cd. " * 100
    spans = sentences(text)
    assert [piece for span in spans for piece in cut(text, span, 10, counted)] == spans
    alone = 100 * len("Ab cd.")
    assert counted.shown == alone
    counted.shown = 0
    assert len(windows(text, 10, 0, counted)) == 50
    assert counted.shown == alone + 50 * len("Ab cd. Ab cd.")  # whether those fit together


def test_windows_begin_again_with_whole_sentences() -> None:
    text = "Aaa. Bbb. Ccc. Ddd. Eee."
    spans = windows(text, 12, 4, LETTERS)
    assert [text[start:end] for start, end in spans] == ["Aaa. Bbb. Ccc.", "Ccc. Ddd. Eee."]
    apart = windows(text, 12, 0, LETTERS)
    assert [text[start:end] for start, end in apart] == ["Aaa. Bbb. Ccc.", "Ddd. Eee."]


def test_white_space_around_translations_is_that_around_the_originals() -> None:
    text = "  One.\n\n- Two.  Three. "
    spans = sentences(text)
    assert joined(text, spans, ["Eins.", "- Zwei.", "Drei."]) == "  Eins.\n\n- Zwei.  Drei. "
    chinese = "你好。再见。"
    assert joined(chinese, sentences(chinese), ["Hello.", "Bye."]) == "Hello. Bye."
    assert joined(chinese, sentences(chinese), ["今日は。", "では。"]) == "今日は。では。"


class Copied(str):
    """A text that counts the characters that are copied out of it."""

    copied = 0

    def __getitem__(self, place: Any) -> str:
        part = str.__getitem__(self, place)
        self.copied += len(part)
        return part


@pytest.mark.parametrize("sentence", ["once . ", "Is it? ", "Dr. No said i.e. so ! "])
def test_a_long_text_is_not_copied_for_each_of_its_sentences(sentence: str) -> None:
    text = Copied(sentence * 1000)
    assert len(sentences(text)) >= 1000
    assert text.copied <= 3 * len(text)
