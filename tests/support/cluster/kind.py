"""A cluster of kind, for people who have Docker: the same tests and the same platform run on it.

`make cluster-kind` makes it from tests/cluster/kind.yaml. It is a foreign cluster to the tests:
`SLUICE_TEST_CLUSTER=kind-sluice make test-cluster`.
"""

import shutil
import subprocess
from pathlib import Path

from tests.support.images.builder import docker_serves

from .foreign import ForeignCluster
from .machine import Lack, UnfitMachineError

NAME = "sluice"
MANIFEST = Path(__file__).parents[2] / "cluster" / "kind.yaml"
REMEDIES = {
    "docker": "https://docs.docker.com/engine/install",
    "kind": "go install sigs.k8s.io/kind@v0.33.0",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "helm": "go install helm.sh/helm/v4/cmd/helm@v4.3.1",
}
CREATE_SECONDS = 600.0
LIST_SECONDS = 60.0


def make() -> ForeignCluster:
    """The cluster, made if it is not there. Raises UnfitMachineError, RuntimeError."""
    if missing := lacks():
        raise UnfitMachineError("no kind cluster on this machine: " + "; ".join(map(str, missing)))
    if NAME not in _kind("get", "clusters", seconds=LIST_SECONDS).split():
        _kind(
            *("create", "cluster", "--name", NAME, "--config", str(MANIFEST), "--wait", "120s"),
            seconds=CREATE_SECONDS,
        )
    return ForeignCluster(f"kind-{NAME}")


def lacks() -> list[Lack]:
    """What this machine needs for kind and does not have."""
    missing = [name for name in REMEDIES if not shutil.which(name)]
    found = [Lack(f"{name} is missing", REMEDIES[name]) for name in missing]
    if "docker" not in missing and not docker_serves():
        found.append(Lack("Docker does not answer", "start its daemon, or join the group docker"))
    return found


def _kind(*arguments: str, seconds: float) -> str:
    answer = subprocess.run(["kind", *arguments], capture_output=True, text=True, timeout=seconds)
    if answer.returncode:
        raise RuntimeError(f"kind {' '.join(arguments)}: {answer.stderr}")
    return answer.stdout
