"""Which variables a chat template reads, so that one that it never reads is refused.

Asked by ``template`` before it renders. Jinja's own ``find_undeclared_variables`` also names what a
template sets in one branch and reads there alone, which most do, and which nobody can set from
outside.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from jinja2 import Environment, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeVisitor

from sluice_api.decode import shown
from sluice_api.errors import ApiError
from sluice_api.shapes.template_variables import RESERVED, Variables, place

_MOST_NAMED: Final = 10
_OF_MACROS: Final = ("caller", "varargs", "kwargs")


def check_read(variables: Variables, template: str) -> None:
    """Refuse what the template never reads.

    Raises:
        ApiError: one of ``variables`` is of that kind.
        jinja2.TemplateError: it is no template.
    """
    if not variables:
        return
    known = read_by(template)
    for name, value in variables.items():
        if name not in known:
            named = ", ".join(sorted(known)[:_MOST_NAMED]) or "none"
            raise ApiError(
                "invalid_field",
                f"{place(name)}: got {shown(value)}, but this model's chat template reads no "
                f"variable of that name. Leave it out; those that it reads: {named}.",
                param=place(name),
            )


@lru_cache(maxsize=4)
def read_by(template: str) -> frozenset[str]:
    """The variables whose values from outside what the template writes may depend on.

    Raises:
        jinja2.TemplateError: it is no template.
    """
    environment = Environment(  # noqa: S701 - nothing is rendered
        extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    reader = _Reader()
    reader.visit(environment.parse(template))
    return frozenset(reader.read - RESERVED)


class _Generation(Extension):
    """The block that transformers adds to the language; here, what stands in it."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Reader(NodeVisitor):
    """Goes through a template in the order in which it runs.

    Attributes:
        read: names that were read where the template had not set them on every way there.
    """

    def __init__(self) -> None:
        self.read: set[str] = set()
        self._set: set[str] = set()

    def visit_Name(self, node: nodes.Name) -> None:
        if node.ctx != "load":
            self._set.add(node.name)
        elif node.name not in self._set:
            self.read.add(node.name)

    def visit_NSRef(self, node: nodes.NSRef) -> None:
        if node.name not in self._set:
            self.read.add(node.name)

    def visit_Assign(self, node: nodes.Assign) -> None:
        self._all([node.node, node.target])

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> None:
        self._inside([*node.body, *([node.filter] if node.filter else [])])
        self.visit(node.target)

    def visit_If(self, node: nodes.If) -> None:
        before, ends = self._set, []
        for way in (node, *node.elif_):
            self.visit(way.test)
            ends.append(self._after(way.body, before))
        ends.append(self._after(node.else_, before))
        self._set = set.intersection(*ends)

    def visit_For(self, node: nodes.For) -> None:
        self.visit(node.iter)
        self._inside([node.target, *([node.test] if node.test else []), *node.body], "loop")
        self._inside(node.else_)

    def visit_Macro(self, node: nodes.Macro) -> None:
        self._set.add(node.name)
        self._inside([*node.defaults, *node.args, *node.body], *_OF_MACROS)

    def visit_CallBlock(self, node: nodes.CallBlock) -> None:
        self.visit(node.call)
        self._inside([*node.defaults, *node.args, *node.body])

    def visit_With(self, node: nodes.With) -> None:
        self._inside([*node.values, *node.targets, *node.body])

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> None:
        self._inside([*node.body, node.filter])

    def visit_Scope(self, node: nodes.Scope) -> None:
        self._inside(node.body)

    def visit_Block(self, node: nodes.Block) -> None:
        self._inside(node.body)

    def _all(self, parts: Iterable[nodes.Node]) -> None:
        for part in parts:
            self.visit(part)

    def _inside(self, parts: Iterable[nodes.Node], *given: str) -> None:
        """What is set in there is not set behind it."""
        before = self._set
        self._set = before | set(given)
        self._all(parts)
        self._set = before

    def _after(self, parts: Iterable[nodes.Node], before: set[str]) -> set[str]:
        """What is set when ``parts`` have run."""
        self._set = set(before)
        self._all(parts)
        return self._set
