"""The cgroup of one test cluster: made before its kubelet starts, removed after its last process.

The box makes and removes its own; whoever starts a cluster also removes those of boxes that were
killed (a killed process cannot tidy up). Knows both generations of cgroups.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNIFIED = "cgroup.controllers"  # a file that only cgroup v2 has


def hierarchies() -> list[Path]:
    """The root folder of every hierarchy: one with cgroup v2, one a controller with v1."""
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


def remove(name: str) -> None:
    """Remove the folders, deepest first; one that still has processes stays."""
    for root in hierarchies():
        folder = root / name
        if folder.is_dir():
            for path in (*_depth_first(folder), folder):
                try:
                    path.rmdir()
                except OSError:
                    pass


def present(name: str) -> list[Path]:
    """The folders that there are."""
    return [root / name for root in hierarchies() if (root / name).exists()]


def _depth_first(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _depth_first(path)
            yield path


def _is_v1(path: Path) -> bool:
    return (path / "cgroup.procs").exists() and not (path / UNIFIED).exists()
