"""A write that the API server refused, shown to the service's owner.

``reconcile`` keeps the last refusal of each service and lays it over the status that planning
wants, until the writes go through. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sluice_operator.api_errors import ApiError, Foreign, Invalid, PermissionDenied, QuotaExceeded

MESSAGE_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """What stands against a service: a reason of the closed list, and a line for people."""

    reason: str
    message: str


def failure_of(error: ApiError) -> Failure | None:
    """What an owner should know of ``error``; None for what passes by itself."""
    match error:
        case PermissionDenied():
            told = (
                f"The operator may not {error.verb} {error.resource}: {error.message}. "
                "Have the platform team compare its role with the chart's."
            )
            return Failure("PermissionDenied", told[:MESSAGE_LENGTH])
        case QuotaExceeded():
            told = f"{error.message}. Raise the namespace's ResourceQuota, or ask for less."
            return Failure("QuotaExceeded", told[:MESSAGE_LENGTH])
        case Foreign():
            return Failure("FieldConflict", f"{error.message}. Delete it, or rename the service.")
        case Invalid():
            told = f"Kubernetes refuses what the spec asks for: {error.message}"
            return Failure("InvalidSpec", told[:MESSAGE_LENGTH])
        case _:
            return None


def contested_by(repairs: str) -> Failure:
    """What an owner should know of repairs that did not last.

    Args:
        repairs: what was repaired again and again, and whom from.
    """
    told = (
        f"Others undo what Sluice asks for, again and again: {repairs}. Sluice goes on with pauses"
        " of up to 10 minutes. Have whoever writes there leave out what belongs to a service."
    )
    return Failure("FieldConflict", told[:MESSAGE_LENGTH])


def shown(
    status: Mapping[str, Any], failure: Failure, before: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """``status`` with the failure in it: Stalled, and not Ready unless workers answer.

    ``before`` is the status as it stands; conditions that stay keep their time.
    """
    conditions = {one["type"]: dict(one) for one in status.get("conditions", ())}
    stood = {one["type"]: one for one in before.get("conditions", ())}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def put(kind: str, state: str) -> None:
        old = stood.get(kind, {})
        since = old.get("lastTransitionTime", stamp) if old.get("status") == state else stamp
        conditions[kind] = {
            "type": kind,
            "status": state,
            "reason": failure.reason,
            "message": failure.message,
            "lastTransitionTime": since,
            "observedGeneration": status.get("observedGeneration", 0),
        }

    put("Stalled", "True")
    if conditions.get("Ready", {}).get("status") != "True":
        put("Ready", "False")
    return {**status, "conditions": list(conditions.values())}
