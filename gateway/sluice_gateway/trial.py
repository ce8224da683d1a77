"""The revision on trial, as the table would tell of it were it a service of its own. Pure.

Called by ``service``, which has it followed beside the revision that runs.
"""

from typing import Final

import msgspec

from sluice_api import wire

_NO_WORKER: Final = wire.Failure(
    reason="CanaryAway",
    message="The revision on trial has no ready worker",
    retry_after_seconds=1.0,
)
"""Nobody waits for a revision on trial: who was to have its answer gets the other revision's."""


def trial_of(spec: wire.Service) -> wire.Service | None:
    """The revision on trial as a service of its own."""
    canary = spec.canary
    if canary is None or canary.revision == spec.revision:
        return None  # None, or one that has passed.
    return msgspec.structs.replace(
        spec,
        revision=canary.revision,
        answer_digest=canary.answer_digest,
        tasks=canary.tasks,
        endpoints=[entry for entry in spec.endpoints if entry.revision == canary.revision],
        failure=_NO_WORKER,
        delay=None,
        dormancy=None,
        canary=None,
    )
