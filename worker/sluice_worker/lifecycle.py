"""Where the worker stands, and the two questions about it: is it live, is it ready?

*Live* is progress: work waits and no batch finishes, or the engine only fails, or the event loop
has stopped turning. Being idle, being busy and still loading are all live. *Ready* is loaded,
warmed up and not draining. Overload flips neither: it answers 429. Read by the admin thread,
written by the event loop and the thread that loads; every write replaces one immutable state.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from sluice_api.tasks import Task
from sluice_api.wire import Capacity, Phase, Readiness

log = logging.getLogger(__name__)

STALL_SECONDS = 120.0
"""Work that waits this long without any batch finishing means the worker hangs."""

FAILURES_IN_A_ROW = 5
"""The engine itself failed so often without a success in between: it is broken. What fails by its
own input or parameters does not count."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What was loaded; empty until then."""

    answer_digest: str = ""
    tasks: tuple[Task, ...] = ()
    labels: tuple[str, ...] = ()
    max_input_tokens: int | None = None
    dimensions: int | None = None
    dtype: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class State:
    phase: Phase = Phase.STARTING
    progress: float | None = None
    message: str = ""


class Progress:
    """What the health checks know of the computing; written by the loop."""

    def __init__(self) -> None:
        self.waiting_since: float | None = None
        """Since when work has been waiting or running without a batch finishing; None if idle."""
        self.failures_in_a_row = 0

    def __repr__(self) -> str:
        return f"<Progress waiting since {self.waiting_since}, {self.failures_in_a_row} failures>"


class Lifecycle:
    """One per process."""

    def __init__(self, model: str, revision: str, now: float) -> None:
        self.state = State()
        self.identity = Identity()
        self.progress = Progress()
        self.capacity: Callable[[], Capacity] | None = None
        """Set once there is a loop that knows."""
        self._model = model
        self._revision = revision
        self._last_turn = now

    def __repr__(self) -> str:
        state = self.state
        share = "" if state.progress is None else f" {state.progress:.0%}"
        return f"<Lifecycle {state.phase}{share} {state.message}>"

    @property
    def ready(self) -> bool:
        return self.state.phase is Phase.READY

    @property
    def draining(self) -> bool:
        return self.state.phase is Phase.DRAINING

    def report(self, phase: Phase, progress: float | None = None, message: str = "") -> None:
        """Take note of how far loading is. From any thread; ignored once draining."""
        before = self.state
        if before.phase is Phase.DRAINING:
            return
        self.state = State(phase, progress, message)
        if phase is not before.phase:
            _log(self.state)

    def turn(self, now: float) -> None:
        """The event loop turned: it is alive."""
        self._last_turn = now

    def drain(self) -> None:
        """Readiness ends now, whatever the phase was; liveness does not."""
        self.state = replace(self.state, phase=Phase.DRAINING, progress=None, message="")
        _log(self.state)

    def ailment(self, now: float) -> str | None:
        """Why the process should be restarted, or None while it is live."""
        if now - self._last_turn > STALL_SECONDS:
            return f"the event loop has not turned for {now - self._last_turn:.0f} s"
        since = self.progress.waiting_since
        if since is not None and now - since > STALL_SECONDS:
            return f"work has been waiting for {now - since:.0f} s and no batch has finished"
        if self.progress.failures_in_a_row >= FAILURES_IN_A_ROW:
            return f"the engine failed {self.progress.failures_in_a_row} times in a row"
        return None

    def readiness(self) -> Readiness:
        """The body of ``GET /readyz``."""
        state, identity = self.state, self.identity
        return Readiness(
            phase=state.phase,
            model=self._model,
            revision=self._revision,
            progress=state.progress,
            message=state.message,
            answer_digest=identity.answer_digest,
            tasks=list(identity.tasks),
            labels=list(identity.labels),
            max_input_tokens=identity.max_input_tokens,
            dimensions=identity.dimensions,
            dtype=identity.dtype,
            device=identity.device,
            capacity=self.capacity() if self.capacity else None,
        )


def _log(state: State) -> None:
    detail = {"detail": state.message} if state.message else {}
    log.info("phase", extra={"phase": str(state.phase), **detail})
