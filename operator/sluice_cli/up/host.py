"""What this machine offers: CPU cores and memory, with the limits of its control groups applied.

``control.py`` turns it into the room that ``plan.py`` plans with. Where a figure cannot be had
(no ``/proc``), it is unknown, and only the cores bound the number of workers.
"""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """CPU cores this process may use, at least 1."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # Not on macOS.
        usable = os.cpu_count() or 1
    return max(1, int(min(usable, _cpu_quota())))


def free_memory_bytes() -> int | None:
    """Memory that new processes can take without anything being pushed out; None if unknown."""
    free = _meminfo("MemAvailable")
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is None or used is None:
        return free
    return limit - used if free is None else min(free, limit - used)


def resident_bytes(pid: int) -> int | None:
    """Memory that a process holds; None when it has ended or it is unknown."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cpu_quota() -> float:
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    quota_us = _number(_CGROUP / "cpu" / "cpu.cfs_quota_us")
    period_us = _number(_CGROUP / "cpu" / "cpu.cfs_period_us")
    if quota_us is None or period_us is None or quota_us <= 0:
        return math.inf
    return quota_us / period_us


def _meminfo(name: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
