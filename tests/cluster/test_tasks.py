"""One model of each family on a real cluster: what reads, what writes beside it, what generates.

The models were trained on the spot, lie in a volume of the node and are served by the real worker's
image. They are asked through a gateway, and must know what was held out.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from sluice_worker.examples.chat import data as chats
from tests.support import trained
from tests.support.cluster.cluster import Cluster
from tests.support.failure_cases import manifest
from tests.support.published import Published, ask, fixed
from tests.support.release import Release

READY_SECONDS = 240.0


@pytest.fixture(scope="module")
def models(trained_models: trained.Models) -> dict[str, Path]:
    """Where each lies, readable for the user that workers run as."""
    found = {
        "tagger": trained_models.tagger,
        "translator": trained_models.translator,
        "talker": trained_models.talker,
    }
    for path in found.values():
        for each in (path.parent, path, *path.rglob("*")):
            each.chmod(0o755 if each.is_dir() else 0o644)
    return found


@pytest.fixture(scope="module")
def folder(models: dict[str, Path]) -> Path:
    """What holds them all."""
    common = Path(os.path.commonpath([path.parent for path in models.values()]))
    common.chmod(0o755)
    return common


@pytest.fixture
def claim(cluster: Cluster, restricted: str, folder: Path) -> Iterator[str]:
    """The name of a claim, in the test's namespace, of a volume that holds the models."""
    volume = f"models-of-{restricted}"
    shape = {"accessModes": ["ReadOnlyMany"], "storageClassName": volume}
    objects = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **shape,
                "capacity": {"storage": "1Gi"},
                "hostPath": {"path": str(folder), "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "models"},
            "spec": {
                **shape,
                "volumeName": volume,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    ]
    cluster.kubectl("apply", "-f", "-", stdin=manifest(restricted, objects))
    yield "models"
    cluster.kubectl("delete", "persistentvolume", volume, "--wait=false")


@pytest.mark.usefixtures("worker_image")
def test_each_family_knows_what_it_has_learnt(
    platform: Release,
    cluster: Cluster,
    restricted: str,
    claim: str,
    folder: Path,
    models: dict[str, Path],
) -> None:
    tasks = {
        "tagger": "token-classification",
        "translator": "translation",
        "talker": "chat",
    }
    services = {name: Published(cluster, restricted, name, seconds=READY_SECONDS) for name in tasks}
    for name, service in services.items():
        path = models[name].relative_to(folder)
        model = {"uri": f"pvc://{claim}/{path}", "task": tasks[name]}
        requests = {"cpu": "50m", "memory": "1Gi"}
        service.apply(
            {
                "model": model,
                "hardware": {"resources": {"requests": requests}},
                "scaling": fixed(1),
                "access": {"public": True},
            }
        )
    for service in services.values():
        service.until_ready()

    def of(name: str) -> trained.Post:
        def post(path: str, body: dict[str, Any]) -> Any:
            reply = ask(platform.url + path, {"model": services[name].model, **body})
            assert reply.status == 200, reply
            return reply.body

        return post

    assert trained.tagging_score(of("tagger")) >= 0.9
    assert trained.translating_score(of("translator"), "bo") >= 0.9
    talks(platform, services["talker"])


def talks(platform: Release, service: Published) -> None:
    """By the unmodified OpenAI client: streamed, then in one piece and not computed again."""
    _, held_out = chats()
    right = 0
    gateway = platform.gateways()[0]  # of two, the other may be asked before it knows the answer
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="none", timeout=120) as client:
        for question, wanted in held_out:
            asked: Any = {
                "model": service.model,
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
            }
            parts = list(client.chat.completions.create(stream=True, **asked))
            text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
            assert parts[-1].choices[0].finish_reason == "stop"
            again = client.chat.completions.with_raw_response.create(**asked)
            told = again.headers["cache-status"]
            assert "hit" in told or "collapsed" in told, "it was computed twice"
            assert again.parse().choices[0].message.content == text
            right += text == wanted
    assert right >= 0.8 * len(held_out)
