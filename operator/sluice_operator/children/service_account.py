"""The ServiceAccount of a service's workers: an identity without any right and without a token."""

from typing import Any

from sluice_operator.children.identity import Rendering, of_service


def render_service_account(rendering: Rendering) -> dict[str, Any]:
    content = {"automountServiceAccountToken": False}
    return of_service("v1", "ServiceAccount", rendering, content)
