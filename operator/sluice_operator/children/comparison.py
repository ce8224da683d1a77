"""Whether an object is still as it was asked for. Pure.

What stands in the cluster holds more than we asked for (defaults, other people's fields), so that
only our part is compared. What we no longer ask for shows in the digest that each child carries.
Whoever adds to a selector, or to who may reach workers, changes what we asked for: Kubernetes takes
these whole (``x-kubernetes-map-type: atomic``), and so does the comparison.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sluice_api.quantities import parse_quantity

_KEYS: Final = ("name", "mountPath", "containerPort", "port", "topologyKey", "uid")
"""What tells the entries of a list apart that Kubernetes merges; all others are taken whole."""
_WHOLE: Final = frozenset(
    {"selector", "podSelector", "namespaceSelector", "labelSelector", "nodeSelector", "ingress"}
)
"""Fields in which nobody else has a part, at any depth."""
_QUANTITIES: Final = frozenset({"requests", "limits", "averageValue"})


def difference(wanted: Any, found: Any, path: str = "", *, whole: bool = False) -> str:
    """The path of the first field of ``wanted`` that ``found`` has otherwise; empty for none.

    Args:
        whole: ``found`` may have nothing that ``wanted`` has not.
    """
    if wanted == found:
        return ""  # in C, and nearly always so
    match wanted:
        case Mapping():
            for name, value in wanted.items():
                below = found.get(name) if isinstance(found, Mapping) else None
                inner = f"{path}.{name}" if path else name
                if where := difference(value, below, inner, whole=whole or name in _WHOLE):
                    return where
            return path if whole and set(found or ()) - set(wanted) else ""
        case Sequence() if not isinstance(wanted, str):
            return _difference_of_lists(wanted, found or (), path, whole)
        case _:
            return "" if _same_amount(wanted, found, path) else path


def _difference_of_lists(
    wanted: Sequence[Any], found: Sequence[Any], path: str, whole: bool
) -> str:
    key = next((key for key in _KEYS if _all_have(key, wanted)), "")
    if key and not whole:
        by_key = {entry.get(key): entry for entry in found if isinstance(entry, Mapping)}
        pairs = [(entry, by_key.get(entry[key])) for entry in wanted]
    elif len(wanted) == len(found):
        pairs = list(zip(wanted, found, strict=True))
    else:
        return path
    for index, (entry, counterpart) in enumerate(pairs):
        if where := difference(entry, counterpart, f"{path}[{index}]", whole=whole):
            return where
    return ""


def _all_have(key: str, entries: Sequence[Any]) -> bool:
    return bool(entries) and all(isinstance(entry, Mapping) and key in entry for entry in entries)


def _same_amount(wanted: Any, found: Any, path: str) -> bool:
    # The API server writes 1000m as 1.
    if not _QUANTITIES & set(path.split(".")[-2:]):
        return False
    try:
        return parse_quantity(str(wanted)) == parse_quantity(str(found))
    except ValueError:
        return False
