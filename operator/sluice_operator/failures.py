"""A write that the API server refused, shown to the service's owner.

``reconcile`` keeps the last refusal of each service and lays it over the status that planning
wants, until the writes go through. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sluice_api.wording import sentence
from sluice_operator.api_errors import ApiError, Foreign, Invalid, PermissionDenied, QuotaExceeded

MESSAGE_LENGTH: Final = 1000
TOLD_TRIES: Final = 5
"""After so many in a row, some seconds, what should pass by itself is told as well."""

_PLACEMENT = re.compile(
    r"\.?spec\.template\.spec\."
    r"(affinity|tolerations|topologySpreadConstraints|nodeSelector|priorityClassName|runtimeClassName)"
)
"""What a pod takes over from ``spec.hardware`` as it is, under the same names."""
_PATH = re.compile(r"spec\.hardware\.[A-Za-z]+(?:[.\[][A-Za-z0-9_]+\]?)*")


@dataclass(frozen=True, slots=True)
class Failure:
    """What stands against a service.

    Attributes:
        reason: of the closed list; empty for what may pass by itself.
        message: a line for people.
    """

    reason: str
    message: str


def failure_of(error: ApiError, tries: int) -> Failure | None:
    """What an owner should know of ``error``; None for what passes by itself.

    Args:
        tries: so many in a row have failed.
    """
    said = sentence(error.message[:MESSAGE_LENGTH])
    match error:
        case PermissionDenied():
            told = (
                f"The operator may not {error.verb} {error.resource}: {said} "
                "Have the platform team compare its role with the chart's."
            )
            return Failure("PermissionDenied", told[:MESSAGE_LENGTH])
        case QuotaExceeded():
            told = f"{said} Raise the namespace's ResourceQuota, or ask for less."
            return Failure("QuotaExceeded", told[:MESSAGE_LENGTH])
        case Foreign():
            return Failure("FieldConflict", f"{said} Delete it, or rename the service.")
        case Invalid():
            return Failure("InvalidSpec", _invalid(error.message))
        case _ if tries >= TOLD_TRIES:
            told = (
                f"The API server does not {error.verb} {error.resource}: {said}"
                " It is tried again, once a minute at last; the platform team should look at the"
                " API server and its webhooks."
            )
            return Failure("", told)
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


def _invalid(said: str) -> str:
    """What the API server says of an object of ours, in the names of the spec."""
    told = _PLACEMENT.sub(r"spec.hardware.\1", said)[:MESSAGE_LENGTH]
    field = _PATH.search(told)
    remedy = f"Correct {field[0]}." if field else "Correct the spec."
    return f"Kubernetes refuses what the spec asks for: {sentence(told)} {remedy}"


def shown(
    status: Mapping[str, Any], failure: Failure, before: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """``status`` with the failure in it: Stalled, and not Ready unless workers answer.

    What may pass by itself is told where the service is on its way, and stalls nothing.
    ``before`` is the status as it stands; conditions that stay keep their time.
    """
    conditions = {one["type"]: dict(one) for one in status.get("conditions", ())}
    stood = {one["type"]: one for one in before.get("conditions", ())}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def put(kind: str, state: str, reason: str) -> None:
        old = stood.get(kind, {})
        since = old.get("lastTransitionTime", stamp) if old.get("status") == state else stamp
        conditions[kind] = {
            "type": kind,
            "status": state,
            "reason": reason,
            "message": failure.message,
            "lastTransitionTime": since,
            "observedGeneration": status.get("observedGeneration", 0),
        }

    ready = conditions.get("Ready", {})
    answers = ready.get("status") == "True"
    if failure.reason:
        put("Stalled", "True", failure.reason)
        # One or the other: tools that read both would call a stalled service under way.
        put("Reconciling", "False", failure.reason)
        if not answers:
            put("Ready", "False", failure.reason)
    elif conditions.get("Stalled", {}).get("status") != "True":
        reason = "RollingOut" if answers else ready.get("reason", "Starting")
        if not any(revision["proven"] for revision in status.get("revisions", ())):
            reason = "Starting"  # There is nothing yet beside which a change could start.
        put("Reconciling", "True", reason)
        if not answers:
            put("Ready", "False", reason)
    return {**status, "conditions": list(conditions.values())}
