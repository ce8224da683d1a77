"""The platform on a real cluster, put there by Helm as a platform team would.

Cluster tests that need operator and gateways as pods install it with this; tests/cluster/test_chart
looks at installing itself.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from typing import Any

from sluice_api import names
from tests.support import chart, redis_image
from tests.support.cluster.access import Access
from tests.support.images.loading import load
from tests.support.images.recipes import RECIPES

INSTALL_SECONDS = 180.0
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@dataclass(frozen=True)
class Release:
    """One release of the chart on one cluster, there or not."""

    cluster: Access
    namespace: str = chart.NAMESPACE
    name: str = chart.RELEASE

    def load_images(self, *names: str) -> list[str]:
        """Build and load the images of operator, gateway and Redis, and those that are named.

        Returns those of ours that are other ones than before.
        """
        new = load(self.cluster, "operator", "gateway", *names)
        self.cluster.load(redis_image.archive())
        return new

    def make_namespace(self) -> None:
        """The release's namespace, in which only restricted pods may run."""
        made = self.cluster.kubectl("create", "namespace", self.namespace, check=False)
        if made.returncode and "already exists" not in made.stderr:
            raise RuntimeError(made.stderr)
        self.cluster.kubectl("label", "--overwrite", "namespace", self.namespace, RESTRICTED)

    def install(self, values: Mapping[str, Any] | None = None, *arguments: str) -> str:
        """Install or upgrade, and wait until it serves. Returns what Helm said.

        Raises RuntimeError with the reason.
        """
        return self._helm("upgrade", "--install", values, *arguments, "--wait")

    def refuse(self, values: Mapping[str, Any] | None = None, *arguments: str) -> str:
        """Helm's error where it refuses to install. Raises AssertionError where it does not."""
        try:
            said = self._helm("install", "", values, *arguments)
        except RuntimeError as error:
            return str(error)
        raise AssertionError(f"Helm installed it: {said}")

    def _helm(
        self, verb: str, option: str, values: Mapping[str, Any] | None, *arguments: str
    ) -> str:
        with NamedTemporaryFile("w", suffix=".json") as images, NamedTemporaryFile("w") as own:
            json.dump(chart.TEST_IMAGES, images)
            json.dump(values or {}, own)
            images.flush()
            own.flush()
            return self.cluster.helm(
                *(verb, *filter(None, [option]), self.name, str(chart.CHART)),
                *("--namespace", self.namespace, "--values", images.name, "--values", own.name),
                *("--timeout", f"{INSTALL_SECONDS:.0f}s", *arguments),
                seconds=INSTALL_SECONDS + 30,
            ).stdout

    def restart(self, images: Collection[str]) -> None:
        """Have the pods of operator and gateways replaced that ran an earlier one of ``images``.

        Their tag says nothing of it, so neither Helm nor Kubernetes does. Raises RuntimeError.
        """
        namespace = ("--namespace", self.namespace)
        stale = [
            f"deployment/sluice-{component}"
            for component in ("operator", "gateway")
            if RECIPES[component].reference in images
        ]
        if stale:
            self.cluster.kubectl("rollout", "restart", *stale, *namespace)
        for deployment in stale:
            timeout = f"--timeout={INSTALL_SECONDS:.0f}s"
            self.cluster.kubectl(
                *("rollout", "status", deployment, *namespace, timeout),
                seconds=INSTALL_SECONDS + 30,
            )

    def helm(self, verb: str, *arguments: str) -> str:
        """`helm VERB RELEASE …` in its namespace. Raises RuntimeError."""
        return self.cluster.helm(
            verb, self.name, *arguments, "--namespace", self.namespace, seconds=INSTALL_SECONDS
        ).stdout

    def is_installed(self) -> bool:
        status = self.cluster.helm("status", self.name, "--namespace", self.namespace, check=False)
        return status.returncode == 0

    def values(self) -> dict[str, Any] | None:
        """What it was installed with, but for the images; None where it is not installed."""
        if not self.is_installed():
            return None
        said = self.cluster.helm(
            *("get", "values", self.name, "--namespace", self.namespace, "--output", "json")
        )
        found: dict[str, Any] = json.loads(said.stdout) or {}
        return {name: each for name, each in found.items() if name not in chart.TEST_IMAGES}

    @property
    def url(self) -> str:
        """Where tests outside reach the gateway: its Service, through a relay."""
        return self.cluster.service_url(self.namespace, "sluice-gateway")

    def pods(self, component: str) -> dict[str, str]:
        """Name → uid of the pods of operator, gateway or redis that are not on their way out."""
        return pods(self.cluster, self.namespace, _labels(component))

    def addresses(self, component: str) -> list[str]:
        """Those of the same pods, where they have one."""
        return [
            pod["status"]["podIP"]
            for pod in _staying(self.cluster, self.namespace, _labels(component))
            if "podIP" in pod["status"]
        ]

    def gateways(self) -> list[str]:
        """Where each is reached by itself: what one knows, another learns a moment later."""
        return [self.cluster.url(address, names.APP_PORT) for address in self.addresses("gateway")]

    def logs(self, component: str) -> str:
        """All that the pods of a component have said since their containers started."""
        return self.cluster.kubectl(
            *("logs", "-n", self.namespace, "-l", _labels(component), "--prefix", "--tail=-1")
        ).stdout

    def said_of(self, namespace: str, lines: int = 200) -> str:
        """What the operator said last that names a namespace, or that is a warning."""
        said = self.logs("operator").splitlines()
        names = (f"{namespace}/", '"warning"', '"error"')
        return "\n".join([line for line in said if any(n in line for n in names)][-lines:])


def pods(cluster: Access, namespace: str, labels: str) -> dict[str, str]:
    """Name → uid of the pods of these labels that are not on their way out."""
    staying = _staying(cluster, namespace, labels)
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in staying}


def _labels(component: str) -> str:
    return f"app.kubernetes.io/name=sluice,app.kubernetes.io/component={component}"


def _staying(cluster: Access, namespace: str, labels: str) -> list[dict[str, Any]]:
    found = cluster.read(f"/api/v1/namespaces/{namespace}/pods", labelSelector=labels)
    return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]
