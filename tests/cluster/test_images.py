"""What the images are made of, and that pods of them run with no right but the needed."""

import asyncio
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import numpy as np
import pytest

from sluice_api import names
from sluice_api.metric_names import WORKER_RUNNING
from tests.support.cluster.cluster import Cluster
from tests.support.images import package_settings
from tests.support.images.builder import Builder
from tests.support.images.layout import Layout
from tests.support.images.loading import load
from tests.support.images.recipes import RECIPES
from tests.support.minilm import embeddings
from tests.support.worker_process import MINILM

PARTS = ("gateway", "operator", "worker")
MIB = 2**20
USER = "65532:65532"


@dataclass(frozen=True)
class Image:
    """What one was built to.

    Attributes:
        config: as the OCI has it: user, entry point, environment, labels, history.
        files: their paths, without those of the lowest layer: the Python base is not ours.
        sizes: of its layers, the lowest first, in bytes.
    """

    config: dict[str, Any]
    files: list[str]
    sizes: list[int]

    @classmethod
    def read(cls, layout: Layout, reference: str) -> Self:
        layers = layout.layers(reference)
        files = [path for layer in layers[1:] for path in _files(layer)]
        return cls(layout.config(reference), files, [layer.stat().st_size for layer in layers])


def _files(layer: Path) -> Iterator[str]:
    with tarfile.open(layer) as content:
        yield from (member.name for member in content if member.isfile())


@pytest.fixture(scope="module")
def built() -> dict[str, Image]:
    """By name; read before another checkout may build its own into the same folder."""
    builder = Builder()
    with builder.built(list(RECIPES)):
        return {name: Image.read(builder.layout, RECIPES[name].reference) for name in PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_an_image_says_what_it_is(built: dict[str, Image], part: str) -> None:
    config = built[part].config["config"]
    assert config["User"] == USER
    assert config["Entrypoint"] == ["python3", "-m", f"sluice_{part}"]
    assert config["StopSignal"] == "SIGINT", "process 1 hears it from its first moment"
    assert not config.get("Cmd")
    environment = dict(each.split("=", 1) for each in config["Env"])
    assert environment["HOME"] == "/tmp"
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert environment["PYTHONSAFEPATH"] == "1"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == f"sluice-{part}"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.parametrize("part", PARTS)
def test_an_image_holds_what_it_needs_and_no_more(built: dict[str, Image], part: str) -> None:
    paths = [path for path in built[part].files if path.startswith("opt/sluice/")]
    product = {path.split("/")[3] for path in paths if path.startswith("opt/sluice/product/")}
    assert {name for name in product if not name.endswith(".dist-info")} == {
        "sluice_api",
        f"sluice_{part}",
    }
    installed = {path.split("/")[3] for path in paths}
    assert ("torch" in installed) == (part == "worker")
    assert ("transformers" in installed) == (part == "worker")
    assert ("kubernetes" in installed) == (part == "operator")
    assert not installed & {"pip", "uv", "hatchling", "pytest", "sluice_cli"}
    assert not [path for path in paths if path.endswith(".pyc") and "__pycache__" not in path]
    compiled = [path for path in paths if path.startswith("opt/sluice/product/sluice_api/__pyc")]
    assert len(compiled) == len({path.split(".")[0] for path in compiled}) > 10


@pytest.mark.parametrize("part", PARTS)
def test_nothing_of_the_build_stays_in_an_image(built: dict[str, Image], part: str) -> None:
    left = [
        path
        for path in built[part].files
        if path.startswith(("run/secrets/", "root/", "tmp/", "tools/", "build/", "var/"))
    ]
    assert left == []
    bundle = package_settings.authorities(os.environ)
    history = json.dumps(built[part].config["history"])
    assert str(bundle) not in history
    for name in package_settings.CARRIED:
        if told := os.environ.get(f"PIP_{name}") or os.environ.get(f"UV_{name}"):
            assert told not in history


@pytest.mark.parametrize(
    ("part", "ours", "product"), [("gateway", 160, 4), ("operator", 160, 4), ("worker", 3400, 4)]
)
def test_an_image_stays_small(built: dict[str, Image], part: str, ours: int, product: int) -> None:
    """In MiB, unpacked, without the Python base; the last layer is what a change of code ships."""
    sizes = [size / MIB for size in built[part].sizes]
    assert sum(sizes[1:]) <= ours
    assert sizes[-1] <= product


def test_building_again_changes_nothing() -> None:
    def digests() -> dict[str, str | None]:
        builder = Builder()
        with builder.built(list(RECIPES)) as recipes:
            return {each.name: builder.layout.config_digest(each.reference) for each in recipes}

    assert digests() == digests()


# In pods ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(cluster: Cluster, worker_image: None) -> Cluster:
    """The cluster, with all images in its node."""
    load(cluster, *RECIPES)
    return cluster


def pod_of(part: str, environment: dict[str, str], **container: Any) -> dict[str, Any]:
    """A pod under the strictest of Kubernetes' policies, with a read-only root."""
    admin = {"port": names.ADMIN_PORT}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": part},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 60,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": RECIPES[part].reference,
                    "imagePullPolicy": "Never",
                    "env": [{"name": key, "value": each} for key, each in environment.items()],
                    "securityContext": {
                        "readOnlyRootFilesystem": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "readinessProbe": {"httpGet": {"path": "/readyz", **admin}, "periodSeconds": 1},
                    "lifecycle": {"preStop": {"httpGet": {"path": names.DRAIN_PATH, **admin}}},
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    **container,
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def create(cluster: Cluster, namespace: str, pod: dict[str, Any]) -> None:
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "--overwrite", "namespace", namespace, restricted)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(pod))


def wait_ready(cluster: Cluster, namespace: str, pod: str, seconds: int = 180) -> str:
    """The pod's address, once it is ready."""
    wait = ("wait", "-n", namespace, f"pod/{pod}", "--for=condition=Ready")
    cluster.kubectl(*wait, f"--timeout={seconds}s", seconds=seconds + 5)
    got = cluster.kubectl("get", "-n", namespace, "pod", pod, "-o", "jsonpath={.status.podIP}")
    return got.stdout


def ended(cluster: Cluster, namespace: str, pod: str) -> dict[str, Any]:
    """How the pod's container ended."""

    def terminated() -> Any:
        got = cluster.read(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        statuses = got["status"].get("containerStatuses", [{}])
        return statuses[0].get("state", {}).get("terminated")

    found: dict[str, Any] = cluster.until(terminated, f"the end of {pod}")
    return found


PROBE = """
import os, pwd, sys
print(os.getuid(), os.getgid(), pwd.getpwuid(os.getuid()).pw_name)
open("/tmp/mine", "w").close()
try:
    open("/opt/sluice/mine", "w")
except OSError as error:
    print(error.strerror)
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("part", ["gateway", "operator"])
def test_a_pod_has_no_rights_it_does_not_need(node: Cluster, namespace: str, part: str) -> None:
    script = f"import sluice_{part}.__main__{PROBE}"
    create(node, namespace, pod_of(part, {}, command=["python3", "-c", script], lifecycle={}))
    assert ended(node, namespace, part)["exitCode"] == 0
    said = node.kubectl("logs", "-n", namespace, part).stdout.splitlines()
    assert said == ["65532 65532 sluice", "Read-only file system", "False"]


@pytest.mark.parametrize(
    ("part", "environment", "code", "reason"),
    [
        (
            "worker",
            {names.ENV_MODEL_URI: "file:///models/lost"},
            names.EXIT_MODEL_NOT_FOUND,
            "there is no folder /models/lost",
        ),
        (
            "worker",
            {names.ENV_MODEL_URI: MINILM, names.ENV_BATCH_MAX_SIZE: "many"},
            names.EXIT_BAD_CONFIGURATION,
            f"{names.ENV_BATCH_MAX_SIZE}: got 'many'",
        ),
        (
            "stub",
            {names.ENV_MODEL_URI: f"hf://stub/start100-exit{names.EXIT_MODEL_REJECTED}"},
            names.EXIT_MODEL_REJECTED,
            "the stub was told to end with this",
        ),
    ],
)
def test_the_last_line_of_a_failed_worker_is_its_reason(
    node: Cluster,
    namespace: str,
    part: str,
    environment: dict[str, str],
    code: int,
    reason: str,
) -> None:
    create(node, namespace, pod_of(part, environment))
    end = ended(node, namespace, part)
    assert end["exitCode"] == code
    assert reason in end["message"].strip().splitlines()[-1]


async def test_a_worker_pod_answers_rightly_and_ends_when_it_is_idle(
    node: Cluster, namespace: str
) -> None:
    environment = {names.ENV_MODEL_URI: MINILM, names.ENV_MODEL_NAME: "minilm"}
    await asyncio.to_thread(create, node, namespace, pod_of("worker", environment))
    address = await asyncio.to_thread(wait_ready, node, namespace, "worker")
    url = node.url(address, names.APP_PORT) + "/v1/embeddings"
    texts = ["a quiet river", "the invoice was charged twice", "snow"]
    async with aiohttp.ClientSession() as session:
        async with session.post(url, json={"input": texts}) as answer:
            assert answer.status == 200
            vectors = [entry["embedding"] for entry in (await answer.json())["data"]]
        expected = np.array(await asyncio.to_thread(embeddings, texts))
        assert np.abs(expected - vectors).max() < 1e-5

        long = {"input": [f"{'the river runs past quiet mills ' * 12}{i}" for i in range(30)]}
        metrics = node.url(address, names.ADMIN_PORT) + "/metrics"
        computing = asyncio.create_task(session.post(url, json=long))
        async with asyncio.timeout(120):
            while not await is_running(session, metrics):
                if computing.done():  # before anybody looked
                    computing.result().close()
                    computing = asyncio.create_task(session.post(url, json=long))
        delete = ("delete", "-n", namespace, "pod", "worker", "--wait=false")
        await asyncio.to_thread(node.kubectl, *delete)
        async with await computing as answer:
            assert answer.status == 200, "deleting the pod cut a request off"
            assert len((await answer.json())["data"]) == 30
    gone = ("wait", "-n", namespace, "pod/worker", "--for=delete", "--timeout=120s")
    await asyncio.to_thread(node.kubectl, *gone)


async def is_running(session: aiohttp.ClientSession, metrics: str) -> bool:
    async with session.get(metrics) as answer:
        lines = (await answer.text()).splitlines()
    values = [line.split() for line in lines if not line.startswith("#")]
    return float(dict(values)[WORKER_RUNNING.name]) > 0
