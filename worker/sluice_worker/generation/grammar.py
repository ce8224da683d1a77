"""Answers that fit a JSON schema, by masks over the vocabulary from llguidance.

The library reads the schema once, in milliseconds (``compiler``), and tells before each token which
ones keep the text within it, in some 50 microseconds.
"""

import re
import threading
from functools import cache
from typing import Any, NamedTuple

import llguidance
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sluice_api.decode import shown
from sluice_api.errors import ApiError
from sluice_api.shapes.generation import JSON_OBJECT, Parameters
from sluice_api.wording import sentence

_ANY_OBJECT = '{"type":"object"}'
_ONE_SPACE: Any = {"whitespace_pattern": " ?"}
"""Models that have nothing to say write white space for ever, where a grammar lets them."""
_UNSUPPORTED = re.compile(r"(is|are) not supported$")
"""Ends what the library says of patterns that are good ones, but not for it."""


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

    def grammar(self, schema: "Schema") -> "SchemaGrammar":
        """A grammar of which each text takes a copy.

        Raises ApiError naming the field: the schema is none, is too large, or lets no text begin.
        """
        check_size(schema)
        matcher, reason = _matcher(schema, self.tokens, _ONE_SPACE)
        if matcher is None:
            raise _bad_schema(schema.where, reason, schema.text)
        made = SchemaGrammar(matcher, schema.where)
        made.check()
        return made

    def check(self, schema: "Schema") -> None:
        """Refuse what is no JSON schema, but not what only a grammar cannot honour.

        Needs no vocabulary, whose making takes seconds where it is large. Raises ApiError naming
        the field.
        """
        check_size(schema)
        matcher, reason = _matcher(schema, _bytes(), {**_ONE_SPACE, "lenient": True})
        if matcher is None and not _UNSUPPORTED.search(_told(reason)):
            raise _bad_schema(schema.where, reason, schema.text)


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


class Schema(NamedTuple):
    """A schema as JSON text, and the caller's field that it comes from."""

    text: str
    where: str


def tools_of(parameters: Parameters) -> list[Schema]:
    """The schema of each tool's arguments."""
    return [
        Schema(_json(_arguments(function)), f"tools[{place}].function.parameters")
        for place, function in enumerate(_functions(parameters))
    ]


def binds(parameters: Parameters) -> bool:
    """Whether the answer must fit a schema: see :func:`schema_of`."""
    calls = parameters.tools is not None and parameters.tool_choice not in ("auto", "none")
    return calls or parameters.json_schema is not None


def schema_of(parameters: Parameters) -> Schema:
    """The schema that an answer must fit. Needs one that :func:`binds`."""
    if parameters.json_schema is not None:
        schema = parameters.json_schema
        text = _ANY_OBJECT if schema == JSON_OBJECT else schema
        return Schema(text, "response_format.json_schema.schema")
    choice, functions = parameters.tool_choice, _functions(parameters)
    if choice.startswith("="):
        names = [function["name"] for function in functions]
        return tools_of(parameters)[names.index(choice[1:])]
    calls = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_call_schema(*numbered) for numbered in enumerate(functions)]},
    }
    if not parameters.parallel_tool_calls:
        calls["maxItems"] = 1
    return Schema(_json(calls), "tools" if len(functions) > 1 else "tools[0].function.parameters")


def check_size(schema: Schema) -> None:
    """Refuse what the library would follow for minutes, or until its stack is used up.

    It has limits of its own for most of what a schema can ask for, but none for these.
    Raises ApiError.
    """
    text, where = schema
    if len(text) > MOST_CHARACTERS:
        raise _too_large(where, f"a schema of {len(text)} characters", MOST_CHARACTERS)
    objects = patterns = 0
    below = [msgspec.json.decode(text)]
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


@cache
def _bytes() -> llguidance.LLTokenizer:
    """The smallest vocabulary that there is."""
    return llguidance.LLTokenizer("byte")


def _matcher(
    schema: Schema, tokens: llguidance.LLTokenizer, options: Any
) -> tuple[llguidance.LLMatcher | None, str]:
    """None, and the library's reason, where it cannot read ``schema``."""
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema.text, overrides=options)
        matcher = llguidance.LLMatcher(tokens, grammar, log_level=0)
    except ValueError as error:
        return None, str(error)
    return (None, matcher.get_error()) if matcher.is_error() else (matcher, "")


def _too_large(where: str, got: str, most: int) -> ApiError:
    return ApiError("invalid_field", f"{where}: got {got}, at most {most}.", param=where)


def _functions(parameters: Parameters) -> list[dict[str, Any]]:
    assert parameters.tools is not None, "else nothing asks for them"
    return [tool["function"] for tool in msgspec.json.decode(parameters.tools)]


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    return function.get("parameters") or {"type": "object"}


def _call_schema(place: int, function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "parameters": _as_resource(_arguments(function), f"urn:tool:{place}"),
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _as_resource(schema: dict[str, Any], identifier: str) -> dict[str, Any]:
    """``schema`` as a part of another one, in which its own references still mean itself."""
    if "$id" in schema:
        return schema
    resource = {"$id": identifier, **schema}
    if "draft-04" in str(schema.get("$schema")):
        del resource["$schema"]  # It has no such member.
    if "$ref" in schema and "allOf" not in schema:
        # Up to draft 7 nothing beside a reference counts, and the identifier would not.
        resource["allOf"] = [{"$ref": resource.pop("$ref")}]
    return resource


def _json(schema: object) -> str:
    return msgspec.json.encode(schema).decode()


def _told(reason: str) -> str:
    """Without what is for the library's authors, and in one line."""
    told = " ".join(reason.partition("\n<state>")[0].split())
    return "no text fits it" if told == "NoExtensionBias" else told


def _bad_schema(where: str, reason: str, schema: str | None = None) -> ApiError:
    got = "" if schema is None else f"got {shown(msgspec.Raw(schema.encode()))}, "
    return ApiError(
        "invalid_field",
        f"{where}: {got}no usable JSON schema: {sentence(_told(reason)[:200])}",
        param=where,
    )
