"""Evidence: asks only for what somebody waits for, and says only what is new."""

import asyncio
from typing import Any

from sluice_api import names
from sluice_operator.api_errors import NotFound
from sluice_operator.evidence import PODS_AT_ONCE, Evidence
from sluice_operator.kinds import Kind
from sluice_operator.state import Key, Refusal
from sluice_operator.store import Store
from tests.support.virtual_time import in_virtual_time

KEY = Key("team", "minilm")
MOUNT = ("FailedMount", "MountVolume.SetUp failed: secret not found")


class Source:
    """Events by pod's uid, nodes by name."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[str, str]]] = {}
        self.refused: dict[str, tuple[str, str]] = {}
        self.nodes: dict[str, str] = {}
        self.asked: list[str] = []

    async def pod_warnings(self, namespace: str, uid: str) -> list[tuple[str, str]]:
        self.asked.append(uid)
        return self.events.get(uid, [])

    async def refused_pods(self, namespace: str, deployment: str) -> tuple[str, str] | None:
        self.asked.append(deployment)
        return self.refused.get(deployment)

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any]:
        if name not in self.nodes:
            raise NotFound("get", "nodes", "not found")
        return {"status": {"conditions": [{"type": "Ready", "status": self.nodes[name]}]}}


def scene() -> tuple[Store, Source, Evidence, list[Key]]:
    store, source, changed = Store(), Source(), list[Key]()
    metadata = {"namespace": "team", "name": "minilm", "uid": "u", "resourceVersion": "1"}
    store.put({"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata})
    return store, source, Evidence(store, source, changed.append), changed


def seen(store: Store) -> dict[str, Any]:
    observed = store.observe(KEY)
    assert observed is not None
    return dict(observed.pod_events)


@in_virtual_time
async def test_events_of_a_stuck_pod_reach_the_store_once() -> None:
    store, source, evidence, changed = scene()
    await evidence.look()
    assert source.asked == []
    source.events["uid-a"] = [MOUNT]
    evidence.watch(KEY, {"a": "uid-a"})
    await evidence.look()
    await asyncio.sleep(10)
    await evidence.look()
    assert seen(store) == {"a": (MOUNT,)}
    assert changed == [KEY]
    evidence.watch(KEY, {})
    await asyncio.sleep(100)
    await evidence.look()
    assert seen(store) == {}
    assert source.asked == ["uid-a", "uid-a"]


@in_virtual_time
async def test_a_pod_that_stays_stuck_is_asked_about_ever_more_rarely() -> None:
    _, source, evidence, _ = scene()
    evidence.watch(KEY, {"a": "uid-a"})
    running = asyncio.get_running_loop().create_task(evidence.run())
    await asyncio.sleep(3600)
    assert 60 <= len(source.asked) <= 70
    before = len(source.asked)
    evidence.watch(KEY, {"b": "uid-b"})
    await asyncio.sleep(0.1)
    assert source.asked[before:] == ["uid-b"], "another one is asked about at once"
    running.cancel()


@in_virtual_time
async def test_many_stuck_pods_take_turns() -> None:
    _, source, evidence, _ = scene()
    for number in range(3 * PODS_AT_ONCE):
        evidence.watch(Key("team", f"s{number}"), {"p": f"uid-{number}"})
    await evidence.look()
    assert len(source.asked) == PODS_AT_ONCE
    await evidence.look()
    await evidence.look()
    assert len(set(source.asked)) == 3 * PODS_AT_ONCE


@in_virtual_time
async def test_a_second_refusal_is_waited_for_and_told_in_its_own_words() -> None:
    store, source, evidence, changed = scene()

    def told() -> dict[str, Refusal]:
        observed = store.observe(KEY)
        assert observed is not None
        return dict(observed.refusals)

    looking = asyncio.get_running_loop().create_task(evidence.run())
    source.refused["web"] = ("web-1", 'Error creating: pods "web-1-x7k2p" is forbidden: one')
    evidence.watch(KEY, {}, {"web": ("first", "one")})
    await asyncio.sleep(0.1)
    first = Refusal("first", "web-1", 'pods "web-1-" is forbidden: one')
    assert told() == {"web": first}
    await asyncio.sleep(1000)
    asked = len(source.asked)
    assert asked < 30, "ever more rarely"
    evidence.watch(KEY, {}, {"web": ("second", "one")})
    await asyncio.sleep(9)
    assert told() == {"web": first}, "what is known is of the template before"
    assert len(source.asked) - asked >= 4, "its words are about to come"
    assert changed == [KEY]
    combined = '(combined from similar events): Error creating: pods "web-2-zz" is forbidden: two'
    source.refused["web"] = ("web-2", combined)
    await asyncio.sleep(2)
    assert told() == {"web": Refusal("second", "web-2", 'pods "web-2-" is forbidden: two')}
    assert changed == [KEY, KEY]
    source.refused["web"] = ("web-2", 'Error creating: pods "web-2-yy" is forbidden: two')
    await asyncio.sleep(100)
    assert changed == [KEY, KEY], "another try is no news"
    source.refused["web"] = ("web-2", 'Error creating: pods "web-2-xx" is forbidden: three')
    evidence.watch(KEY, {}, {"web": ("second", "three")})
    await asyncio.sleep(0.1)
    assert told()["web"].message.endswith("three"), "the Deployment has new words: so have Events"
    evidence.watch(KEY, {}, {})
    assert told() == {}
    looking.cancel()


def pod(*, ready: str, version: int) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {
            "namespace": "team",
            "name": "a",
            "uid": "uid-a",
            "resourceVersion": str(version),
            "labels": {names.SERVICE_LABEL: "minilm"},
        },
        "spec": {"nodeName": "node7"},
        "status": {
            "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{"ready": True}],
        },
    }


def test_a_silent_node_is_found_by_its_pods_and_forgotten_when_it_speaks() -> None:
    store, source, evidence, changed = scene()
    store.put(pod(ready="True", version=1))
    asyncio.run(evidence.look())
    store.put(pod(ready="False", version=2))
    source.nodes["node7"] = "Unknown"
    asyncio.run(evidence.look())
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.lost_nodes == {"node7"}
    assert changed == [KEY]
    source.nodes["node7"] = "True"
    asyncio.run(evidence.look())
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.lost_nodes == frozenset()


def test_whoever_was_told_of_a_silent_node_is_told_that_it_speaks_whatever_came_first() -> None:
    store, source, evidence, changed = scene()
    source.nodes["node7"] = "Unknown"
    store.put(pod(ready="False", version=1))
    asyncio.run(evidence.look())
    source.nodes["node7"] = "True"
    store.put(pod(ready="True", version=2))  # before anybody has looked at the node
    asyncio.run(evidence.look())
    assert changed == [KEY, KEY]


def test_a_node_that_is_gone_is_lost() -> None:
    store, _, evidence, _ = scene()
    store.put(pod(ready="False", version=2))
    asyncio.run(evidence.look())
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.lost_nodes == {"node7"}


@in_virtual_time
async def test_a_pod_freed_while_another_is_asked_about_is_no_error() -> None:
    _, source, evidence, _ = scene()
    other = Key("team", "other")
    evidence.watch(KEY, {"a": "uid-a"})
    evidence.watch(other, {"b": "uid-b"})
    look = source.pod_warnings

    async def free_both(namespace: str, uid: str) -> list[tuple[str, str]]:
        evidence.watch(KEY, {})
        evidence.watch(other, {})
        return await look(namespace, uid)

    source.pod_warnings = free_both  # type: ignore[method-assign]
    await evidence.look()
    assert len(source.asked) == 1
