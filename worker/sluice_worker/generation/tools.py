"""Tool calls inside generated text, in the spellings that models are trained on.

Which spelling a model uses is what its chat template shows. Text before a call streams on at once;
a call is handed over when it is complete. What looks like a call and is none stays text. Where the
text was cut inside a call, that call comes with the part of its arguments that is there.
"""

import json
import re
import secrets
from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

import msgspec

from sluice_api.shapes.generated import FunctionCall, ToolCall

_OBJECT = re.compile(
    r"(?:\[TOOL_CALLS\]|[\s\[\],;])*+(?P<name>[\w.-]*+)\s*+(?:\[ARGS\])?+\s*+(?=\{)"
)
"""What may stand before a JSON object: brackets of lists, and the bare name of a call."""
_NAME = re.compile(r'\{\s*+"name"\s*+:\s*+(?P<name>"(?:[^"\\]|\\.)*+")')
_ARGUMENTS = re.compile(r'\s*+,\s*+"(?:arguments|parameters)"\s*+:\s*+')
_OTHER_SPELLINGS = ("<function=", "<arg_key>")
"""Of models that put no JSON between Hermes' tags: Qwen3-Coder and its kin, GLM 4.5."""
_reader = json.JSONDecoder()  # Not msgspec's: this one tells where a value ends.


class Found(NamedTuple):
    """What a part of a text turned out to be: text to show, and calls."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolParser(Protocol):
    """Of one choice; fed the text as it comes."""

    def feed(self, text: str) -> Found: ...

    def finish(self, *, cut: bool = False) -> Found:
        """The text is over; ``cut`` where the model would have gone on."""
        ...


def parser_for(template: str, choice: str, offered: Collection[str] = ()) -> ToolParser | None:
    """The parser for a template's spelling; None where it shows none that is known.

    Args:
        offered: the names of the tools; bare JSON that names another is an answer and no call.
        choice: the canonical ``tool_choice``; ``required`` and a name are written as bare JSON,
            because a grammar sees to it.
    """
    if choice.startswith("="):
        return WholeText(named=choice[1:])
    if choice == "required":
        return WholeText()
    if any(spelling in template for spelling in _OTHER_SPELLINGS):
        return None
    if "<tool_call>" in template:
        return Tagged("<tool_call>", "</tool_call>")
    if "[TOOL_CALLS]" in template:
        return Tagged("[TOOL_CALLS]", None)
    if "<|python_tag|>" in template or '"parameters": dictionary' in template:
        return WholeText(marker="<|python_tag|>", offered=offered)
    return None


class Tagged:
    """Calls between tags (Hermes, Qwen), or from a tag to the end of the text (Mistral)."""

    def __init__(self, opening: str, closing: str | None) -> None:
        self._opening = opening
        self._closing = closing
        self._pending = ""
        self._inside = False
        self._after_call = False

    def feed(self, text: str) -> Found:
        self._pending += text
        shown, calls = "", list[ToolCall]()
        while True:
            if not self._inside:
                if self._after_call:  # The line break between two calls is nobody's text.
                    self._pending = self._pending.lstrip("\n")
                    self._after_call = not self._pending
                before, tag, after = self._pending.partition(self._opening)
                if not tag:
                    kept = partial_suffix(self._pending, self._opening)
                    shown += self._pending[: len(self._pending) - kept]
                    self._pending = self._pending[len(self._pending) - kept :]
                    return Found(shown, tuple(calls))
                shown += before
                self._pending, self._inside = after, True
            if self._closing is None or self._closing not in self._pending:
                return Found(shown, tuple(calls))
            inside, _, self._pending = self._pending.partition(self._closing)
            self._inside = False
            found = read_calls(inside)
            calls += found
            shown += "" if found else f"{self._opening}{inside}{self._closing}"
            self._after_call = bool(found)

    def finish(self, *, cut: bool = False) -> Found:
        if not self._inside:
            return Found(self._pending)
        calls = read_calls(self._pending, cut=cut)
        # The beginning of a call is nobody's text.
        return Found("" if calls or cut else self._opening + self._pending, tuple(calls))


class WholeText:
    """The whole text is one call or several as JSON, or else no call at all (Llama 3).

    Args:
        named: the text is the arguments of this function alone.
        marker: may stand before the JSON.
        offered: without the marker, a call is one of these.
    """

    def __init__(
        self,
        *,
        named: str | None = None,
        marker: str | None = None,
        offered: Collection[str] = (),
    ) -> None:
        self._named = named
        self._offered = offered
        self._marker = marker
        self._always = marker is None
        self._pending = ""
        self._is_text = False

    def feed(self, text: str) -> Found:
        if self._is_text:
            return Found(text)
        self._pending += text
        start = self._pending.lstrip()
        marker = self._marker or "{"
        may_be_call = start[:1] in ("", "{", "[") or start.startswith(marker[: len(start)])
        if self._always or may_be_call:
            return Found()
        self._is_text = True
        return Found(self._pending)

    def finish(self, *, cut: bool = False) -> Found:
        if self._is_text:
            return Found()
        text = self._pending.strip()
        if self._named is not None:
            return Found(calls=(_call(self._named, text),))
        bare = text.removeprefix(self._marker or "")
        calls = read_calls(bare, cut=cut)
        if self._always:
            return Found(calls=tuple(calls))
        if bare == text and not all(call.function.name in self._offered for call in calls):
            calls = []
        return Found("" if calls else self._pending, tuple(calls))


def read_calls(text: str, *, cut: bool = False) -> list[ToolCall]:
    """Every call in ``text``: JSON objects one after the other or in a list, or ``name{…}``.

    Args:
        cut: an object may lack its end; it is a call once its name is whole.
    """
    calls: list[ToolCall] = []
    end = 0
    while found := _OBJECT.match(text, end):
        try:
            value, end = _reader.raw_decode(text, found.end())
        except ValueError:
            return calls + (_cut_call(found["name"], text[found.end() :]) if cut else [])
        if found["name"]:
            calls.append(_call(found["name"], value))
        elif isinstance(value.get("name"), str):
            arguments = value.get("arguments", value.get("parameters", {}))
            calls.append(_call(value["name"], arguments))
        else:
            return []
    return calls


def _cut_call(name: str, text: str) -> list[ToolCall]:
    """The call that ``text`` is the beginning of; none where its name is not there yet."""
    if name:
        return [_call(name, text)]
    found = _NAME.match(text)
    if found is None:
        return []
    arguments = _ARGUMENTS.match(text, found.end())
    return [_call(json.loads(found["name"]), text[arguments.end() :] if arguments else "")]


def _call(name: str, arguments: Any) -> ToolCall:
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return ToolCall(secrets.token_hex(5)[:9], FunctionCall(name, arguments))


def partial_suffix(text: str, *wanted: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``wanted``."""
    return max(
        (
            size
            for each in wanted
            for size in range(1, min(len(each) - 1, len(text)) + 1)
            if text.endswith(each[:size])
        ),
        default=0,
    )
