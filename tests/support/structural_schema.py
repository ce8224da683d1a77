"""Whether an OpenAPI schema is structural, by the rules of Kubernetes' CRD documentation.

Written from "Specifying a structural schema", "Defaulting" and "x-kubernetes-validations" of the
reference, because no API server is at hand: yields one sentence for each violation.
"""

from collections.abc import Iterator
from typing import Any

TYPES = {"object", "array", "string", "integer", "number", "boolean"}
FORBIDDEN = {
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
    "uniqueItems",
}
LOGICAL = {"allOf", "anyOf", "oneOf", "not"}
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
RULE_FIELDS = {"rule", "message", "messageExpression", "fieldPath", "reason", "optionalOldSelf"}


def violations(schema: dict[str, Any], path: str = "", *, root: bool = True) -> Iterator[str]:
    """Every breach of the structural rules below ``schema``."""
    int_or_string = schema.get("x-kubernetes-int-or-string", False)
    if int_or_string:
        if "type" in schema:
            yield f"{path}: int-or-string has a type"
        if schema.get("anyOf") not in (None, INT_OR_STRING):
            yield f"{path}: int-or-string with another anyOf"
    elif schema.get("type") not in TYPES:
        yield f"{path}: type is {schema.get('type')!r}"
    yield from _forbidden(schema, path, int_or_string)
    yield from _bounded(schema, path, int_or_string)
    if not root and not schema.get("description") and not path.endswith("[]"):
        yield f"{path}: no description"
    yield from _rules(schema, path)
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{path}: properties and additionalProperties exclude each other"
    yield from _lists(schema, path)
    for name, below in schema.get("properties", {}).items():
        if root and name == "metadata":
            if below != {"type": "object"}:
                yield "metadata: only its type may be given"
            continue
        yield from violations(below, f"{path}.{name}", root=False)
    if "items" in schema:
        yield from violations(schema["items"], f"{path}[]", root=False)


def _forbidden(schema: dict[str, Any], path: str, int_or_string: bool) -> Iterator[str]:
    for name in FORBIDDEN & schema.keys():
        yield f"{path}: {name} is forbidden"
    for name in LOGICAL & schema.keys():
        if not (int_or_string and name == "anyOf"):
            yield f"{path}: {name} is not used here"
    if schema.get("nullable") and schema.get("default") is None and "default" in schema:
        yield f"{path}: default null"


def _bounded(schema: dict[str, Any], path: str, int_or_string: bool) -> Iterator[str]:
    # What has no bound makes the estimated cost of CEL rules unbounded.
    if (schema.get("type") == "string" or int_or_string) and "maxLength" not in schema:
        yield f"{path}: a string without maxLength"
    if schema.get("type") == "array" and "maxItems" not in schema:
        yield f"{path}: a list without maxItems"
    if "additionalProperties" in schema and "maxProperties" not in schema:
        yield f"{path}: a mapping without maxProperties"


def _lists(schema: dict[str, Any], path: str) -> Iterator[str]:
    if schema.get("type") != "array":
        return
    kind = schema.get("x-kubernetes-list-type")
    if kind not in {"atomic", "set", "map"}:
        yield f"{path}: a list without x-kubernetes-list-type"
    if kind == "map":
        items = schema["items"]
        for key in schema.get("x-kubernetes-list-map-keys", [None]):
            field = items.get("properties", {}).get(key)
            if field is None:
                yield f"{path}: list-map key {key!r} is no field"
            elif key not in items.get("required", []) and "default" not in field:
                yield f"{path}: list-map key {key!r} is neither required nor defaulted"


def _rules(schema: dict[str, Any], path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if not rule.get("rule"):
            yield f"{path}: a rule without rule"
        if not (rule.get("message") or rule.get("messageExpression")):
            yield f"{path}: a rule without a message"
        if extra := rule.keys() - RULE_FIELDS:
            yield f"{path}: a rule with {extra}"
        place: Any = schema
        for step in filter(None, rule.get("fieldPath", "").split(".")):
            place = place.get("properties", {}).get(step, {})
        if not place:
            yield f"{path}: fieldPath {rule['fieldPath']} is no field"


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """``value`` with defaults filled in as the API server fills them: top down, nulls dropped."""
    if isinstance(value, dict) and "properties" in schema:
        result = {}
        for name, field in value.items():
            below = schema["properties"].get(name, {})
            if field is None and "default" in below:
                continue
            result[name] = field
        for name, below in schema["properties"].items():
            if name not in result and "default" in below:
                result[name] = below["default"]
            if name in result:
                result[name] = with_defaults(below, result[name])
        return result
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(schema["items"], item) for item in value]
    return value
