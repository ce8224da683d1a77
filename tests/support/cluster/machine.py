"""What a machine must have to carry the real cluster, and how to get what is missing.

Asked before a cluster is started, so that a person reads one message with the command that helps,
not the failure of some daemon.
"""

import ctypes
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import archives, cgroups, programs

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables-restore": "iptables",
    "conntrack": "conntrack",
    "busybox": "busybox",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "skopeo": "skopeo",
}
"""Program → Debian package."""

CNI_PLUGINS = Path("/usr/lib/cni")
CNI_PACKAGE = "containernetworking-plugins"
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


WATCHES = 25
"""What was counted in a running cluster, and a few."""


class UnfitMachineError(Exception):
    """The machine cannot carry a cluster; the message says what it lacks and what helps."""


@dataclass(frozen=True)
class Lack:
    """One thing that is missing, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} ({self.remedy})"


def require() -> None:
    """Raises UnfitMachineError."""
    if missing := lacks():
        raise UnfitMachineError("no real cluster on this machine: " + "; ".join(map(str, missing)))


def lacks() -> list[Lack]:
    """What is missing; empty on a machine that can carry a cluster."""
    found = []
    if os.uname().sysname != "Linux":
        return [Lack("it is not Linux", "use a Linux machine, or kind: make cluster-kind")]
    if os.geteuid() != 0:
        found.append(Lack("not root, which namespaces and cgroups need", "sudo make test-cluster"))
    packages = sorted({package for name, package in PACKAGES.items() if not _has(name)})
    if not (CNI_PLUGINS / "ptp").exists():
        packages.append(CNI_PACKAGE)
    if packages:
        names = " ".join(packages)
        found.append(Lack(f"packages are missing: {names}", f"apt-get install {names}"))
    elif _is_static("busybox"):
        found.append(Lack("busybox is linked statically", "apt-get install busybox"))
    found += _go_lacks()
    if not cgroups.ROOT.exists() or not cgroups.hierarchies():
        found.append(Lack("no cgroups", f"mount them at {cgroups.ROOT}"))
    elif os.geteuid() == 0 and _has("unshare") and not _may_make_namespaces():
        found.append(
            Lack("namespaces are forbidden", "run outside a container, or a privileged one")
        )
    return found


def has_watches() -> bool:
    """Whether the kernel still has the inotify instances that the daemons of a cluster open."""
    libc = ctypes.CDLL(None, use_errno=True)
    opened: list[int] = [libc.inotify_init1(os.O_CLOEXEC) for _ in range(WATCHES)]
    for descriptor in opened:
        if descriptor >= 0:
            os.close(descriptor)
    return min(opened) >= 0


def _go_lacks() -> list[Lack]:
    wanted = re.search(r"^go (\S+)", (programs.MODULES / "go.mod").read_text(), re.MULTILINE)
    assert wanted
    remedy = f"install Go {wanted[1]} or newer from https://go.dev/dl"
    if not shutil.which("go"):
        return [Lack("Go is missing", remedy)]
    answer = subprocess.run(
        ["go", "env", "GOVERSION", "GOTOOLCHAIN"], capture_output=True, text=True
    )
    version, _, toolchain = answer.stdout.strip().partition("\n")
    # With this setting an older Go fetches the right one by itself.
    if toolchain != "auto" and _numbers(version) < _numbers(wanted[1]):
        return [Lack(f"{version} is too old", remedy)]
    return []


def _has(program: str) -> bool:
    path = os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM_FOLDERS))
    return shutil.which(program, path=path) is not None


def _is_static(program: str) -> bool:
    """Such a one cannot resolve names in a container."""
    try:
        archives.libraries(shutil.which(program) or program)
        return False
    except RuntimeError:
        return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _may_make_namespaces() -> bool:
    command = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "mount",
        "-t",
        "tmpfs",
        "x",
        "/run",
    ]
    return subprocess.run(command, capture_output=True).returncode == 0
