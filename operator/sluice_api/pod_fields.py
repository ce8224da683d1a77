"""Kinds of value that a field takes over from Kubernetes' pods, in Kubernetes' own words.

They are checked as far as a mistake can be told without knowing the cluster; the rest is for the
API server when the pods are made. Used by ``spec_hardware``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sluice_api.fields import AUTO, Kind
from sluice_api.quantities import QUANTITY_PATTERN, parse_quantity
from sluice_api.spec_errors import Refused


class Quantity(Kind):
    """An amount of CPU, memory or storage, as text. With ``auto``, or the word auto (None)."""

    def __init__(self, form: str, *, auto: bool = False) -> None:
        self.form = f"{form}{' or auto' if auto else ''}"
        self.auto = auto

    def parse(self, value: object) -> str | None:
        if self.auto and value == AUTO:
            return None
        # A whole number may be written without quotes, as everywhere in Kubernetes.
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(text, float):
            raise Refused(value, self.form, "Put the value in quotes.")
        if not isinstance(text, str):
            raise Refused(value, self.form)
        try:
            parse_quantity(text)
        except ValueError:
            raise Refused(value, self.form) from None
        return text

    def dump(self, value: str | None) -> str:
        return AUTO if value is None else value

    def schema(self) -> dict[str, Any]:
        pattern = f"^{AUTO}$|{QUANTITY_PATTERN}" if self.auto else QUANTITY_PATTERN
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 24,
            "x-kubernetes-validations": [
                {
                    "rule": f"string(self).matches('{pattern}')",
                    "messageExpression": f"'got ' + string(self) + ', allowed {self.form}.'",
                }
            ],
        }


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a pod's part. ``type`` is a JSON type; objects and lists are taken whole.

    Attributes:
        choices: the texts that are allowed; none for any.
    """

    type: str
    description: str
    choices: tuple[str, ...] = ()

    @property
    def form(self) -> str:
        return f"one of {', '.join(self.choices)}" if self.choices else f"of type {self.type}"

    def fits(self, value: object) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, bool):
            return self.type == "boolean"
        return isinstance(value, _TYPES[self.type])

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": self.type, "description": self.description}
        match self.type:
            case "string" if self.choices:
                schema["enum"] = list(self.choices)
                schema["maxLength"] = max(map(len, self.choices))
            case "string":
                schema["maxLength"] = 317
            case "integer":
                schema["format"] = "int64"
            case "object":
                schema["x-kubernetes-preserve-unknown-fields"] = True
            case "array":
                schema |= {
                    "items": {"type": "string", "maxLength": 317},
                    "maxItems": 16,
                    "x-kubernetes-list-type": "atomic",
                }
        return schema


_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TYPES: Final = {"string": str, "integer": int, "object": dict, "array": list}


class PodObject(Kind):
    """An object of a pod's spec: its members are known, what is below them is the cluster's."""

    def __init__(self, members: Mapping[str, Member], *, required: tuple[str, ...] = ()) -> None:
        self.members = dict(members)
        self.required = required

    @property
    def form(self) -> str:
        return "an object with " + ", ".join(self.members)

    def parse(self, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Refused(value, self.form)
        given = {name: below for name, below in value.items() if below is not None}
        for name, below in given.items():
            member = self.members.get(name)
            if member is None:
                raise Refused(name, self.form)
            if not member.fits(below):
                raise Refused(below, member.form, at=f".{name}")
            if found := _not_json(below, name):
                where, odd = found
                raise Refused(odd, "what JSON has", "Put it in quotes.", at=f".{where}")
        for name in self.required:
            if name not in given:
                raise Refused("no " + name, self.form)
        return given

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: member.schema() for name, member in self.members.items()},
        }
        if self.required:
            schema["required"] = list(self.required)
        return schema


def _not_json(value: object, where: str) -> tuple[str, object] | None:
    """Where below ``where`` a value stands that YAML has and JSON has not, and the value."""
    if isinstance(value, dict):
        for name, below in value.items():
            if not isinstance(name, str) or _not_json(name, where):
                return where, name
            if found := _not_json(below, f"{where}.{name}"):
                return found
    elif isinstance(value, list):
        for index, below in enumerate(value):
            if found := _not_json(below, f"{where}[{index}]"):
                return found
    elif isinstance(value, str):
        return (where, value) if _SURROGATE.search(value) else None
    elif isinstance(value, float):
        return None if math.isfinite(value) else (where, value)
    elif not (value is None or isinstance(value, int)):
        return where, value
    return None


class PodList(Kind):
    """A list of such objects, taken whole: it has no keys to merge by."""

    def __init__(self, item: PodObject, *, max_items: int) -> None:
        self.item = item
        self.max_items = max_items

    @property
    def form(self) -> str:
        return f"a list of at most {self.max_items}, each {self.item.form}"

    def parse(self, value: object) -> tuple[dict[str, Any], ...]:
        if not isinstance(value, list | tuple):
            raise Refused(value, self.form)
        if len(value) > self.max_items:
            raise Refused(f"{len(value)} entries", f"at most {self.max_items}")
        return tuple(self._entry(index, entry) for index, entry in enumerate(value))

    def _entry(self, index: int, entry: object) -> dict[str, Any]:
        try:
            return self.item.parse(entry)
        except Refused as refused:
            refused.at = f"[{index}]{refused.at}"
            raise

    def dump(self, value: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
        return list(value)

    def schema(self) -> dict[str, Any]:
        return {
            "type": "array",
            "items": self.item.schema(),
            "maxItems": self.max_items,
            "x-kubernetes-list-type": "atomic",
        }
