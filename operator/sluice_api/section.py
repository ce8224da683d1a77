"""The base of every part of the resource: how it is read, written, and described.

``inference_service`` and ``service_status`` are made of sections; the CRD generator and the
reference pages walk them through :meth:`Section.fields`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, ClassVar, NamedTuple, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from sluice_api.fields import Kind
from sluice_api.spec_errors import Refused
from sluice_api.spec_rules import Rule


@dataclass(frozen=True, slots=True)
class SectionField:
    """One field of a section, for those who describe it.

    Attributes:
        name: as it is written in the resource.
        content: the kind of its value, or the section it holds.
        is_list: it holds a list of such sections, at most ``max_items``.
        is_optional: it is a section that may be absent, which means something else than empty.
        default: as it is written in the resource; None for a section, a required field, and a
            field of a partial section.
        example: as it is written in the resource; None when there is none.
    """

    name: str
    content: "Kind | type[Section]"
    description: str
    required: bool
    default: Any
    example: Any
    is_list: bool = False
    max_items: int = 0
    is_optional: bool = False


class Section(BaseModel):
    """A part of the resource: camelCase outside, snake_case here, nothing unknown, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)
    rules: ClassVar[tuple[Rule, ...]] = ()
    list_key: ClassVar[str] = ""
    """In a list of such sections, the field that tells them apart."""
    partial: ClassVar[bool] = False
    """Only what is written counts: there are no defaults, nothing is required."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        # As the API server does: a field set to null is a field left out.
        if isinstance(value, dict):
            return {name: field for name, field in value.items() if field is not None}
        return value

    @model_validator(mode="after")
    def _follow_rules(self) -> "Section":
        broken = [(rule.field, found) for rule in self.rules if (found := rule.check(self))]
        if broken:
            raise PydanticCustomError("rules", "rules are broken", {"problems": broken})
        return self

    @classmethod
    def broken_rules(cls, value: object) -> Iterator[tuple[str, str]]:
        """Field and message of every rule that ``value``, as read from a file, breaks.

        Fields that do not fit are left aside, and so is a rule that needs one of them: what is
        wrong with one field hides nothing about the others.
        """
        given = value if isinstance(value, dict) else {}
        readable = SimpleNamespace()
        for name, field in cls.model_fields.items():
            written = given.get(field.alias)
            kind = _kind(field)
            content = _content(field)
            try:
                if written is None and not field.is_required():
                    setattr(readable, name, field.get_default(call_default_factory=True))
                elif written is not None and kind is not None:
                    setattr(readable, name, kind.parse(written))
                elif written is not None and _is_section(content):
                    setattr(readable, name, content.model_validate(written))
            except (Refused, ValidationError):
                continue
        for rule in cls.rules:
            try:
                found = rule.check(readable)
            except AttributeError:
                continue
            if found:
                yield rule.field, found

    @classmethod
    def known(cls, value: Any) -> Any:
        """``value``, as read from JSON, without the members that this version does not know."""
        if not isinstance(value, dict):
            return value
        kept = {}
        for field in cls.model_fields.values():
            if field.alias not in value:
                continue
            given = kept[field.alias] = value[field.alias]
            content = _content(field)
            parts = get_args(content) if get_origin(content) is list else (content,)
            if _kind(field) is None and issubclass(parts[0], Section):
                section = parts[0]
                is_list = isinstance(given, list)
                kept[field.alias] = (
                    [section.known(item) for item in given] if is_list else section.known(given)
                )
        return kept

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the resource, every default spelt out."""
        written = {}
        for member in _members(type(self)):
            value = getattr(self, member.name)
            if self.partial and member.name not in self.model_fields_set:
                continue
            if member.kind is not None:
                value = member.kind.dump(value)
            elif value is None:  # an optional section
                continue
            elif isinstance(value, Section):
                value = value.to_dict()
            else:
                value = [item.to_dict() for item in value]
            written[member.alias] = value
        return written

    def to_short_dict(self) -> dict[str, Any]:
        """As it stands in the resource, without what the defaults say anyway."""
        written = {}
        for member in _members(type(self)):
            value = getattr(self, member.name)
            if value == member.default:
                continue
            if member.kind is not None:
                written[member.alias] = member.kind.dump(value)
            elif isinstance(value, Section):
                written[member.alias] = value.to_short_dict()
        return written

    @classmethod
    def fields(cls) -> Iterator[SectionField]:
        """The fields, in the order in which they are documented."""
        for field in cls.model_fields.values():
            yield _describe(field, partial=cls.partial)


class _Member(NamedTuple):
    """A field as far as writing it depends on it; None for its default where there is none."""

    name: str
    alias: str
    kind: Kind | None
    default: Any


@cache
def _members(section: type[Section]) -> tuple[_Member, ...]:
    """Looked up once: every pass of the operator writes sections. Defaults are only compared."""
    return tuple(
        _Member(
            name,
            str(field.alias),
            _kind(field),
            None if field.is_required() else field.get_default(call_default_factory=True),
        )
        for name, field in section.model_fields.items()
    )


def _kind(field: FieldInfo) -> Kind | None:
    return next((extra for extra in field.metadata if isinstance(extra, Kind)), None)


def _is_section(content: Any) -> TypeGuard["type[Section]"]:
    return isinstance(content, type) and issubclass(content, Section)


def _content(field: FieldInfo) -> Any:
    """The type a field is declared to hold, without the None that an optional section allows."""
    annotation: Any = field.annotation
    if get_origin(annotation) is UnionType:
        return next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _describe(field: FieldInfo, *, partial: bool) -> SectionField:
    assert field.alias is not None
    kind = _kind(field)
    required = field.is_required()
    default = None
    if kind is not None and not required and not partial:
        default = kind.dump(field.get_default(call_default_factory=True))
    content = _content(field)
    is_list = kind is None and get_origin(content) is list
    return SectionField(
        name=field.alias,
        content=kind or (get_args(content)[0] if is_list else content),
        description=field.description or "",
        required=required and not partial,
        default=default,
        example=field.examples[0] if field.examples else None,
        is_list=is_list,
        max_items=next((m.max_length for m in field.metadata if is_list), 0),
        is_optional=kind is None and get_origin(field.annotation) is UnionType,
    )
