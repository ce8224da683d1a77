"""The audit: finds what watches lost, waits for what is late, gives up on a dead watch."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sluice_api import names
from sluice_operator import audit, kinds
from sluice_operator.api_errors import Unavailable
from sluice_operator.audit import Auditor, WatchDead
from sluice_operator.instruments import Instruments
from sluice_operator.kinds import Watched
from sluice_operator.state import Key
from sluice_operator.store import Store
from tests.support.fake_cluster import FakeCluster
from tests.support.virtual_time import in_virtual_time

WATCHED = (Watched(kinds.INFERENCE_SERVICE), Watched(kinds.DEPLOYMENT, "managed-by=sluice"))
ONE, TWO = Key("team", "one"), Key("team", "two")


class Scene:
    """A cluster, a store that may know less or more, and the auditor between them."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.store = Store()
        self.changed: list[Key] = []
        self.registry = CollectorRegistry()
        self.auditor = Auditor(
            self.store, self.cluster, WATCHED, self.changed.append, Instruments(self.registry)
        )

    def put(self, key: Key) -> None:
        metadata = {"namespace": key.namespace, "name": key.name}
        self.cluster.put(
            {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": {}}
        )

    def findings(self, finding: str) -> float:
        labels = {"kind": names.KIND, "finding": finding}
        return self.registry.get_sample_value("sluice_operator_audit_findings_total", labels) or 0


@in_virtual_time
async def test_an_empty_cluster_is_synced_at_once() -> None:
    scene = Scene()
    task = asyncio.get_running_loop().create_task(scene.auditor.run())
    async with asyncio.timeout(1):
        await scene.auditor.synced.wait()
    task.cancel()


@in_virtual_time
async def test_it_is_synced_when_the_watches_have_brought_what_a_list_shows() -> None:
    scene = Scene()
    scene.put(ONE)
    task = asyncio.get_running_loop().create_task(scene.auditor.run())
    await asyncio.sleep(3)
    assert not scene.auditor.synced.is_set()
    scene.cluster.show(scene.store)
    await asyncio.sleep(1)
    assert scene.auditor.synced.is_set()
    assert scene.findings("late") == 0
    task.cancel()


@in_virtual_time
async def test_what_vanished_while_nobody_watched_is_forgotten() -> None:
    scene = Scene()
    scene.put(ONE)
    scene.put(TWO)
    scene.cluster.show(scene.store)
    scene.cluster.remove(names.KIND, *TWO)
    await scene.auditor.audit(WATCHED[0])
    assert list(scene.store.services()) == [ONE]
    assert scene.changed == [TWO]
    assert scene.findings("gone") == 1


@in_virtual_time
async def test_another_object_of_the_name_is_not_taken_for_the_one_that_was() -> None:
    scene = Scene()
    scene.put(ONE)
    scene.cluster.show(scene.store)
    scene.cluster.remove(names.KIND, *ONE)
    scene.put(ONE)
    auditing = asyncio.get_running_loop().create_task(scene.auditor.audit(WATCHED[0]))
    await asyncio.sleep(1)
    scene.cluster.show(scene.store)
    await auditing
    assert list(scene.store.services()) == [ONE]


@in_virtual_time
async def test_a_watch_that_brings_nothing_is_dead_after_a_while() -> None:
    scene = Scene()
    scene.put(ONE)
    began = asyncio.get_running_loop().time()
    with pytest.raises(WatchDead, match="team/one"):
        await scene.auditor.audit(WATCHED[0])
    waited = asyncio.get_running_loop().time() - began
    assert waited == pytest.approx(audit.ROUNDS * audit.ROUND_SECONDS, rel=0.1)
    assert scene.findings("late") == 1


@in_virtual_time
async def test_a_version_that_does_not_come_is_missed_as_well() -> None:
    scene = Scene()
    scene.put(ONE)
    scene.cluster.show(scene.store)
    service = scene.cluster.read(names.KIND, *ONE)
    scene.cluster.put({**service, "spec": {"paused": True}})
    with pytest.raises(WatchDead):
        await scene.auditor.audit(WATCHED[0])


@in_virtual_time
async def test_what_is_deleted_during_the_audit_is_not_waited_for_long() -> None:
    scene = Scene()
    scene.put(ONE)
    auditing = asyncio.get_running_loop().create_task(scene.auditor.audit(WATCHED[0]))
    await asyncio.sleep(1)
    scene.cluster.remove(names.KIND, *ONE)
    await asyncio.sleep(audit.ROUND_SECONDS)
    assert auditing.done()
    await auditing


@in_virtual_time
async def test_a_new_list_of_a_watch_brings_the_next_audit_forward() -> None:
    scene = Scene()
    scene.put(ONE)
    scene.cluster.show(scene.store)
    task = asyncio.get_running_loop().create_task(scene.auditor.run())
    await asyncio.sleep(1)
    scene.cluster.remove(names.KIND, *ONE)
    await asyncio.sleep(20)
    assert list(scene.store.services()) == [ONE]
    scene.auditor.listed_anew()
    await asyncio.sleep(5)
    assert list(scene.store.services()) == []
    task.cancel()


@in_virtual_time
async def test_without_a_new_list_it_comes_after_minutes() -> None:
    scene = Scene()
    scene.put(ONE)
    scene.cluster.show(scene.store)
    task = asyncio.get_running_loop().create_task(scene.auditor.run())
    await asyncio.sleep(1)
    scene.cluster.remove(names.KIND, *ONE)
    await asyncio.sleep(audit.PERIOD_SECONDS + 1)
    assert list(scene.store.services()) == []
    task.cancel()


@in_virtual_time
async def test_an_api_server_that_is_away_puts_the_audit_off() -> None:
    scene = Scene()
    working: Any = scene.cluster.list_metadata

    async def away(*_: Any) -> Any:
        raise Unavailable("list", "inferenceservices", "connection refused")
        yield

    scene.cluster.list_metadata = away  # type: ignore[method-assign]
    task = asyncio.get_running_loop().create_task(scene.auditor.run())
    await asyncio.sleep(30)
    assert not task.done()
    assert not scene.auditor.synced.is_set()
    scene.cluster.list_metadata = working  # type: ignore[method-assign]
    await asyncio.sleep(5)
    assert scene.auditor.synced.is_set()
    task.cancel()
