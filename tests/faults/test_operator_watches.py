"""Watches that break: the store is right again soon, without a flood of lists.

A small HTTP server plays the API server, because a real one cannot be told to fail in these ways at
a given moment. kopf, the store and the audit are the real ones.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from sluice_api import names
from sluice_operator import audit, kinds
from sluice_operator.audit import Auditor
from sluice_operator.handlers import Watches, WatchesEnded
from sluice_operator.instruments import Instruments
from sluice_operator.kinds import Kind, Watched
from sluice_operator.state import Key
from sluice_operator.store import Store

KIND = kinds.INFERENCE_SERVICE
PATH = KIND.path()
CRD = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
NAMESPACE = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
"""With the one before, what kopf wants to know of before it begins."""
GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}


class ApiServer:
    """Lists and watches one kind; the test says what the watch brings."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.asked: Counter[str] = Counter()
        self._version = 10
        self._watches: set[asyncio.Queue[bytes | None]] = set()
        self.url = ""

    def put(self, name: str) -> dict[str, Any]:
        self._version += 1
        self.items[name] = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {
                "namespace": "team",
                "name": name,
                "uid": f"uid-{name}",
                "resourceVersion": str(self._version),
            },
            "spec": {},
        }
        return self.items[name]

    def tell(self, what: dict[str, Any] | bytes | None) -> None:
        """Send a line into every open watch; None ends them."""
        line = json.dumps(what).encode() + b"\n" if isinstance(what, dict) else what
        for watch in self._watches:
            watch.put_nowait(line)

    @property
    def watched(self) -> bool:
        return bool(self._watches)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/api":
            return web.json_response({"versions": ["v1"]})
        if path == "/apis":
            return web.json_response({"groups": [_group(KIND), _group(CRD)]})
        for kind in (KIND, CRD, NAMESPACE):
            if path == kind.path().rpartition("/")[0]:
                return web.json_response({"resources": [_resource(kind)]})
        if path != PATH:
            return web.json_response({"versions": [], "resources": []})
        if "watch" in request.query:
            return await self._watch(request)
        self.asked["list"] += 1
        metadata = {"resourceVersion": str(self._version)}
        return web.json_response({"metadata": metadata, "items": list(self.items.values())})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.asked["watch"] += 1
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._watches.add(lines)
        try:
            while (line := await lines.get()) is not None:
                await response.write(line)
        finally:
            self._watches.discard(lines)
        return response


def _group(kind: Kind) -> dict[str, Any]:
    version = {"groupVersion": kind.api_version, "version": kind.version}
    return {"name": kind.group, "versions": [version], "preferredVersion": version}


def _resource(kind: Kind) -> dict[str, Any]:
    return {
        "name": kind.plural,
        "kind": kind.name,
        "singularName": kind.name.lower(),
        "namespaced": kind.namespaced,
        "verbs": ["get", "list", "watch"],
    }


class Lists:
    """What the auditor asks, answered by the same server without a socket."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    async def list_metadata(self, kind: Kind, *_: str) -> AsyncIterator[dict[str, Any]]:
        for item in list(self._server.items.values()):
            yield item["metadata"]


class Scene:
    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.store = Store()
        self.changed: list[Key] = []
        watched = (Watched(KIND),)
        instruments = Instruments(CollectorRegistry())
        self.auditor = Auditor(self.store, Lists(api), watched, self.changed.append, instruments)
        self.watches = Watches(
            watched,
            self,
            self.store,
            self.changed.append,
            self.auditor.listed_anew,
            instruments,
        )

    def session(self, *middlewares: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(middlewares=middlewares)

    @property
    def server(self) -> str:
        return self.api.url

    def names(self) -> set[str]:
        return {key.name for key in self.store.services()}


Run = Callable[[], Awaitable[Scene]]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    server = ApiServer()
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    server.put("one")
    server.put("two")
    made = Scene(server)
    await made.watches.start()
    auditing = asyncio.get_running_loop().create_task(made.auditor.run())
    await until(lambda: made.auditor.synced.is_set() and server.watched)
    yield made
    auditing.cancel()
    server.tell(None)
    await made.watches.stop()
    await runner.cleanup()


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is looked at makes no sign
            await asyncio.sleep(0.02)


async def test_what_a_watch_brings_is_seen(scene: Scene) -> None:
    assert scene.names() == {"one", "two"}
    scene.api.tell({"type": "ADDED", "object": scene.api.put("three")})
    await until(lambda: scene.names() == {"one", "two", "three"})
    scene.api.tell({"type": "DELETED", "object": scene.api.items.pop("three")})
    await until(lambda: scene.names() == {"one", "two"})
    assert Key("team", "three") in scene.changed


async def test_a_watch_that_ends_goes_on_where_it_was(scene: Scene) -> None:
    lists = scene.api.asked["list"]
    scene.api.tell(None)
    await until(lambda: scene.api.asked["watch"] == 2 and scene.api.watched)
    scene.api.tell({"type": "ADDED", "object": scene.api.put("three")})
    await until(lambda: "three" in scene.names())
    assert scene.api.asked["list"] == lists


async def test_what_vanished_before_a_new_list_is_forgotten(scene: Scene) -> None:
    """410 Gone: kopf lists anew, and says nothing of what is no longer there."""
    lists = scene.api.asked["list"]
    del scene.api.items["two"]
    scene.api.put("three")
    scene.changed.clear()
    scene.api.tell(GONE)
    await until(lambda: scene.names() == {"one", "three"}, audit.RETRY_SECONDS + 60)
    assert Key("team", "two") in scene.changed
    assert scene.api.asked["list"] == lists + 1


async def test_garbage_ends_the_watches_with_an_error(scene: Scene) -> None:
    running = asyncio.get_running_loop().create_task(scene.watches.run())
    scene.api.tell(b"{garbage\n")
    async with asyncio.timeout(60):
        with pytest.raises(WatchesEnded):
            await running
