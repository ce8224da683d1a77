"""What this process holds in memory, in MiB, and the most it has held since a moment."""

import re
from pathlib import Path


def reset_peak() -> float:
    """Begin to measure; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _field("VmRSS")


def peak() -> float:
    """The most that was resident since :func:`reset_peak`."""
    return _field("VmHWM")


def _field(name: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]) / 1024  # type: ignore[index]
