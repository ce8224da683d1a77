"""YAML read more strictly than usual: a key that stands twice is an error, not the last word.

``service_files`` and ``key_file`` read with it.
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


def told(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line, without the text itself."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f"{error.context}, " if error.context else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"
    return f"is not valid YAML: {error}"
