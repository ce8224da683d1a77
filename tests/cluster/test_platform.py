"""The whole platform on a real Kubernetes: a file is applied, right answers come out.

Real images of everything, the worker's with a real model; the other cluster tests use the stub
engine, which costs no CPU.
"""

import base64
import json
import secrets
from array import array
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.minilm import embeddings
from tests.support.published import Published, Reply, ask
from tests.support.release import Release

EXAMPLE = Path(__file__).parents[2] / "manifests" / "examples" / "minilm.yaml"
WORKER_IMAGE = "localhost/sluice-worker:test"
# Answers belong to a model's content, not to a service: new texts are no run's answers before.
NEW = secrets.token_hex(4)
TEXTS = [f"{NEW} cats", f"the parcel {NEW} never arrived, where is it?", NEW + " x" * 200]
LATER = [f"{NEW} dogs"]


@pytest.fixture
def minilm(platform: Release, worker_image: None, cluster: Cluster, restricted: str) -> Published:
    """The first example, applied and ready."""
    service = Published(cluster, restricted, "minilm")
    service.kubectl("apply", "-f", str(EXAMPLE))
    service.kubectl("wait", "inf/minilm", "--for=condition=Ready", "--timeout=170s")
    return service


def embed(url: str, service: Published, texts: list[str]) -> Reply:
    body = {"model": service.model, "input": texts, "encoding_format": "base64"}
    return ask(f"{url}/v1/embeddings", body)


def vectors(reply: Reply) -> list["array[float]"]:
    assert reply.status == 200, reply
    return [array("f", base64.b64decode(one["embedding"])) for one in reply.body["data"]]


def test_the_example_answers_sleeps_wakes_and_leaves_nothing(
    platform: Release, minilm: Published
) -> None:
    (worker,) = minilm.workers(ready=True).values()
    assert [one["image"] for one in worker["spec"]["containers"]] == [WORKER_IMAGE]

    first = embed(platform.url, minilm, TEXTS)
    for mine, theirs in zip(vectors(first), embeddings(TEXTS), strict=True):
        assert np.abs(np.array(mine) - theirs).max() <= 1e-5
    assert first.headers["x-sluice-revision"] == minilm.revision
    assert "hit" not in first.headers["cache-status"]

    def is_known(gateway: str) -> bool:
        again = embed(gateway, minilm, TEXTS)
        assert np.abs(np.array(vectors(again)) - np.array(vectors(first))).max() <= 1e-5
        return "hit" in again.headers["cache-status"]

    # To each gateway, because a Redis that a busy machine delays is asked in vain.
    for gateway in platform.gateways():
        minilm.until(partial(is_known, gateway), f"{gateway} knows the answer")

    asleep(minilm)
    # What was answered before is answered again without anybody waking up …
    assert "hit" in embed(platform.url, minilm, TEXTS).headers["cache-status"]
    assert minilm.workers() == {}
    # … and what was not wakes the service, and is held as long as that takes.
    idle_after(minilm, "10m")  # Or it sleeps again before a busy machine has looked at it.
    woken = embed(platform.url, minilm, LATER)
    assert np.abs(np.array(vectors(woken)[0]) - embeddings(LATER)[0]).max() <= 1e-5
    # The gateway asks a new worker itself, and may be answered before Kubernetes knows.
    minilm.until(lambda: len(minilm.workers(ready=True)) == 1, "one worker is ready")

    assert minilm.objects()
    minilm.kubectl("delete", "inf", "minilm")
    minilm.until_gone()
    for gateway in platform.gateways():
        gone = partial(is_unknown, gateway, minilm)
        minilm.cluster.until(gone, f"{gateway} knows no such model")


def is_unknown(gateway: str, service: Published) -> bool:
    reply = embed(gateway, service, LATER)
    return reply.status == 404 and reply.body["error"]["code"] == "model_not_found"


def idle_after(service: Published, duration: str) -> None:
    patch = json.dumps({"spec": {"scaling": {"idleAfter": duration}}})
    service.kubectl("patch", "inf", service.name, "--type=merge", "-p", patch)


def asleep(service: Published) -> None:
    idle_after(service, "1s")
    service.until(
        lambda: service.condition().get("reason") == "Asleep" and not service.workers(),
        f"{service.model} sleeps",
    )
    assert service.condition()["status"] == "True"
