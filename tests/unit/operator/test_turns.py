"""Moving services to another worker image: a few at a time, and no further than it works."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from sluice_operator.state import Key, Observed
from sluice_operator.turns import AT_ONCE, BROKEN_SECONDS, LOOK_SECONDS, Turns, is_replaced
from tests.support.observed_services import observed
from tests.support.reconciling import PLATFORM, World
from tests.support.resources import document


def test_a_few_have_a_turn_and_the_next_one_when_theirs_ends() -> None:
    turns = Turns(2)
    a, b, c = (Key("team", name) for name in "abc")
    taken = [turns.take(key, 0.0, sound=True) for key in (a, b, c, a)]
    assert taken == [True, True, False, True]
    turns.end(a)
    assert turns.take(c, 1.0, sound=True)
    assert turns.take(a, 1.0, sound=True), "one that was moved stays moved"
    turns.forget(b)
    assert turns.take(Key("team", "d"), 1.0, sound=True)


def test_what_was_broken_before_its_turn_does_not_keep_the_others_waiting() -> None:
    turns = Turns(2)
    broken, sound, waiting, last = (Key("team", name) for name in "abcd")
    assert turns.take(broken, 0.0, sound=False)
    assert turns.take(sound, 0.0, sound=True)
    assert not turns.take(waiting, BROKEN_SECONDS - 1, sound=True)
    assert turns.take(waiting, BROKEN_SECONDS, sound=True)
    assert turns.take(broken, BROKEN_SECONDS, sound=False), "it stays moved"
    assert not turns.take(last, 1e6, sound=True), "those that ran may show that the image is bad"


@pytest.mark.parametrize(
    ("status", "replaced"),
    [
        ({}, False),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}, False),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 3}, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}, True),
    ],
)
def test_pods_are_replaced_when_the_deployment_says_so(
    status: dict[str, Any], replaced: bool
) -> None:
    seen: Observed = observed(replicas={"r": 2})
    child: Any = next(iter(seen.children.values()))
    child["metadata"]["generation"] = 2
    child["status"] = status
    assert is_replaced(seen) is replaced


class Fleet(World):
    """Several services that run with an old image, on a platform that has a new one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.keys = [Key("team", f"m-{number}") for number in range(count)]
        for key in self.keys:
            item = document(metadata__name=key.name)
            item["metadata"]["namespace"] = key.namespace
            self.cluster.put(item)
        self.work()
        for key in self.keys:
            self.play_ready(key)
        self.work()

    def work(self, passes: int = 12) -> None:
        async def reconcile_all() -> None:
            for _ in range(passes):
                self.cluster.show(self.store)
                for key in self.keys:
                    await self.reconciler.reconcile(key)

        asyncio.run(reconcile_all())

    def play_ready(self, key: Key) -> None:
        """What controllers and kubelet would do: all replicas run as the Deployment says."""
        for address, item in list(self.cluster.objects.items()):
            if address.kind == "Deployment" and address.name.startswith(key.name):
                count = item["spec"]["replicas"]
                numbers = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas"), count)
                generation = item["metadata"]["generation"]
                status = numbers | {"availableReplicas": count, "observedGeneration": generation}
                self.cluster.put({**self.cluster.read(*address), "status": status})
                labels = item["spec"]["template"]["metadata"]["labels"]
                for number in range(count):
                    self.cluster.put(_pod(key, f"{address.name}-{number}", labels))

    def images(self) -> list[str]:
        return self._containers("image")

    def pull_policies(self) -> list[str]:
        return self._containers("imagePullPolicy")

    def _containers(self, field: str) -> list[str]:
        return [
            item["spec"]["template"]["spec"]["containers"][0][field]
            for address, item in sorted(self.cluster.objects.items())
            if address.kind == "Deployment"
        ]


def _pod(key: Key, name: str, labels: dict[str, str]) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": key.namespace, "name": name, "labels": labels},
        "spec": {"nodeName": "node1"},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [ready],
            "containerStatuses": [{"name": "worker", "ready": True, "restartCount": 0}],
        },
    }


def test_an_upgrade_moves_nobody_unless_it_is_asked_for() -> None:
    fleet = Fleet(2)
    assert fleet.images() == ["worker:1"] * 2
    fleet.platform = replace(PLATFORM, worker_image="worker:2")
    fleet.work()
    assert fleet.images() == ["worker:1"] * 2


def test_another_setting_of_the_platform_moves_a_few_at_a_time_too() -> None:
    fleet = Fleet(AT_ONCE + 2)
    fleet.platform = replace(PLATFORM, pull_policy="Always")
    fleet.work()
    assert fleet.pull_policies().count("Always") == 0
    fleet.platform = replace(fleet.platform, upgrade_workers=True)
    fleet.work()
    assert fleet.pull_policies().count("Always") == AT_ONCE


def test_an_upgrade_moves_a_few_and_waits_for_their_pods() -> None:
    fleet = Fleet(AT_ONCE + 3)
    fleet.platform = replace(PLATFORM, worker_image="worker:2", upgrade_workers=True)
    fleet.work()
    assert fleet.images().count("worker:2") == AT_ONCE
    waiting = fleet.keys[-1]
    fleet.cluster.show(fleet.store)
    assert asyncio.run(fleet.reconciler.reconcile(waiting)) == LOOK_SECONDS
    for key in fleet.keys:
        fleet.play_ready(key)
    fleet.work()
    assert fleet.images().count("worker:2") == len(fleet.keys)
