"""What the cluster under the tests promises: that it is a real one, and that it ends whole."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.support.cluster import archives, leftovers
from tests.support.cluster.access import ClusterError
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.options import API_SERVER, SCHEDULER, Options

ROOT = Path(__file__).parents[2]
BUSYBOX = archives.BUSYBOX
WEB = {"app": "web"}
SERVE = "hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"
DROPPED_SECONDS = 2


def container(*command: str, **more: Any) -> dict[str, Any]:
    return {"name": "main", "image": BUSYBOX, "command": list(command)} | more


def pod(name: str, labels: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [container("sleep", "600")], "terminationGracePeriodSeconds": 0}
        | spec,
    }


def web(replicas: int) -> list[dict[str, Any]]:
    """A Deployment of HTTP servers with a readiness probe, and its Service on port 80."""
    probe = {"httpGet": {"path": "/index.html", "port": "http"}, "periodSeconds": 1}
    server = container(
        *("sh", "-c", SERVE),
        ports=[{"name": "http", "containerPort": 8080}],
        readinessProbe=probe,
    )
    template = {"containers": [server], "terminationGracePeriodSeconds": 0}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": WEB},
            "template": {"metadata": {"labels": WEB}, "spec": template},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": WEB, "ports": [{"port": 80, "targetPort": "http"}]},
    }
    return [deployment, service]


def policy(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "policy"},
        "spec": spec,
    }


def apply(cluster: Cluster, namespace: str, *items: dict[str, Any]) -> None:
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump_all(items))


def wait(cluster: Cluster, namespace: str, condition: str, what: str) -> None:
    cluster.kubectl("wait", "-n", namespace, f"--for={condition}", what, "--timeout=120s")


def start_web(cluster: Cluster, namespace: str, replicas: int = 1) -> None:
    apply(cluster, namespace, *web(replicas))
    wait(cluster, namespace, "condition=Available", "deployment/web")


def ask(cluster: Cluster, namespace: str, name: str, url: str) -> str:
    """What a pod gets from an address; empty if nothing within two seconds."""
    wget = f"timeout {DROPPED_SECONDS} wget -qO- {url}"
    said = cluster.kubectl("exec", "-n", namespace, name, "--", "sh", "-c", wget, check=False)
    return said.stdout.strip()


def get(url: str) -> str:
    """The answer; empty if the connection breaks, as it may while kube-proxy writes its rules."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            text: str = answer.read().decode().strip()
            return text
    except OSError:
        return ""


def test_a_deployment_is_served_to_pods_and_to_the_tests(cluster: Cluster, namespace: str) -> None:
    start_web(cluster, namespace, replicas=2)
    apply(cluster, namespace, pod("caller", {}))
    wait(cluster, namespace, "condition=Ready", "pod/caller")
    pods = cluster.kubectl("get", "pods", "-n", namespace, "-l", "app=web", "-o", "name").stdout
    names = {line.partition("/")[2] for line in pods.split()}
    assert len(names) == 2
    outside = cluster.service_url(namespace, "web") + "/index.html"
    cluster.until(lambda: get(outside) in names, "an answer for the tests")
    inside = "http://web/index.html"
    for name in names:
        cluster.until(
            lambda name=name: ask(cluster, namespace, "caller", inside) == name,  # type: ignore[misc]
            f"{name} answers",
        )
    for longer in (f"web.{namespace}", f"web.{namespace}.svc.cluster.local"):
        page = f"http://{longer}/index.html"
        cluster.until(
            lambda page=page: ask(cluster, namespace, "caller", page) in names,  # type: ignore[misc]
            f"{longer} answers",
        )
        cluster.exec(["getent", "hosts", longer])  # a command for `make cluster-exec` finds it too


def test_the_line_that_enters_it_works_in_any_folder(cluster: Cluster, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: mine, version: 1.0.0}")
    line = f"{cluster.entrance()} -c 'kubectl get --raw /readyz && helm show chart ./chart'"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # of a shell just opened
    entered = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert entered.returncode == 0, entered
    assert entered.stdout.startswith("ok")
    assert "name: mine" in entered.stdout


def test_no_name_outside_the_cluster_is_known(cluster: Cluster) -> None:
    answer = cluster.exec(["getent", "hosts", "example.com"], check=False)
    assert answer.returncode == 2


def test_a_policy_lets_only_labelled_pods_in(cluster: Cluster, namespace: str) -> None:
    start_web(cluster, namespace)
    apply(cluster, namespace, pod("gateway", {"role": "gateway"}), pod("stranger", {}))
    for name in ("gateway", "stranger"):
        wait(cluster, namespace, "condition=Ready", f"pod/{name}")
    url = "http://web/index.html"
    cluster.until(lambda: ask(cluster, namespace, "stranger", url), "no policy, no wall")
    callers = [{"podSelector": {"matchLabels": {"role": "gateway"}}}]
    rule = {"from": callers, "ports": [{"port": "http"}]}
    apply(cluster, namespace, policy(podSelector={"matchLabels": WEB}, ingress=[rule]))
    cluster.until(lambda: not ask(cluster, namespace, "stranger", url), "the stranger is shut out")
    cluster.until(lambda: ask(cluster, namespace, "gateway", url), "the gateway is let in")
    # The label decides, at once, for a pod that runs.
    cluster.kubectl("label", "pod", "stranger", "role=gateway", "-n", namespace)
    cluster.until(lambda: ask(cluster, namespace, "stranger", url), "the label opens")
    cluster.kubectl("label", "pod", "gateway", "role-", "-n", namespace)
    cluster.until(lambda: not ask(cluster, namespace, "gateway", url), "without it, shut out")


def test_a_policy_keeps_a_pod_from_going_out(cluster: Cluster, namespace: str) -> None:
    start_web(cluster, namespace)
    apply(cluster, namespace, pod("caller", {"app": "caller"}))
    wait(cluster, namespace, "condition=Ready", "pod/caller")
    kube_dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    dns_only = {"to": [kube_dns], "ports": [{"port": 53, "protocol": "UDP"}]}
    selector = {"matchLabels": {"app": "caller"}}
    url = "http://web/index.html"
    cluster.until(lambda: ask(cluster, namespace, "caller", url), "no policy, no wall")
    apply(
        cluster,
        namespace,
        policy(podSelector=selector, policyTypes=["Egress"], egress=[dns_only]),
    )
    cluster.until(lambda: not ask(cluster, namespace, "caller", url), "it stays in")
    lookup = [
        "exec",
        "-n",
        namespace,
        "caller",
        "--",
        "nslookup",
        f"web.{namespace}.svc.cluster.local",
    ]
    assert "Address" in cluster.kubectl(*lookup).stdout
    # The API server, at the node's own address, is out of its reach too.
    assert not ask(cluster, namespace, "caller", "http://kubernetes.default:443/")


def test_a_horizontal_autoscaler_scales(cluster: Cluster, namespace: str) -> None:
    start_web(cluster, namespace)
    cluster.kubectl(
        *("autoscale", "deployment/web", "-n", namespace, "--min=2", "--max=3", "--cpu=50%")
    )
    path = "jsonpath={.status.readyReplicas}=2"
    wait(cluster, namespace, path, "deployment/web")


def test_a_limit_is_enforced_by_the_kernel(cluster: Cluster, namespace: str) -> None:
    hungry = container(
        *("sh", "-c", "x=a; while true; do x=$x$x; done"),
        resources={"limits": {"memory": "32Mi"}},
    )
    apply(cluster, namespace, pod("hungry", {}, containers=[hungry]))

    def killed() -> bool:
        found = cluster.read(f"/api/v1/namespaces/{namespace}/pods/hungry")["status"]
        ends = [
            state["terminated"]["reason"]
            for status in found.get("containerStatuses") or ()
            for state in (status["state"], status["lastState"])
            if "terminated" in state
        ]
        return "OOMKilled" in ends

    # It starts again and again: containerd may hear of an end before it hears why.
    cluster.until(killed, "the kernel's kill")


def test_a_restricted_pod_has_no_rights(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl(
        *("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    )
    refused = cluster.kubectl(
        *("apply", "-n", namespace, "-f", "-"), stdin=yaml.safe_dump(pod("plain", {})), check=False
    )
    assert "violates PodSecurity" in refused.stderr
    context = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    script = (
        "id -u; touch /x 2>/dev/null || echo read-only; grep -E 'CapEff|Seccomp:' /proc/self/status"
    )
    restricted = container("sh", "-c", script, securityContext=context)
    apply(cluster, namespace, pod("locked", {}, containers=[restricted], restartPolicy="Never"))
    wait(cluster, namespace, "jsonpath={.status.phase}=Succeeded", "pod/locked")
    lines = cluster.kubectl("logs", "-n", namespace, "locked").stdout.split("\n")
    assert lines[:2] == ["65532", "read-only"]
    assert [line.split()[1] for line in lines[2:4]] == ["0" * 16, "2"]


def test_a_node_has_the_devices_it_is_said_to_have(cluster: Cluster, namespace: str) -> None:
    wants = container("sleep", "600", resources={"limits": {"example.com/gpu": "1"}})
    apply(cluster, namespace, pod("user", {}, containers=[wants]))
    unschedulable = "jsonpath={.status.conditions[0].reason}=Unschedulable"
    wait(cluster, namespace, unschedulable, "pod/user")
    cluster.advertise("example.com/gpu", 1)
    wait(cluster, namespace, "condition=Ready", "pod/user")


def test_the_api_server_restarts_and_pods_do_not_notice(cluster: Cluster, namespace: str) -> None:
    start_web(cluster, namespace)
    url = cluster.service_url(namespace, "web") + "/index.html"
    before = cluster.until(lambda: get(url), "the first answer")
    cluster.stop(API_SERVER, signal.SIGKILL)
    with pytest.raises(OSError, match=r"reset|closed|refused|EOF"):
        socket_answer(cluster.site.api_port)
    cluster.until(lambda: get(url) == before, "an answer without an API server")
    cluster.begin(API_SERVER)
    cluster.until(lambda: get(url) == before, "an answer with the new one")
    # What was written is there, and more can be written.
    cluster.kubectl("get", "deployment", "web", "-n", namespace)
    cluster.kubectl("create", "configmap", "late", "-n", namespace)


def socket_answer(port: int) -> bytes:
    """What comes back from a port of this machine. Raises OSError if the connection breaks."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        if answer := connection.recv(100):
            return answer
        raise ConnectionResetError("closed")


def test_the_relay_carries_ends_and_breaks(cluster: Cluster, namespace: str) -> None:
    # A server that answers only once it has seen the end of what it was sent.
    # A connection to see whether it listens would be the only one that it takes.
    listens = ["sh", "-c", "grep -q ':2328 .* 0A ' /proc/net/tcp /proc/net/tcp6"]
    count = container(
        *("nc", "-l", "-p", "9000", "-e", "wc", "-c"),
        readinessProbe={"exec": {"command": listens}, "periodSeconds": 1},
    )
    apply(cluster, namespace, pod("counter", {}, containers=[count], restartPolicy="Never"))
    wait(cluster, namespace, "condition=Ready", "pod/counter")
    path = "jsonpath={.status.podIP}"
    address = cluster.kubectl("get", "pod", "counter", "-n", namespace, "-o", path).stdout
    size = 3_000_000
    with socket.create_connection(cluster.forward(address, 9000), timeout=60) as connection:
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        assert int(connection.makefile("rb").read()) == size
    with pytest.raises(OSError, match=r"reset|closed"):  # nobody listens any more
        socket_answer(cluster.forward(address, 9000)[1])


def test_whoever_asks_gets_the_same_address(cluster: Cluster) -> None:
    first = cluster.service_url("default", "kubernetes", 443)
    joined = Cluster.join(cluster.site.state)
    assert joined.service_url("default", "kubernetes", 443) == first
    assert joined.service_url("default", "kubernetes", 444) != first
    joined.close()


def test_an_image_is_loaded_once(cluster: Cluster, tmp_path: Path) -> None:
    archive = archives.write("localhost/marker:1", {"marker": os.urandom(16)}, {}, {})
    try:
        assert cluster.site  # only the tests' own cluster can say what it has
        assert cluster.load(archive) == ["localhost/marker:1"]
        assert cluster.load(archive) == []
    finally:
        archive.unlink()


def test_every_daemon_runs(cluster: Cluster) -> None:
    assert set(cluster.running()) == set(cluster.options.daemons)


# The end ------------------------------------------------------------------------------------------

OWN_A_CLUSTER = """
import json, sys, time
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.options import Options
cluster = Cluster.start(Options(release=sys.argv[1]))
cluster.kubectl("run", "lasting", "--image=localhost/busybox:1", "--", "sleep", "600")
cluster.kubectl("wait", "--for=condition=Ready", "pod/lasting", "--timeout=120s")
print(json.dumps([str(cluster.site.state), cluster.pid, cluster._process.pid]), flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(cluster: Cluster) -> Iterator["subprocess.Popen[str]"]:
    """Another process, as pytest is one, that has a cluster of its own with a running pod."""
    command = [sys.executable, "-c", OWN_A_CLUSTER, cluster.options.release]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def processes_of(state: Path) -> list[str]:
    """The command lines of all processes of this machine that belong to a cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            groups = (folder / "cgroup").read_text()
        except OSError:
            continue
        if str(state) in command or f"/{state.name}/" in groups:
            found.append(command)
    return found


def hierarchies() -> list[Path]:
    """Where the kernel has cgroups mounted: once with v2, a controller with v1, both in a mix."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(where) for _, where, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


def cgroups_of(name: str) -> list[Path]:
    """The cluster's cgroups in every hierarchy, with those in them."""
    return [Path(path) for root in hierarchies() for path, _, _ in os.walk(root / name)]


def mounts_of(state: Path) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(state) in line]


def test_nothing_is_left_when_the_owner_is_killed(
    cluster: Cluster, owner: "subprocess.Popen[str]"
) -> None:
    assert owner.stdout
    state = Path(json.loads(owner.stdout.readline())[0])
    assert any("sleep 600" in command for command in processes_of(state))
    assert cgroups_of(state.name)
    owner.kill()
    cluster.until(lambda: not processes_of(state), "every process has ended")
    cluster.until(lambda: not cgroups_of(state.name), "every cgroup is removed")
    assert mounts_of(state) == []


def test_what_a_killed_box_leaves_is_removed_by_the_next_start(
    cluster: Cluster, owner: "subprocess.Popen[str]"
) -> None:
    assert owner.stdout
    folder, _, outermost = json.loads(owner.stdout.readline())
    state = Path(folder)
    os.kill(outermost, signal.SIGKILL)  # nothing inside gets a chance to tidy up
    cluster.until(lambda: not processes_of(state), "every process has ended")
    assert mounts_of(state) == []
    owner.kill()
    owner.wait()

    def is_clean() -> bool:
        leftovers.clean()
        return not cgroups_of(state.name)

    # A process has no command line any more a moment before it leaves its cgroup.
    cluster.until(is_clean, "nothing of it is left")
    assert not state.exists()
    assert cluster.site.state.exists()


def test_cgroups_without_a_cluster_are_removed_and_those_of_another_folder_stay(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{leftovers.PREFIX}{secrets.token_hex(3)}"
    for root in hierarchies():
        (root / name / "kubepods").mkdir(parents=True)
    pods = [root / cluster.site.name / "kubepods" for root in hierarchies()]
    running = [path for path in pods if path.exists()]
    assert running
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))  # as another user's TMPDIR
    leftovers.clean()
    assert not cgroups_of(name)
    assert [path for path in pods if path.exists()] == running


def test_a_daemon_that_dies_is_noticed(cluster: Cluster) -> None:
    wanted = Options(release=cluster.options.release, control_plane_only=True)
    with Cluster.start(wanted) as fragile:
        fragile.check()
        fragile.send(SCHEDULER, signal.SIGKILL)
        fragile.until(lambda: SCHEDULER not in fragile.running(), "the scheduler's end")
        with pytest.raises(ClusterError, match=f"{SCHEDULER} ended with -9"):
            fragile.check()
        fragile.begin(SCHEDULER)
        assert client.CoreV1Api(fragile.api).list_node().items == []
        state = fragile.site.state
    assert not state.exists()
