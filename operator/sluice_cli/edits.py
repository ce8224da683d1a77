"""InferenceService files read and edited: what ``sluice promote`` and ``restart`` print. Pure.

The command line reads a file or standard input and prints the whole text again, so that the same
edit serves a repository and a pipe from ``kubectl get`` to ``kubectl replace``. Comments are lost:
YAML's reader drops them.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final

import yaml

from sluice_api import names
from sluice_api.service_files import parse_documents, parse_service
from sluice_api.spec_errors import Problem, SpecError

_SERVER_FIELDS: Final = (
    *("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid"),
)
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"

Edit = Callable[[dict[str, Any]], bool]
"""Changes a resource in place; False if there is nothing to change in it."""


def edited(text: str, source: str, edit: Edit, nothing: str) -> str:
    """``text`` with every InferenceService in it edited, other documents as they are.

    Args:
        source: what messages call the text.
        nothing: the message where no resource was changed.

    Raises SpecError.
    """
    documents = _documents(text, source)
    changed = False
    for document in documents:
        if _is_service(document):
            parse_service(document, source)
            _as_written_by_people(document)
            changed |= edit(document)
    if not changed:
        raise SpecError([Problem(source, "", "", nothing)])
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=100)


def services_in(text: str, source: str) -> list[dict[str, Any]]:
    """The InferenceServices of a text, as they stand. Raises SpecError where there is none."""
    found = [document for document in _documents(text, source) if _is_service(document)]
    if not found:
        raise SpecError([Problem(source, "", "", f"holds no {names.KIND}.")])
    for document in found:
        parse_service(document, source)
    return found


def promote(resource: dict[str, Any]) -> bool:
    """Move what the canary has otherwise up into the spec, and take the canary away."""
    spec = resource["spec"]
    rollout = spec.get("rollout") or {}
    canary = rollout.pop("canary", None)
    if not rollout:
        spec.pop("rollout", None)
    if canary is None:
        return False
    model = canary.get("model") or {}
    if "uri" in model and "revision" not in model:
        spec["model"].pop("revision", None)  # it belongs to the old one
    spec["model"].update(model)
    if canary.get("engine") is not None:
        spec["engine"] = canary["engine"]
    return True


def restart(now: datetime) -> Edit:
    """Have the workers replaced, one after the other, by new ones that are just the same."""

    def edit(resource: dict[str, Any]) -> bool:
        metadata = resource["metadata"]
        moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["annotations"] = {**(metadata.get("annotations") or {}), names.RESTARTED: moment}
        return True

    return edit


def _documents(text: str, source: str) -> list[Any]:
    return [item for document in parse_documents(text, source) for item in _items(document)]


def _is_service(document: Any) -> bool:
    return isinstance(document, dict) and document.get("kind") == names.KIND


def _items(document: Any) -> Iterator[Any]:
    """The documents of what ``kubectl get`` calls a List."""
    if isinstance(document, dict) and document.get("kind") == "List":
        yield from document.get("items") or ()
    else:
        yield document


def _as_written_by_people(resource: dict[str, Any]) -> None:
    resource.pop("status", None)
    metadata = resource["metadata"]
    for name in _SERVER_FIELDS:
        metadata.pop(name, None)
    annotations = metadata.get("annotations") or {}
    annotations.pop(_LAST_APPLIED, None)
    if not annotations:
        metadata.pop("annotations", None)
