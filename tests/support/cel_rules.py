"""Runs the CEL rules of a structural schema on a resource, as an API server would."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import celpy
from celpy import celtypes

from sluice_api.quantities import parse_quantity

_ENVIRONMENT = celpy.Environment()


def _quantity(text: Any) -> Any:
    """Kubernetes' library of quantities, as far as our rules use it: exact thousandths."""
    return celtypes.IntType(round(parse_quantity(str(text)) * 1000))


def _compare_to(one: Any, other: Any) -> Any:
    return celtypes.IntType((one > other) - (one < other))


def _format(pattern: Any, values: Any) -> Any:
    # string(int) has no bound in the API server's estimate of costs; format has.
    return celtypes.StringType(str(pattern) % tuple(int(value) for value in values))


@cache
def _program(expression: str) -> Any:
    functions = {"quantity": _quantity, "compareTo": _compare_to, "format": _format}
    return _ENVIRONMENT.program(_ENVIRONMENT.compile(expression), functions=functions)


def evaluate(expression: str, value: Any) -> Any:
    """``expression`` with ``self`` bound to ``value``."""
    return _program(expression).evaluate({"self": celpy.json_to_cel(value)})


def broken_rules(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(field path, message) of every rule below ``schema`` that ``value`` breaks.

    A rule that cannot be evaluated, say of a quantity that is none, is a broken one too.
    """
    for rule in schema.get("x-kubernetes-validations", []):
        try:
            holds = evaluate(rule["rule"], value)
            message = "" if holds else str(evaluate(rule["messageExpression"], value))
        except celpy.CELEvalError as error:
            holds, message = False, str(error)
        if not holds:
            yield (path + rule.get("fieldPath", "")).lstrip("."), message
    if isinstance(value, dict):
        for name, below in schema.get("properties", {}).items():
            if name in value:
                yield from broken_rules(below, value[name], f"{path}.{name}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from broken_rules(schema["items"], item, f"{path}[{index}]")
