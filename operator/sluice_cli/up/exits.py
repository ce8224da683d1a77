"""How a child ended, in words: for the person at the terminal, for the table, and for callers.

``supervisor.py`` makes one for each process that has ended; ``service.py`` keeps the last.
"""

import signal
from dataclasses import dataclass

from sluice_api import names

_REASONS = {
    names.EXIT_MODEL_NOT_FOUND: "ModelNotFound",
    names.EXIT_MODEL_DOWNLOAD_FAILED: "ModelDownloadFailed",
    names.EXIT_MODEL_REJECTED: "ModelRejected",
    names.EXIT_BAD_CONFIGURATION: "InvalidSpec",
}
_FOR_CALLERS = {
    names.EXIT_MODEL_NOT_FOUND: "There is no model at {uri}.",
    names.EXIT_MODEL_DOWNLOAD_FAILED: "The model {uri} cannot be downloaded.",
    names.EXIT_MODEL_REJECTED: "The model {uri} is not one that can be served.",
    names.EXIT_BAD_CONFIGURATION: "The settings of this service do not suit {uri} or this machine.",
}


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended.

    Attributes:
        code: its exit code; negative for the signal that ended it.
        last_line: the last line it wrote; empty when it wrote none.
    """

    code: int
    last_line: str = ""

    @property
    def explained(self) -> bool:
        """Whether the process itself said why, so that it will end the same way again."""
        return self.code in _REASONS

    @property
    def reason(self) -> str:
        """One of the platform's reasons, for tables."""
        return _REASONS.get(self.code, "CrashLoop")

    @property
    def cause(self) -> str:
        """The reason where there is one, else what is known: ``SIGKILL``, ``exit code 1``."""
        if self.code < 0:
            return signal.Signals(-self.code).name
        return _REASONS.get(self.code, f"exit code {self.code}")

    def describe(self) -> str:
        """One line for people: reason, code, last words."""
        if self.code < 0:
            # What it wrote last has nothing to do with a signal.
            killed = " (out of memory, or killed by hand)" if self.code == -signal.SIGKILL else ""
            return f"ended by {self.cause}{killed}"
        how = f"{self.cause}, exit code {self.code}" if self.explained else self.cause
        return f"{how}: {self.last_line}" if self.last_line else how

    def tell_callers(self, uri: str) -> str:
        """One sentence without the last words: they may hold what is no caller's business."""
        known = _FOR_CALLERS.get(self.code, "The workers of {uri} end again and again.")
        return known.format(uri=uri)
