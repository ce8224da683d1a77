"""The gateway follows a real API server: services, workers, and what happens while it is away."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sluice_api import names, wire
from sluice_gateway.cluster import watch
from tests.support.cluster.access import PATIENCE_SECONDS
from tests.support.cluster.cluster import Cluster
from tests.support.cluster_gateway import (
    ClusterGateway,
    Operator,
    own_address,
    token_of,
)
from tests.support.stub_worker import Behaviour, StubWorker, until

EMBEDDINGS = "/v1/embeddings"


@pytest.fixture(scope="module")
def cluster(control_plane: Cluster) -> Cluster:
    return control_plane


@pytest.fixture
def operator(cluster: Cluster, namespace: str) -> Operator:
    return Operator(cluster, namespace)


@pytest.fixture
def gateway(
    cluster: Cluster, namespace: str, operator: Operator, tmp_path: Path
) -> Iterator[ClusterGateway]:
    with ClusterGateway(tmp_path, cluster, namespace) as started:
        yield started


def worker(revision: str = "r1", **behaviour: Any) -> StubWorker:
    return StubWorker(Behaviour(revision=revision, **behaviour), host=own_address())


def body(namespace: str, text: str) -> dict[str, str]:
    return {"model": f"{namespace}/emb", "input": text}


async def seen(gateway: ClusterGateway, condition: Callable[[Any], bool], what: str) -> None:
    """Wait until what the gateway thinks of ``emb`` meets ``condition``."""

    async def check() -> bool:
        return condition((await gateway.services()).get("emb"))

    await until(check, PATIENCE_SECONDS, what)


async def test_a_sleeping_service_is_held_woken_and_answered(
    gateway: ClusterGateway, operator: Operator, namespace: str
) -> None:
    operator.create("emb")
    operator.answers("emb", "r1")
    await seen(gateway, lambda found: found and found["revision"] == "r1", "the revision")
    with worker(phase=wire.Phase.LOADING) as stub:
        asked = asyncio.create_task(gateway.post(EMBEDDINGS, body(namespace, "hello")))
        await seen(gateway, lambda found: found["waiting"] == 1, "the request to be held")
        operator.slice("emb", "r1", [stub.port])
        await seen(gateway, lambda found: len(found["endpoints"]) == 1, "the worker")
        assert not asked.done()
        stub.behaviour.phase, before = wire.Phase.READY, stub.probes
        reply = await asked
        # One may have been under way, and one more is sent as soon as the first is answered.
        assert stub.probes <= before + 3
    assert reply.status == 200
    assert reply.headers[names.REVISION] == "r1"


async def test_who_would_wait_in_vain_is_told(
    gateway: ClusterGateway, operator: Operator, namespace: str
) -> None:
    operator.create("emb")
    operator.create("off", scaling={"mode": "off", "minReplicas": 0})
    await seen(gateway, bool, "the service")
    until_told = asyncio.create_task(gateway.post(EMBEDDINGS, body(namespace, "unread")))
    reply = await gateway.post(EMBEDDINGS, {"model": f"{namespace}/off", "input": "x"})
    assert (reply.status, reply.json()["error"]["code"]) == (503, "asleep")
    assert not until_told.done()
    reply = await until_told  # Nobody has read the demand by now since the gateway began.
    assert (reply.status, reply.json()["error"]["code"]) == (503, "no_operator")
    assert int(reply.headers["retry-after"]) > 0
    records: list[wire.Demand] = []
    reading = asyncio.create_task(gateway.demand(records))
    await until(lambda: bool(records), PATIENCE_SECONDS, "the first record")
    asked = asyncio.create_task(gateway.post(EMBEDDINGS, body(namespace, "read")))
    with worker() as stub:
        await seen(gateway, lambda found: found["waiting"] == 1, "the request to be held")
        operator.slice("emb", "r1", [stub.port])
        operator.answers("emb", "r1")
        assert (await asked).status == 200
    reading.cancel()


async def test_a_wake_is_told_at_once_and_workers_are_described(
    gateway: ClusterGateway, operator: Operator, namespace: str
) -> None:
    operator.create("emb")
    operator.answers("emb", "r1")
    await seen(gateway, bool, "the service")
    records: list[wire.Demand] = []
    reading = asyncio.create_task(gateway.demand(records))

    def wakes() -> list[float]:
        return [record.oldest_held_seconds for record in records if record.wake]

    for _ in range(5):  # Once, unless all stood still meanwhile.
        records.clear()
        # With the second's record: the next one is a second away.
        await until(lambda: bool(records), PATIENCE_SECONDS, "a record")
        asked = asyncio.create_task(gateway.post(EMBEDDINGS, body(namespace, "hello")))
        await until(lambda: bool(wakes()), PATIENCE_SECONDS, "the wake")
        if wakes()[0] <= 0.5:
            break
        asked.cancel()
        await seen(gateway, lambda found: found["waiting"] == 0, "the request to be gone")
    else:
        raise AssertionError("it was told with the next second's record")
    with worker(phase=wire.Phase.DOWNLOADING) as stub:
        operator.slice("emb", "r1", [stub.port])
        await until(
            lambda: [w.phase for w in records[-1].workers] == [wire.Phase.DOWNLOADING],
            PATIENCE_SECONDS,
            "the phase",
        )
        assert records[-1].workers[0].address == own_address()
        stub.behaviour.phase = wire.Phase.READY
        assert (await asked).status == 200
        digest = stub.behaviour.digest
        await until(
            lambda: any(
                w.ready and w.answer_digest == digest for r in records[-3:] for w in r.workers
            ),
            PATIENCE_SECONDS,
            "the digest",
        )
    reading.cancel()


async def test_only_the_named_reader_sees_demand(
    gateway: ClusterGateway, cluster: Cluster, namespace: str
) -> None:
    async def status(token: str | None) -> int:
        gateway.admin_headers = {"authorization": f"Bearer {token}"} if token else {}
        return (await gateway.get("/internal/services", admin=True)).status

    good = token_of(cluster, namespace, "sluice-operator", names.DEMAND_AUDIENCE)
    assert await status(good) == 200
    assert await status(None) == 401
    assert await status("made-up") == 401
    # Right account, wrong audience: a token for the API server must not open this door.
    assert await status(token_of(cluster, namespace, "sluice-operator")) == 401
    other = token_of(cluster, namespace, "default", names.DEMAND_AUDIENCE)
    assert await status(other) == 403
    gateway.admin_headers = {}
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await gateway.get(path, admin=True)).status == 200


async def test_rollout_and_canary_without_a_failed_request(
    gateway: ClusterGateway, operator: Operator, namespace: str
) -> None:
    operator.create("emb")
    with worker("r1", digest="sha256:1") as old, worker("r2", digest="sha256:2") as new:
        operator.slice("emb", "r1", [old.port])
        operator.answers("emb", "r1", answerDigest="sha256:1", tasks=["embeddings"])
        await gateway.ready("emb")
        load = Load(gateway, namespace)
        async with load:
            operator.slice("emb", "r2", [new.port])
            await seen(gateway, lambda found: len(found["endpoints"]) == 2, "both workers")
            # On trial: both answer.
            operator.patch("emb", rollout={"canary": {"weight": 50, "model": {"dtype": "float32"}}})
            operator.status(
                "emb",
                revisions=[
                    {"name": "r1", "answerDigest": "sha256:1", "tasks": ["embeddings"]},
                    {
                        "name": "r2",
                        "role": "canary",
                        "answerDigest": "sha256:2",
                        "tasks": ["embeddings"],
                    },
                ],
            )
            await load.until_both(("r1", "r2"))
            # Promoted: only the new one answers, then the old worker ends.
            operator.patch("emb", rollout=None)
            operator.answers("emb", "r2", answerDigest="sha256:2", tasks=["embeddings"])
            await seen(gateway, lambda found: found["revision"] == "r2", "the switch")
            operator.slice("emb", "r1", [old.port], ending=[old.port])
            await seen(gateway, lambda found: len(found["endpoints"]) == 1, "the end of the old")
            before = load.count
            await until(lambda: load.count > before + 20, PATIENCE_SECONDS, "more answers")
        assert load.failures == []
        assert load.revisions[-20:] == ["r2"] * 20
        assert old.computed + new.computed == load.count


async def test_the_api_server_restarts_under_load(
    gateway: ClusterGateway, cluster: Cluster, operator: Operator, namespace: str
) -> None:
    operator.create("emb")
    with worker() as one, worker() as two:
        operator.slice("emb", "r1", [one.port])
        operator.answers("emb", "r1")
        await gateway.ready("emb")
        load = Load(gateway, namespace)
        async with load:
            await asyncio.to_thread(cluster.stop, "kube-apiserver")
            before = load.count
            await until(lambda: load.count > before + 50, PATIENCE_SECONDS, "answers meanwhile")
            assert (await gateway.get("/readyz", admin=True)).status == 200
            assert (await gateway.get("/internal/services", admin=True)).status == 200
            await asyncio.to_thread(cluster.begin, "kube-apiserver")
            await until(lambda: api_is_back(cluster), PATIENCE_SECONDS, "the API server")
            operator.slice("emb", "r1", [one.port, two.port])
            await gateway.ready("emb", 2)
        assert load.failures == []

    async def is_fresh() -> bool:
        return await gateway.metric("sluice_gateway_discovery_age_seconds") < 40

    await until(is_fresh, PATIENCE_SECONDS, "the gateway follows the new API server")


def api_is_back(cluster: Cluster) -> bool:
    return cluster.kubectl("get", "--raw", "/readyz", check=False).returncode == 0


async def test_a_deleted_service_is_not_found(
    gateway: ClusterGateway, operator: Operator, namespace: str
) -> None:
    operator.create("emb")
    operator.answers("emb", "r1")
    await seen(gateway, bool, "the service")
    operator.delete("emb")
    await seen(gateway, lambda found: found is None, "the service's end")
    assert (await gateway.post(EMBEDDINGS, body(namespace, "x"))).status == 404


class Load:
    """Requests with inputs of their own, one after the other on each of four connections."""

    def __init__(self, gateway: ClusterGateway, namespace: str) -> None:
        self.failures: list[str] = []
        self.revisions: list[str] = []
        self._gateway = gateway
        self._namespace = namespace
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def count(self) -> int:
        return len(self.revisions)

    async def __aenter__(self) -> None:
        self._tasks = [asyncio.create_task(self._ask(n)) for n in range(4)]

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def until_both(self, revisions: tuple[str, str]) -> None:
        before = self.count

        def both() -> bool:
            found = self.revisions[before:]
            return all(found.count(revision) > 10 for revision in revisions)

        await until(both, PATIENCE_SECONDS, "answers of both revisions")

    async def _ask(self, number: int) -> None:
        async with await self._gateway.client() as client:
            count = 0
            while not self._stopping:
                count += 1
                text = f"input {number} {count}"
                reply = await client.post(EMBEDDINGS, body(self._namespace, text))
                if reply.status == 200:
                    self.revisions.append(reply.headers[names.REVISION])
                else:
                    self.failures.append(f"{reply.status} {reply.body!r}")


class Names:
    """A sink that keeps names, and counts lists."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.lists = 0

    def replaced(self, objects: list[msgspec.Raw]) -> None:
        self.lists += 1
        self.names = {name_of(given) for given in objects}

    def changed(self, given: msgspec.Raw) -> None:
        self.names.add(name_of(given))

    def deleted(self, given: msgspec.Raw) -> None:
        self.names.discard(name_of(given))


def name_of(given: msgspec.Raw) -> str:
    name: str = msgspec.json.decode(given)["metadata"]["name"]
    return name


async def test_pages_versions_and_expiry_as_the_real_server_has_them(
    gateway: ClusterGateway, operator: Operator, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PAGE", 2)
    for number in range(5):
        operator.create(f"s{number}")
    names_seen = Names()
    path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
    api = gateway.api_server()
    watching = watch.Watch(api, path, "", names_seen)
    watching._version = "1"  # Long gone: the server says 410, in its own words.
    task = asyncio.create_task(watching.run())
    try:
        five = {f"s{n}" for n in range(5)}
        await until(lambda: names_seen.names == five, PATIENCE_SECONDS, "five services")
        assert names_seen.lists == 1
        operator.delete("s3")
        operator.create("s5")
        wanted = {"s0", "s1", "s2", "s4", "s5"}
        await until(lambda: names_seen.names == wanted, PATIENCE_SECONDS, "the changes")
        assert names_seen.lists == 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
