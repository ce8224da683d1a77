"""YAML read more strictly than usual: a key that stands twice is an error, not the last word.

``service_files`` and ``key_file`` read with it, the latter and the gateway's table by :func:`load`.
"""

from collections.abc import Hashable
from typing import Any

import yaml


class NoKeyTwice(yaml.constructor.SafeConstructor):
    """Mix it in before a safe loader."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{key_node.value} stands twice, on lines {seen[key_node.value]} and {line}."
                    " Keep one.",
                    key_node.start_mark,
                )
            seen[key_node.value] = line
        return super().construct_mapping(node, deep)


def load(text: str | bytes, loader: type[Any]) -> Any:
    """What ``text`` says, read by a safe ``loader``. Raises yaml.YAMLError, whatever is wrong."""
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - a safe one
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("it nests too deeply") from None
    except Exception:
        # PyYAML lets through what Python says of a value: ValueError of a day that does not exist,
        # KeyError of `!!bool x`, and more. Some repeat the value, which may be nobody's to read.
        raise yaml.YAMLError(
            "it holds a value that is none of its kind, such as a day that does not exist or a"
            " number of thousands of digits; write it in quotes if it is meant as a text"
        ) from None


def told(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line, without the text itself."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f"{error.context}, " if error.context else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"
    return f"is not valid YAML: {error}"
