"""Who has set which field of a child, as ``metadata.managedFields`` tells it. Pure.

What others add to the ``spec`` of a child changes what runs as much as what they change in it, so
neither stays. ``store`` notices it here, ``cluster`` takes it over here: fields become ours first,
then they go with our next apply, which does not have them. That way the API server does all the
merging, and removes and repairs in one write.
https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from sluice_api import names

Path = tuple[str, ...]
Fields = Mapping[str, Any]
"""``fieldsV1``: what is empty is a field that is owned, ``.`` its entry as such."""

_LEFT: Final[tuple[Path, ...]] = (
    # The scaler's, an autoscaler's, or anybody's who scales by hand.
    ("f:spec", "f:replicas"),
    # ``kubectl rollout restart`` writes one, and controllers keep checksums there.
    ("f:spec", "f:template", "f:metadata", "f:annotations"),
)
"""What of a child's ``spec`` others may have."""


class Addition(NamedTuple):
    """Something that another field manager has set in the ``spec`` of a child."""

    manager: str
    path: str

    def __str__(self) -> str:
        return f"{self.path} was set by {self.manager}"


def additions(item: Mapping[str, Any]) -> tuple[Addition, ...]:
    """What others have in the ``spec`` of a child and we have not: for each the outermost field.

    What they have together with us is as we want it.
    """
    others = [entry for entry in _entries(item) if _is_foreign(entry, item)]
    if not others:
        return ()
    ours = set(_paths(_our_fields(item)))
    found: dict[str, Addition] = {}
    for entry in others:
        taken, _ = _divided(entry["fieldsV1"])
        if alone := sorted(set(_paths(taken)) - ours, key=lambda path: (len(path), path)):
            manager = str(entry.get("manager", ""))
            found.setdefault(manager, Addition(manager, _spelled(alone[0])))
    return tuple(found[manager] for manager in sorted(found))


def taken_over(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``managedFields`` with all that :func:`additions` tells of in our name."""
    ours: dict[str, Any] = {}
    kept = []
    for entry in _entries(item):
        if _is_ours(entry):
            ours = {**entry, "fieldsV1": _united(ours.get("fieldsV1", {}), entry["fieldsV1"])}
        elif _is_foreign(entry, item):
            taken, left = _divided(entry["fieldsV1"])
            ours["fieldsV1"] = _united(ours.get("fieldsV1", {}), taken)
            kept += [{**entry, "fieldsV1": left}] if left else []
        else:
            kept.append(dict(entry))
    ours |= {
        "manager": names.FIELD_MANAGER,
        "operation": "Apply",
        "apiVersion": item["apiVersion"],
        "fieldsType": "FieldsV1",
    }
    return [*kept, ours]


def replicas_managers(item: Mapping[str, Any]) -> frozenset[str]:
    """The field managers that own ``spec.replicas`` of a Deployment."""
    return frozenset(
        entry.get("manager", "")
        for entry in _entries(item)
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    )


def is_orphan(item: Mapping[str, Any]) -> bool:
    """Whether we have applied it, and nothing controls it any more."""
    owners = item["metadata"].get("ownerReferences") or ()
    return not any(owner.get("controller") for owner in owners) and any(
        _is_ours(entry) for entry in _entries(item)
    )


# fieldsV1 ----------------------------------------------------------------------------------------


def _entries(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(item["metadata"].get("managedFields") or ())


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return (
        entry.get("manager") == names.FIELD_MANAGER
        and entry.get("operation") == "Apply"
        and not entry.get("subresource")
    )


def _is_foreign(entry: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Controllers write subresources; paths of another version do not compare with ours."""
    return (
        not _is_ours(entry)
        and not entry.get("subresource")
        and entry.get("apiVersion") == item["apiVersion"]
        and "f:spec" in (entry.get("fieldsV1") or {})
    )


def _our_fields(item: Mapping[str, Any]) -> Fields:
    return next((entry["fieldsV1"] for entry in _entries(item) if _is_ours(entry)), {})


def _paths(fields: Fields, at: Path = ()) -> Iterator[Path]:
    for name, below in fields.items():
        if below:
            yield from _paths(below, (*at, name))
        else:
            yield (*at, name)


def _divided(fields: Fields, at: Path = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is to be taken of what another manager has, and what is left to it."""
    taken: dict[str, Any] = {}
    left: dict[str, Any] = {}
    for name, below in fields.items():
        path = (*at, name)
        if path in _LEFT or path[0] != "f:spec":
            left[name] = below
        elif below and any(each[: len(path)] == path for each in _LEFT):
            inner_taken, inner_left = _divided(below, path)
            taken |= {name: inner_taken} if inner_taken else {}
            left |= {name: inner_left} if inner_left else {}
        else:
            taken[name] = below
    return taken, left


def _united(one: Fields, other: Fields) -> dict[str, Any]:
    united = dict(one)
    for name, below in other.items():
        united[name] = _united(united.get(name, {}), below)
    return united


def _spelled(path: Path) -> str:
    """As people write it: ``spec.template.spec.containers[worker].env[EXTRA]``."""
    text = ""
    for step in path:
        kind, _, rest = step.partition(":")
        if kind == "f":
            text += f".{rest}" if text else rest
        elif kind == "k":
            text += f"[{','.join(map(str, json.loads(rest).values()))}]"
        elif kind == "v":
            text += f"[{json.loads(rest)}]"
    return text
