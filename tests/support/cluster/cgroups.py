"""The cgroup of one test cluster: made before its kubelet starts, removed after its last process.

The box makes and removes its own; whoever starts a cluster also removes those of boxes that were
killed (a killed process cannot tidy up). Knows both generations of cgroups, and both at once.
"""

import os
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNIFIED = "cgroup.controllers"  # a file that only cgroup v2 has
SHARES = {"cpu.shares": "4096", "cpu.weight": "400"}
"""Of the processors, for all pods of a cluster: of old and of new cgroups, four times the usual.

On a node of their own, pods share with a few daemons. Here every other process of the tests would
weigh as much as all of them, and what has small requests would hardly run at all.
"""


def hierarchies() -> list[Path]:
    """The roots of those that have the controllers: one with cgroup v2, one each with v1."""
    if (ROOT / UNIFIED).exists():
        return [ROOT]
    return [path for path in sorted(ROOT.iterdir()) if path.is_dir() and _is_v1(path)]


def make(name: str) -> None:
    """Make the cluster's folder in every hierarchy, with every controller switched on."""
    for root in hierarchies():
        folder = root / name
        folder.mkdir(exist_ok=True)
        if (root / UNIFIED).exists():
            for place in (root, folder):
                controllers = (place / UNIFIED).read_text().split()
                wanted = " ".join(f"+{controller}" for controller in controllers)
                (place / "cgroup.subtree_control").write_text(wanted)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # v1 refuses processes while they are empty
            if root.name == "cpuset":
                (folder / setting).write_text((root / setting).read_text())
        for setting, share in SHARES.items():
            if (folder / setting).exists():
                (folder / setting).write_text(share)


def remove(name: str) -> None:
    """Remove the folders, deepest first; one that still has processes stays."""
    for root in _mounted():
        for folder, _, _ in os.walk(root / name, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


def names(prefix: str) -> set[str]:
    """What begins so, of any cluster."""
    return {folder.name for root in _mounted() for folder in root.glob(f"{prefix}*")}


def _mounted() -> list[Path]:
    """Like `hierarchies`, with cgroup v2 beside v1: runc makes folders there as well."""
    inner = [path for path in ROOT.iterdir() if (path / "cgroup.procs").exists()]
    return [ROOT] if (ROOT / UNIFIED).exists() else inner


def _is_v1(path: Path) -> bool:
    return (path / "cgroup.procs").exists() and not (path / UNIFIED).exists()
