"""The kinds of value a field of the resource can hold.

One object a kind knows three things: how to read a value (and what to say when it does not fit),
how to write it back, and its structural OpenAPI schema. The models annotate their fields with
these objects; pydantic calls them to validate, the CRD generator to describe. So a message in
``sluice up``, a message of the API server and the reference page cannot disagree.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from sluice_api.quantities import DURATION_PATTERN, format_duration, parse_duration
from sluice_api.spec_errors import Refused

AUTO: Final = "auto"
"""How a field says "choose for me"; None in Python."""


class Kind(ABC):
    """A kind of value. Instances stand in ``Annotated`` beside the Python type they yield."""

    @abstractmethod
    def parse(self, value: object) -> Any:
        """``value`` as read from YAML or JSON → the Python value. Raises :class:`Refused`."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The structural schema of the value: type, bounds, rules."""

    def dump(self, value: Any) -> Any:
        """The Python value → what stands in the resource."""
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(self.dump)
        )


class Text(Kind):
    """A string, perhaps of a given form.

    Args:
        max_length: in characters.
        pattern: a regular expression that RE2 and Python read alike, anchored at both ends.
        form: what the pattern means, in words that follow "allowed".
    """

    def __init__(self, max_length: int, *, pattern: str = "", form: str = "") -> None:
        self.max_length = max_length
        self.pattern = pattern
        self.form = form or f"text of at most {max_length} characters"
        self._match = re.compile(pattern, re.ASCII).fullmatch if pattern else None

    def parse(self, value: object) -> str:
        if not isinstance(value, str):
            fix = "" if isinstance(value, list | dict) else "Put the value in quotes."
            raise Refused(value, self.form, fix)
        if len(value) > self.max_length:
            raise Refused(value, f"at most {self.max_length} characters", f"It has {len(value)}.")
        if self._match and not self._match(value):
            raise Refused(value, self.form)
        return value

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string", "maxLength": self.max_length}
        if self.pattern:
            # A rule instead of `pattern`, because a rule can say what is allowed in words.
            schema["x-kubernetes-validations"] = [
                {
                    "rule": _matches(self.pattern),
                    "messageExpression": "'got ' + (self == '' ? 'an empty text' : self)"
                    f" + ', allowed {self.form}.'",
                }
            ]
        return schema


def _matches(pattern: str) -> str:
    """The rule that a text is of a form."""
    quoted = pattern.replace("\\", "\\\\").replace("'", "\\'")
    return f"self.matches('{quoted}')"


class Whole(Kind):
    """A whole number between two bounds, both allowed. With ``auto``, or the word auto (None)."""

    def __init__(self, minimum: int, maximum: int, *, auto: bool = False) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self.auto = auto

    @property
    def form(self) -> str:
        return f"{self.minimum} to {self.maximum}{' or auto' if self.auto else ''}"

    def parse(self, value: object) -> int | None:
        if self.auto and value == AUTO:
            return None
        if isinstance(value, str) and value.strip().isdecimal():
            raise Refused(value, f"a whole number, {self.form}", "Write it without quotes.")
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(value, f"a whole number, {self.form}")
        if not self.minimum <= value <= self.maximum:
            raise Refused(value, self.form)
        return value

    def dump(self, value: int | None) -> int | str:
        return AUTO if value is None else value

    def schema(self) -> dict[str, Any]:
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        if not self.auto:
            return {"type": "integer", "format": "int32", **bounds}
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": len(AUTO),
            "pattern": f"^{AUTO}$",
            **bounds,
        }


_SPELLING: Final = "Write it like 500ms, 90s, 1m30s or 2h."


class Duration(Kind):
    """A duration as a string; seconds as a float in Python. With ``auto``, or auto (None)."""

    def __init__(self, minimum: str, maximum: str, *, auto: bool = False) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self.auto = auto
        self._bounds = (parse_duration(minimum), parse_duration(maximum))

    @property
    def form(self) -> str:
        return f"{self.minimum} to {self.maximum}{' or auto' if self.auto else ''}"

    def parse(self, value: object) -> float | None:
        if self.auto and value == AUTO:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            raise Refused(value, f"a duration, {self.form}", f"Add the unit, such as {value}s.")
        if not isinstance(value, str):
            raise Refused(value, f"a duration, {self.form}")
        try:
            seconds = parse_duration(value)
        except ValueError:
            raise Refused(value, f"a duration, {self.form}", _SPELLING) from None
        if not self._bounds[0] <= seconds <= self._bounds[1]:
            raise Refused(value, self.form)
        return seconds

    def dump(self, value: float | None) -> str:
        return AUTO if value is None else format_duration(value)

    def schema(self) -> dict[str, Any]:
        # The form is a rule as well, because a rule can say what is allowed in words.
        auto, form = f"self == '{AUTO}' || " if self.auto else "", _matches(DURATION_PATTERN)
        within = f"duration(self) >= duration('{self.minimum}')"
        within += f" && duration(self) <= duration('{self.maximum}')"
        got = "'got ' + (self == '' ? 'an empty text' : self) + "
        return {
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [
                {
                    "rule": auto + form,
                    "messageExpression": f"{got}', allowed a duration, {self.form}. {_SPELLING}'",
                },
                {
                    "rule": f"{auto}!{form} || ({within})",
                    "messageExpression": f"'got ' + self + ', allowed {self.form}.'",
                },
            ],
        }


class Choice(Kind):
    """One of a few words."""

    def __init__(self, *values: str) -> None:
        self.values = tuple(str(value) for value in values)

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.values:
            raise Refused(value, "one of " + ", ".join(self.values))
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {
            "type": "string",
            "enum": list(self.values),
            "maxLength": max(map(len, self.values)),
        }


class Flag(Kind):
    """true or false."""

    def parse(self, value: object) -> bool:
        if not isinstance(value, bool):
            fix = "Write it without quotes." if value in ("true", "false") else ""
            raise Refused(value, "true or false", fix)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class TextSet(Kind):
    """A list of strings in which none stands twice."""

    def __init__(self, item: Text, *, max_items: int) -> None:
        self.item = item
        self.max_items = max_items

    def parse(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise Refused(value, f"a list of at most {self.max_items} entries")
        if len(value) > self.max_items:
            raise Refused(f"{len(value)} entries", f"at most {self.max_items}")
        entries = [self.item.parse(entry) for entry in value]
        for entry in entries:
            if entries.count(entry) > 1:
                raise Refused(f"{entry} twice", "each entry once")
        return tuple(entries)

    def dump(self, value: tuple[str, ...]) -> list[str]:
        return list(value)

    def schema(self) -> dict[str, Any]:
        return {
            "type": "array",
            "items": self.item.schema(),
            "maxItems": self.max_items,
            "x-kubernetes-list-type": "set",
        }


class TextMap(Kind):
    """A mapping from string to string, as labels and annotations are."""

    def __init__(self, *, max_items: int, max_value_length: int) -> None:
        self.max_items = max_items
        self.key = Text(317)  # a DNS prefix of 253, a slash, a name of 63
        self.value = Text(max_value_length)

    def parse(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            raise Refused(value, "a mapping from text to text")
        if len(value) > self.max_items:
            raise Refused(f"{len(value)} entries", f"at most {self.max_items}")
        return {self.key.parse(name): self.value.parse(text) for name, text in value.items()}

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "additionalProperties": self.value.schema(),
            "maxProperties": self.max_items,
        }
