"""What this process may compute on: how many processors, which instructions, which accelerator.

A container sees every processor of its node but may use a few: more threads than the quota allows
have been measured to cost up to 45 times. So the count comes from the cgroup and the affinity mask,
and is set before torch starts. Importing this module loads nothing heavy.
"""

import math
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sluice_worker.models.errors import BadConfiguration

_CGROUPS = Path("/sys/fs/cgroup")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Dtype:
    """The type that weights and activations have, and why.

    Attributes:
        name: ``float32``, ``bfloat16`` or ``float16``.
    """

    name: str
    reason: str


def available_cpus() -> int:
    """Threads that can really run at once: the affinity mask, bounded by the cgroup's quota."""
    try:
        membership = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        membership = ""
    return usable_cpus(len(os.sched_getaffinity(0)), cgroup_quota(membership, _CGROUPS))


def usable_cpus(affinity: int, quota: float | None) -> int:
    """Whole processors. Part of one does not carry a thread of its own; at least one remains."""
    return affinity if quota is None else max(1, min(affinity, math.floor(quota)))


def cgroup_quota(membership: str, root: Path) -> float | None:
    """Processors that the kernel grants, as a fraction; None for no limit.

    Args:
        membership: the content of ``/proc/self/cgroup``.
        root: where the cgroup file systems are mounted, version 1, 2 or both.

    Every ancestor's limit binds too, so the smallest counts. Inside a container the path may be
    the host's and not exist here; then the mount's own root is the container's group.
    """
    quotas = []
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for group in _ancestors(root, path):
                quotas.append(quota_v2(_read(group / "cpu.max")))
        elif "cpu" in controllers.split(","):
            for group in _ancestors(root / controllers, path):
                quota = _read(group / "cpu.cfs_quota_us")
                quotas.append(quota_v1(quota, _read(group / "cpu.cfs_period_us")))
    return min((quota for quota in quotas if quota is not None), default=None)


def quota_v2(cpu_max: str) -> float | None:
    """``cpu.max``: microseconds granted per period, or ``max``."""
    match cpu_max.split():
        case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return None


def quota_v1(quota: str, period: str) -> float | None:
    """``cpu.cfs_quota_us`` (-1 for no limit) and ``cpu.cfs_period_us``."""
    granted, length = quota.strip(), period.strip()
    if granted.isdigit() and length.isdigit() and int(length):
        return int(granted) / int(length)
    return None


def limit_threads(count: int, environment: MutableMapping[str, str] | None = None) -> None:
    """Tell the numeric libraries how many threads to start. Call it before torch is imported.

    Tokenizers get one: they run on threads of ours already. Threads that wait sleep, unless the
    environment says otherwise: spinning costs little on idle processors and up to 15 times the
    batch's time on shared ones, and lanes of one thread never wait for each other at all.
    """
    target = os.environ if environment is None else environment
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        target[name] = str(count)
    target["TOKENIZERS_PARALLELISM"] = "false"
    target.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def set_threads(count: int) -> None:
    """Compute with ``count`` threads whenever the calling thread computes (OpenMP counts so)."""
    import torch

    torch.set_num_threads(count)


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Instruction sets, from the content of ``/proc/cpuinfo``."""
    for line in cpuinfo.splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def choose_device(wanted: str) -> str:
    """``cpu`` or ``cuda``. ``auto`` takes an accelerator where there is one.

    Raises BadConfiguration when the accelerator that was asked for is not there.
    """
    if wanted == "cpu":
        return "cpu"
    if wanted not in ("auto", "cuda", "gpu"):
        raise BadConfiguration(f"device: got {wanted!r}, needs auto, cpu or cuda.")
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "auto":
        return "cpu"
    raise BadConfiguration(
        "device: cuda was asked for, but torch sees no accelerator here. Check that the node has "
        "one, that the container was given it, and that torch is a CUDA build."
    )


def computes_bfloat16(device: str) -> bool:
    """Whether ``device``, as :func:`choose_device` chose it, has instructions for bfloat16."""
    if device == "cpu":
        return False
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def resolve_dtype(
    wanted: str, device: str, flags: frozenset[str], *, stored: object = None, bfloat16: bool = True
) -> Dtype:
    """What ``auto`` means here, or what was asked for. Raises BadConfiguration.

    Args:
        stored: the type of the weights, as the model's configuration has it.
        bfloat16: whether the accelerator has instructions for it.
    """
    if wanted in _DTYPES:
        return Dtype(wanted, _asked_reason(wanted, device, flags))
    if wanted != "auto":
        raise BadConfiguration(f"model.dtype: got {wanted!r}, needs auto or {', '.join(_DTYPES)}.")
    if device == "cuda" and stored == "bfloat16" and bfloat16:
        return Dtype("bfloat16", "as the weights are stored; float16 may not reach their numbers")
    if device == "cuda":
        return Dtype("float16", "the accelerator computes 16 bits at several times the speed")
    return Dtype("float32", "on a CPU: exact, and the same answer on every processor")


def _asked_reason(wanted: str, device: str, flags: frozenset[str]) -> str:
    if device != "cpu" or wanted == "float32":
        return "asked for"
    native = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "fphp"}}
    if native[wanted] & flags:
        return "asked for"
    return (
        "asked for; but this processor has no instructions for it: float32 is several times faster"
    )


def available_memory_bytes() -> int:
    """What this process may still take: the machine's free memory, bounded by the cgroup's."""
    free = _meminfo(_read(Path("/proc/meminfo")))
    membership = _read(Path("/proc/self/cgroup"))
    group = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), "/")
    for folder in _ancestors(_CGROUPS, group):
        limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            free = min(free, max(0, int(limit) - int(used)))
    return free


def _meminfo(text: str) -> int:
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _ancestors(mount: Path, path: str) -> Iterator[Path]:
    inside = PurePosixPath(path.lstrip("/"))
    for part in (inside, *inside.parents):
        if ".." not in part.parts:
            yield mount / part


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
