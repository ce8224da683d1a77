"""What a caller writes is text, also where it spells one of the model's special tokens.

A chat template puts markers of its own between the messages, and the tokenizer reads those out of
the finished text; it would as well read one that stands inside a message, and who wrote the message
could so speak as somebody else. So before rendering a mark is set behind the first character of
every such spelling, and afterwards the text is cut at the marks: each part is tokenised by itself,
and no part holds the whole of one. Conversations without one are untouched.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

_BARS: Final = re.compile(r"<[|｜].+[|｜]>")
"""Some tokenizers have markers of the template among their tokens and do not call them special."""
_PRIVATE: Final = range(0xF0000, 0xFFFFE)
"""Characters that mean nothing."""


class Quoting:
    """Of one model.

    Args:
        tokens: the spellings of its added tokens, and whether it calls each special.
    """

    def __init__(self, tokens: Iterable[tuple[str, bool]]) -> None:
        markers = {text for text, special in tokens if special or _BARS.fullmatch(text)}
        # A single character cannot be cut.
        longest_first = sorted((text for text in markers if len(text) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._none = not longest_first

    def __repr__(self) -> str:
        return f"<Quoting {self._pattern.pattern[:80]}>"

    def marked(
        self, messages: list[dict[str, Any]], tools: Any, variables: Mapping[str, Any]
    ) -> tuple[Any, Any, dict[str, Any], str]:
        """All three, decoded JSON, with special tokens marked, and the mark.

        Only a message's own ``role`` and the names of variables are left alone: the one is one of
        a few words, and templates ask for both.
        """
        written = msgspec.json.encode([messages, tools, variables]).decode()
        mark = next(chr(code) for code in _PRIVATE if chr(code) not in written)
        if self._none:
            return messages, tools, dict(variables), mark
        told = [{**self._walk(message, mark), "role": message["role"]} for message in messages]
        values = {name: self._walk(value, mark) for name, value in variables.items()}
        return told, self._walk(tools, mark), values, mark

    def _walk(self, value: Any, mark: str) -> Any:
        match value:
            case str():
                return self._pattern.sub(lambda found: found[0][0] + mark + found[0][1:], value)
            case list():
                return [self._walk(each, mark) for each in value]
            case dict():
                return {
                    self._walk(name, mark): self._walk(each, mark) for name, each in value.items()
                }
            case _:
                return value
