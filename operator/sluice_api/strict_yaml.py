"""YAML read more strictly than usual, and never with another error than YAMLError.

A key that stands twice is an error, not the last word; so are a value that is none of its kind, a
number that JSON's readers do not hold, and aliases that multiply. ``service_files`` and
``key_file`` mix it into their loaders; they and the gateway's table read with :func:`load`.
"""

from collections.abc import Hashable
from typing import Any, Final

import yaml

from sluice_api.spec_errors import shown

_MULTIPLE: Final = 10
_FREE: Final = 10_000
"""How many values aliases may make of a document: so many, or so many times what it spells out."""
_BITS: Final = 64


class Strict(yaml.constructor.SafeConstructor):
    """Mix it in before a safe loader. Every error tells its line, and never a value."""

    def construct_document(self, node: yaml.Node) -> Any:
        _check_aliases(node)
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:
            # PyYAML lets through what Python says of a value: ValueError of a day that does not
            # exist, KeyError of `!!bool x`, and more.
            kind = node.tag.rpartition(":")[2]
            raise _wrong(
                node, f"this is no {kind}; write it in quotes if it is meant as a text"
            ) from None
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise _wrong(
                node,
                f"a whole number has at most {_BITS} bits; write it in quotes if it is meant as a"
                " text",
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Hashable, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                raise _wrong(
                    key_node,
                    f"{shown(key_node.value)} stands twice, on lines {seen[key_node.value]} and"
                    f" {line}. Keep one.",
                )
            seen[key_node.value] = line
        return super().construct_mapping(node, deep)


def _wrong(node: yaml.Node, what: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _check_aliases(document: yaml.Node) -> None:
    """Raise YAMLError if its aliases make far more of a document than it spells out."""
    sizes: dict[int, int] = {}  # by node: how many values it is with all below it

    def size_of(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        known = sizes.get(id(node))
        if known == 0:
            raise _wrong(node, "this holds an alias of itself; write out what is meant")
        if known is None:
            sizes[id(node)] = 0
            below = node.value
            if isinstance(node, yaml.MappingNode):
                below = [part for pair in below for part in pair]
            known = sizes[id(node)] = 1 + sum(map(size_of, below))
            spelt.append(1 + len(below))
        return known

    spelt: list[int] = []
    size = size_of(document)
    if size > max(_FREE, _MULTIPLE * sum(spelt)):
        raise _wrong(
            document, f"its aliases make {size} values of {sum(spelt)}; write out what is meant"
        )


def load(text: str | bytes, loader: type[Any]) -> Any:
    """What ``text`` says, read by a safe ``loader``. Raises yaml.YAMLError, whatever is wrong."""
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - a safe one
    except RecursionError:
        raise yaml.YAMLError("it nests too deeply") from None
    except ValueError:
        raise _no_character() from None


def nodes(text: str, loader: type[Any]) -> list[yaml.Node]:
    """The documents of ``text``, not made into values yet; the empty ones are left out.

    Raises yaml.YAMLError.
    """
    try:
        found = list(yaml.compose_all(text, Loader=loader))
    except RecursionError:
        raise yaml.YAMLError("it nests too deeply") from None
    except ValueError:
        raise _no_character() from None
    return [node for node in found if node is not None and not _is_empty(node)]


def _no_character() -> yaml.YAMLError:
    """Where PyYAML's scanner lets through what Python says of an escape, or of a directive."""
    return yaml.YAMLError(
        "it holds an escape that is no character, such as \\U00110000, or a %YAML version that is"
        " none"
    )


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def told(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line, without the text itself."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f"{error.context}, " if error.context else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"
    return f"is not valid YAML: {error}"
