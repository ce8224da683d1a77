"""Label selectors as Kubernetes writes them in query strings: ``a=b,c in (x,y),!d,e``.

The grammar of ``k8s.io/apimachinery/pkg/labels``; ``documents`` of this package's server use it for
labels of objects and of metrics.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_LENGTH: Final = 4096
_NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY: Final = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}")
_VALUE: Final = re.compile(rf"({_NAME})?")
_TOKENS: Final = re.compile(r"\s*(==|!=|[=!<>(),]|[^\s=!<>(),]+)")


class SelectorError(ValueError):
    """A selector that cannot be read; the message says where."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term.

    Attributes:
        operator: ``in``, ``notin``, ``exists``, ``!``, ``gt`` or ``lt``.
    """

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value in self.values
            case "notin":
                # As Kubernetes does: an object without the label is not in the set either.
                return value not in self.values
            case "exists":
                return value is not None
            case "!":
                return value is None
        if value is None or not re.fullmatch(r"-?[0-9]{1,18}", value):
            return False
        bound = int(next(iter(self.values)))
        return int(value) > bound if self.operator == "gt" else int(value) < bound


Selector = tuple[Requirement, ...]


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether every term holds; an empty selector takes everything."""
    return all(requirement.holds(labels) for requirement in selector)


def parse(text: str) -> Selector:
    """Read a selector. Raises :class:`SelectorError`."""
    if len(text) > MAX_LENGTH:
        raise SelectorError(f"selector: longer than {MAX_LENGTH} characters")
    if not text.strip():
        return ()
    tokens = _Tokens(text)
    requirements = [_requirement(tokens)]
    while tokens.peek() == ",":
        tokens.take()
        requirements.append(_requirement(tokens))
    if tokens.peek():
        raise SelectorError(f"selector: {tokens.peek()!r} where a comma or the end should be")
    return tuple(requirements)


class _Tokens:
    def __init__(self, text: str) -> None:
        self._tokens = [match[1] for match in _TOKENS.finditer(text.strip())]
        self._tokens.reverse()

    def peek(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    def take(self) -> str:
        return self._tokens.pop() if self._tokens else ""

    def expect(self, token: str) -> None:
        found = self.take()
        if found != token:
            raise SelectorError(f"selector: {found or 'the end'!r} where {token!r} should be")


def _requirement(tokens: _Tokens) -> Requirement:
    if tokens.peek() == "!":
        tokens.take()
        return Requirement(_key(tokens), "!")
    key = _key(tokens)
    match tokens.peek():
        case "" | ",":
            return Requirement(key, "exists")
        case "=" | "==":
            tokens.take()
            return Requirement(key, "in", frozenset({_value(tokens)}))
        case "!=":
            tokens.take()
            return Requirement(key, "notin", frozenset({_value(tokens)}))
        case "in" | "notin" as operator:
            tokens.take()
            return Requirement(key, operator, _values(tokens))
        case "<" | ">" as sign:
            tokens.take()
            bound = _value(tokens)
            if not re.fullmatch(r"-?[0-9]{1,18}", bound):
                raise SelectorError(f"selector: {bound!r} after {sign} is not a whole number")
            return Requirement(key, "gt" if sign == ">" else "lt", frozenset({bound}))
        case other:
            raise SelectorError(f"selector: {other!r} after {key!r}")


def _key(tokens: _Tokens) -> str:
    key = tokens.take()
    if not _KEY.fullmatch(key):
        raise SelectorError(f"selector: {key or 'the end'!r} where a label should be")
    return key


def _value(tokens: _Tokens) -> str:
    if tokens.peek() in ("", ","):
        return ""  # ``a=`` asks for the empty value
    value = tokens.take()
    if not _VALUE.fullmatch(value):
        raise SelectorError(f"selector: {value!r} is not a label's value")
    return value


def _values(tokens: _Tokens) -> frozenset[str]:
    tokens.expect("(")
    values = set[str]()
    while True:
        if tokens.peek() in (",", ")"):
            values.add("")
        else:
            values.add(_value(tokens))
        if tokens.peek() != ",":
            break
        tokens.take()
    tokens.expect(")")
    return frozenset(values)
