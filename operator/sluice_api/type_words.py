"""What a field takes, in the caller's words: "a text of 1 to 1024 characters", "true or false".

``decode`` asks for them when a body does not fit its struct, so that no message speaks of the types
of a library and none can allow something else than the struct does.
"""

from collections.abc import Sequence

from msgspec import inspect

Step = str | int
"""One step into a body: a member, a place in a list, or ``...`` for any value of an object."""


def type_at(root: inspect.Type, steps: Sequence[Step]) -> inspect.Type | None:
    """The type of what stands at ``steps`` below ``root``; None where nothing is declared."""
    if not steps:
        return root
    step, rest = steps[0], steps[1:]
    for part in _parts(root):
        below: inspect.Type | None = None
        if isinstance(part, inspect.StructType):
            below = next((f.type for f in part.fields if f.encode_name == step), None)
        elif isinstance(part, inspect.ListType) and isinstance(step, int):
            below = part.item_type
        elif isinstance(part, inspect.DictType) and isinstance(step, str):
            below = part.value_type
        if below is not None and (found := type_at(below, rest)) is not None:
            return found
    return None


def key_type(kind: inspect.Type) -> inspect.Type | None:
    """The type of the names in an object that may have any names."""
    dicts = (part for part in _parts(kind) if isinstance(part, inspect.DictType))
    return next((part.key_type for part in dicts), None)


def members(kind: inspect.Type) -> list[str]:
    """The names of the fields of an object, without those that are never taken (`REFUSED`)."""
    structs = (part for part in _parts(kind) if isinstance(part, inspect.StructType))
    return [
        field.encode_name
        for struct in structs
        for field in struct.fields
        if field.name not in getattr(struct.cls, "REFUSED", ())
    ]


def fits(kind: inspect.Type, value: object) -> bool:
    """Whether ``value`` can be of this type, as far as texts, numbers and truths tell; True for all
    other types."""
    if value is None and isinstance(kind, inspect.UnionType):
        return kind.includes_none
    return any(_is(part, value) for part in _parts(kind) or [kind])


def _is(kind: inspect.Type, value: object) -> bool:
    match kind:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.StrType():
            if not isinstance(value, str):
                return False
            return (kind.min_length or 0) <= len(value) <= (kind.max_length or len(value))
        case inspect.IntType() | inspect.FloatType():
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            low = kind.ge is None or value >= kind.ge
            high = kind.le is None or value <= kind.le
            above = kind.gt is None or value > kind.gt
            below = kind.lt is None or value < kind.lt
            return low and high and above and below
    return True


def one(kind: inspect.Type) -> str:
    """A value of this type: ``a whole number from 1 to 65536``."""
    parts = _parts(kind)
    if any(isinstance(part, inspect.FloatType) for part in parts):
        parts = [part for part in parts if not isinstance(part, inspect.IntType)]
    return _either([_one(part) for part in parts] or ["null"])


def _one(kind: inspect.Type) -> str:
    match kind:
        case inspect.StrType():
            bounds = _bounds(kind.min_length, kind.max_length, "of {} to {}", "of at {} {}")
            return f"a text{bounds}{' characters' if bounds else ''}"
        case inspect.IntType():
            low = kind.ge if kind.gt is None else kind.gt + 1
            high = kind.le if kind.lt is None else kind.lt - 1
            return "a whole number" + _bounds(low, high, "from {} to {}", "of at {} {}")
        case inspect.FloatType():
            return "a number" + _range(kind)
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return _either([f'"{value}"' for value in kind.values])
        case inspect.EnumType():
            return _either([f'"{member.value}"' for member in kind.cls])
        case inspect.ListType():
            count = _bounds(kind.min_length, kind.max_length, "{} to {}", "at {} {}")
            return f"a list of{count} {_kinds(kind.item_type)}"
        case inspect.TupleType():
            return f"a list of {len(kind.item_types)} {_many(kind.item_types[0])}"
        case inspect.DictType():
            bounds = _bounds(kind.min_length, kind.max_length, "of {} to {}", "of at {} {}")
            return f"an object{bounds}{' members' if bounds else ''}"
        case inspect.StructType():
            return "an object"
        case _:
            return "any value"


def _many(kind: inspect.Type) -> str:
    match kind:
        case inspect.StrType():
            return "texts"
        case inspect.IntType():
            return "whole numbers"
        case inspect.ListType():
            return f"lists of {_kinds(kind.item_type)}"
        case inspect.DictType() | inspect.StructType():
            return "objects"
        case _:
            return "values"


def _kinds(kind: inspect.Type) -> str:
    return _either([_many(part) for part in _parts(kind)])


def _parts(kind: inspect.Type) -> list[inspect.Type]:
    """The alternatives of a type. That a field may also be null is nothing a caller must know."""
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    bare = [part.type if isinstance(part, inspect.Metadata) else part for part in kinds]
    return [part for part in bare if not isinstance(part, inspect.NoneType)]


def _bounds(low: object, high: object, both: str, single: str) -> str:
    if low is not None and high is not None:
        return " " + both.format(low, high)
    if low is not None:
        return " " + single.format("least", low)
    return "" if high is None else " " + single.format("most", high)


def _range(kind: inspect.FloatType) -> str:
    if kind.gt is not None:
        return f" above {kind.gt:.15g}" + ("" if kind.le is None else f" up to {kind.le:.15g}")
    low, high = (None if end is None else f"{end:.15g}" for end in (kind.ge, kind.le))
    return _bounds(low, high, "from {} to {}", "of at {} {}")


def _either(words: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
