"""Texts cut into sentences, and into windows that a model can read; nothing of a text is lost.

Spans are characters of the text, half-open; between two spans of one text stands white space only.
Pure: how many tokens a piece has is asked of the caller's tokenizer.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

Span = tuple[int, int]

_LINE = re.compile(r"[^\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。｡！？؟۔।॥։።။។]+[」』”’»)\]]*")
"""A mark that also does other things needs a space after it; those of scripts that have their own
full stop do not (Chinese, Japanese, Urdu, Hindi, Armenian, Amharic, Burmese, Khmer)."""
_WORD = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*\Z")
_ABBREVIATION = re.compile(
    "abbr|adj|adm|al|approx|art|assn|assoc|bd|bzw|ca|capt|cf|chap|cie|co|col|comm|corp|dept|dipl|dist|dr|ed|eds|esp|est"
    "|evtl|excl|fig|figs|gal|gen|ggf|hr|inc|incl|ing|inst|jr|ltd|max|min|mio|mme|mr|mrs|ms|mt|nr|num"
    "|prof|proz|rd|ref|resp|rev|sen|sgt|sr|st|str|tech|tel|univ|usw|vgl|vol|vs"
    r"|[^\W\d_](\.[^\W\d_])*",
    re.IGNORECASE,
)
"""What seldom ends a sentence with its dot: initials, and words of languages much translated."""
_NEXT = re.compile(r"\s*(\S?)")
_LONGER_THAN_ABBREVIATIONS = 4
"""Letters; those that are as long stand above."""


class Counts(Protocol):
    """What a tokenizer tells of a piece of text."""

    def ids(self, text: str) -> tuple[int, ...]: ...

    def ends(self, text: str) -> list[int]: ...


def sentences(text: str) -> list[Span]:
    """The sentences of ``text``, without the white space around them. A line break ends one."""
    found: list[Span] = []
    cased = any(map(str.isupper, text))
    for line in _LINE.finditer(text):
        start = line.start()
        for end in _sentence_ends(text, line.start(), line.end(), cased):
            found += trimmed(text, start, end)
            start = end
    return found


def trimmed(text: str, start: int, end: int) -> list[Span]:
    """The span without white space at its ends; none if nothing is left."""
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    right = len(piece.rstrip())
    return [(start + left, start + right)] if right > left else []


def cut(text: str, span: Span, room: int, tokens: Counts) -> Iterator[Span]:
    """``span`` in pieces of at most ``room`` tokens: between words, and inside them if it must be.

    A character that alone has more tokens than ``room`` is a piece of its own.
    """
    start, stop = span
    ends = [start + end for end in tokens.ends(text[start:stop])]
    if len(ends) <= room:  # Most sentences: to tokenise them is what takes time.
        yield from trimmed(text, start, stop)
        return
    while start < stop:
        done = bisect_right(ends, start)
        end = stop
        if len(ends) - done > room:
            end = _boundary(text, start, ends[done + room - 1])
        while end - start > 1 and len(tokens.ids(text[start:end])) > room:
            end = _boundary(text, start, start + (end - start) // 2)
        yield from trimmed(text, start, end)
        start = end


class TooManyWindows(ValueError):
    """A text would be read in more windows than are allowed."""


def windows(
    text: str, room: int, stride: int, tokens: Counts, most: int | None = None
) -> list[Span]:
    """As few spans as can be, each of whole sentences and at most ``room`` tokens, that cover all.

    Args:
        stride: tokens of one window, in whole sentences, that the next one begins with again.
        most: so many windows are allowed.

    Raises:
        TooManyWindows: there are more. The rest of the text is not looked at then.
    """
    pieces: list[Span] = []
    sizes: list[int] = []
    left = math.inf if most is None else most * room
    for piece, size in _pieces(text, room, tokens):
        pieces.append(piece)
        sizes.append(size)
        left -= min(size, room)
        if left < 0:
            raise TooManyWindows
    found: list[Span] = []
    first, before = 0, -1
    while before < len(pieces) - 1:
        last = _fill(sizes, first, room)
        while last > first and len(tokens.ids(text[pieces[first][0] : pieces[last][1]])) > room:
            last -= 1
        if last <= before:  # What is read again leaves no room for anything new.
            first = before + 1
            continue
        if len(found) == most:
            raise TooManyWindows
        found.append((pieces[first][0], pieces[last][1]))
        first, before = _step_back(sizes, first, last, stride), last
    return found


def _pieces(text: str, room: int, tokens: Counts) -> Iterator[tuple[Span, int]]:
    """The sentences of ``text``, long ones cut, each with its tokens."""
    for start, end in sentences(text):
        size = len(tokens.ids(text[start:end]))
        if size <= room:
            yield (start, end), size
            continue
        for first, last in cut(text, (start, end), room, tokens):
            yield (first, last), len(tokens.ids(text[first:last]))


def _sentence_ends(text: str, start: int, stop: int, cased: bool) -> Iterator[int]:
    for match in _END.finditer(text, start, stop):
        if not _goes_on(text, match.start(), match.end(), cased):
            yield match.end()
    yield stop


def _goes_on(text: str, dot: int, end: int, cased: bool) -> bool:
    """The mark at ``dot`` does not end a sentence: an abbreviation, or a small letter follows.

    In a text without capitals (not ``cased``) a small letter says nothing, and not everybody who
    writes some begins each sentence with one: after a word that is too long to be short for
    another, or after a bare ``?`` or ``!``, it says nothing either.
    """
    next_letter = _NEXT.match(text, end)  # In place: the rest of a text may be all of it.
    following = next_letter[1] if next_letter is not None else ""
    mark = text[dot:end]
    word = _WORD.search(text, max(0, dot - 16), dot)
    if mark == "." and word is not None and _ABBREVIATION.fullmatch(word[0]):
        return True
    if not cased or not following.islower():
        return False
    if mark == ".":
        # A dot inside makes it an address or the like, which says as little.
        return word is None or "." in word[0] or len(word[0]) < _LONGER_THAN_ABBREVIATIONS
    return mark not in ("?", "!")


def _boundary(text: str, start: int, limit: int) -> int:
    """The last place up to ``limit`` between two words, or ``limit``; always after ``start``."""
    for place in range(min(limit, len(text) - 1), start, -1):
        if text[place - 1].isspace() or text[place].isspace():
            return place
    return max(limit, start + 1)


def _fill(sizes: Sequence[int], first: int, room: int) -> int:
    """The last piece of the window that begins with ``first``."""
    used, last = sizes[first], first
    while last + 1 < len(sizes) and used + sizes[last + 1] <= room:
        last += 1
        used += sizes[last]
    return last


def _step_back(sizes: Sequence[int], first: int, last: int, stride: int) -> int:
    """Where the next window begins: after ``last``, or before it by at most ``stride`` tokens."""
    begin, repeated = last + 1, 0
    while begin - 1 > first and repeated + sizes[begin - 1] <= stride:
        begin -= 1
        repeated += sizes[begin]
    return begin
