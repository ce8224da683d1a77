"""Answers that fit a JSON schema, by masks over the vocabulary from llguidance.

The library reads the schema once, in milliseconds (``compiler``), and tells before each token which
ones keep the text within it, in some 50 microseconds.
"""

import threading
from typing import Any

import llguidance
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sluice_api.errors import ApiError
from sluice_api.shapes.generation import JSON_OBJECT, Parameters

_ANY_OBJECT = '{"type":"object"}'
_ONE_SPACE: Any = {"whitespace_pattern": " ?"}
"""Models that have nothing to say write white space for ever, where a grammar lets them."""


MOST_CHARACTERS = 131_072
MOST_OBJECTS = 6_000
MOST_PATTERN_CHARACTERS = 1_000
MOST_PATTERN_PROPERTIES = 100
"""Of one schema: these take the library seconds at most, and each step of a text milliseconds."""


class Vocabulary:
    """The model's tokens as llguidance and log probabilities want them; made when first needed.

    Args:
        serialized: the content of ``tokenizer.json``.
        size: logits of the model, which may be more than there are tokens.
    """

    def __init__(self, serialized: str, size: int, stop_ids: frozenset[int]) -> None:
        self._serialized = serialized
        self.size = size
        self._stop_ids = sorted(stop_ids)
        self._made: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Vocabulary of {self.size}>"

    @property
    def tokens(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._made is None:
                self._made = llguidance.LLTokenizer(
                    self._serialized, n_vocab=self.size, eos_token=self._stop_ids
                )
            return self._made

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        return bytes(self.tokens.decode_bytes([token]))

    def grammar(self, schema: str, where: str) -> "SchemaGrammar":
        """A grammar of which each text takes a copy.

        Raises ApiError naming ``where``: the schema is none, is too large, or lets no text begin.
        """
        check_size(schema, where)
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_ONE_SPACE)
            matcher = llguidance.LLMatcher(self.tokens, grammar, log_level=0)
        except ValueError as error:
            raise _bad_schema(where, str(error)) from None
        if matcher.is_error():
            raise _bad_schema(where, matcher.get_error())
        made = SchemaGrammar(matcher, where)
        made.check()
        return made


class SchemaGrammar:
    """Implements :class:`sluice_worker.engines.decoder.sampling.Grammar`.

    The library has limits that some schemas only meet on the way, with what has been written: then
    every method raises an ApiError that names ``where`` the schema came from.
    """

    def __init__(self, matcher: llguidance.LLMatcher, where: str) -> None:
        self._matcher = matcher
        self._where = where

    def copy(self) -> "SchemaGrammar":
        """One that advances by itself; takes some 20 microseconds."""
        return SchemaGrammar(self._matcher.deep_copy(), self._where)

    def check(self) -> None:
        """Find out whether a text can begin at all."""
        self._allowed()

    def mask(self, row: Tensor) -> None:
        allowed = np.unpackbits(self._allowed(), bitorder="little")[: len(row)]
        row.masked_fill_(torch.from_numpy(allowed == 0).to(row.device), -torch.inf)

    def advance(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise _bad_schema(self._where, self._matcher.get_error())

    def _allowed(self) -> NDArray[np.uint8]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():  # Else it would be the end of the text.
            raise _bad_schema(self._where, self._matcher.get_error())
        return bits

    @property
    def ended(self) -> bool:
        return bool(self._matcher.is_stopped())


def schema_field(parameters: Parameters) -> str | None:
    """The caller's field with the schema that an answer must fit; None where there is none."""
    if parameters.json_schema is not None:
        return "response_format.json_schema.schema"
    if parameters.tools is None or parameters.tool_choice in ("auto", "none"):
        return None
    names = [tool["function"]["name"] for tool in msgspec.json.decode(parameters.tools)]
    choice = parameters.tool_choice
    if choice == "required" and len(names) > 1:  # One grammar of all of them.
        return "tools"
    place = names.index(choice[1:]) if choice.startswith("=") else 0
    return f"tools[{place}].function.parameters"


def schema_of(parameters: Parameters) -> str:
    """The schema that an answer must fit. Needs a :func:`schema_field`."""
    if parameters.json_schema is not None:
        schema = parameters.json_schema
        return _ANY_OBJECT if schema == JSON_OBJECT else schema
    assert parameters.tools is not None, "there is a schema_field"
    choice = parameters.tool_choice
    functions = [tool["function"] for tool in msgspec.json.decode(parameters.tools)]
    if choice.startswith("="):
        named = next(each for each in functions if each["name"] == choice[1:])
        return _json(named.get("parameters") or {"type": "object"})
    calls = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_call_schema(function) for function in functions]},
    }
    if not parameters.parallel_tool_calls:
        calls["maxItems"] = 1
    return _json(calls)


def check_size(schema: str, where: str) -> None:
    """Refuse what the library would follow for minutes, or until its stack is used up.

    It has limits of its own for most of what a schema can ask for, but none for these.
    Raises ApiError.
    """
    objects = patterns = 0
    below = [msgspec.json.decode(schema)] if len(schema) <= MOST_CHARACTERS else []
    if not below:
        raise _too_large(where, f"a schema of {len(schema)} characters", MOST_CHARACTERS)
    while below:
        entry = below.pop()
        if isinstance(entry, list):
            below += entry
        if not isinstance(entry, dict):
            continue
        objects += 1
        named = entry.get("patternProperties")
        written = [*named] if isinstance(named, dict) else []
        patterns += len(written)
        for pattern in (*written, entry.get("pattern")):
            if isinstance(pattern, str) and len(pattern) > MOST_PATTERN_CHARACTERS:
                got = f"a pattern of {len(pattern)} characters"
                raise _too_large(where, got, MOST_PATTERN_CHARACTERS)
        below += entry.values()
    if objects > MOST_OBJECTS:
        raise _too_large(where, f"a schema of {objects} objects", MOST_OBJECTS)
    if patterns > MOST_PATTERN_PROPERTIES:
        raise _too_large(where, f"{patterns} patternProperties", MOST_PATTERN_PROPERTIES)


def _too_large(where: str, got: str, most: int) -> ApiError:
    return ApiError(
        "invalid_field", f"{where}: got {got}, at most {most}. Make it simpler.", param=where
    )


def _call_schema(function: dict[str, object]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "parameters": function.get("parameters") or {"type": "object"},
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _json(schema: object) -> str:
    return msgspec.json.encode(schema).decode()


def _bad_schema(where: str, reason: str) -> ApiError:
    told = reason.partition("\n<state>")[0][:200]  # What follows is for the library's authors.
    return ApiError(
        "invalid_field",
        f"{where}: no usable JSON schema: {told}. Correct it, or make it simpler.",
        param=where,
    )
