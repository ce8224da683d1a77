"""The services of a local run: what the files say, if a run without a cluster can honour it.

``run`` reads them at the start, ``control`` whenever they change.
"""

from collections.abc import Iterable
from pathlib import Path

from sluice_api.inference_service import InferenceService
from sluice_api.service_files import load_files
from sluice_api.spec_errors import Problem, SpecError
from sluice_operator.plan import refusals


def load_services(paths: Iterable[Path | str]) -> list[InferenceService]:
    """The services of all files and folders, in order.

    Raises :class:`SpecError` with every problem: what :func:`load_files` finds and, in files that
    are right, what would need a cluster.
    """
    services = load_files(paths)
    problems = [
        Problem("", service.key, field, message)
        for service in services
        for field, message in refusals(service)
    ]
    if problems:
        raise SpecError(problems)
    return services
