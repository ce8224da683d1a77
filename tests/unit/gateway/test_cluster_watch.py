"""Lists and watches: paging, expiry, errors in the stream, pauses; what is known is kept."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
import pytest

from sluice_api import names
from sluice_gateway.cluster import watch
from sluice_gateway.cluster.api import Refused, Unreachable
from sluice_gateway.cluster.view import Slices, View
from sluice_gateway.cluster.watch import Sink, Watch, pause
from tests.support.stub_worker import until

PATH = "/apis/x/v1/things"
Answer = bytes | Exception


class Server:
    """Gives the answers of a script, one a call; then waits for ever."""

    def __init__(self, *script: Answer | list[Answer]) -> None:
        self.script = list(script)
        self.asked: list[dict[str, str]] = []
        self.done = asyncio.Event()

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        assert path == PATH
        answer = await self._next(query)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, bytes)
        return answer

    async def lines(
        self, path: str, query: Mapping[str, str], silence: float
    ) -> AsyncGenerator[bytes]:
        answer = await self._next(query)
        if isinstance(answer, Exception):
            raise answer
        yield b""
        for line in answer if isinstance(answer, list) else [answer]:
            if isinstance(line, Exception):
                raise line
            yield line

    async def _next(self, query: Mapping[str, str]) -> Answer | list[Answer]:
        self.asked.append(dict(query))
        if not self.script:
            self.done.set()
            await asyncio.Event().wait()
        return self.script.pop(0)


class Things:
    """A sink that keeps names."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.lists = 0

    def replaced(self, objects: list[msgspec.Raw]) -> None:
        self.lists += 1
        self.names = {json.loads(bytes(given))["metadata"]["name"] for given in objects}

    def changed(self, given: msgspec.Raw) -> None:
        self.names.add(json.loads(bytes(given))["metadata"]["name"])

    def deleted(self, given: msgspec.Raw) -> None:
        self.names.discard(json.loads(bytes(given))["metadata"]["name"])


def thing(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}}


def page(version: str, *names: str, more: str = "") -> bytes:
    return json.dumps(
        {
            "metadata": {"resourceVersion": version, "continue": more},
            "items": [thing(name, "1") for name in names],
        }
    ).encode()


def event(kind: str, name: str, version: str) -> bytes:
    return json.dumps({"type": kind, "object": thing(name, version)}).encode()


EXPIRED = json.dumps(
    {
        "type": "ERROR",
        "object": {"kind": "Status", "code": 410, "message": "too old", "metadata": {}},
    }
).encode()


async def ran(*script: Answer | list[Answer], selector: str = "") -> tuple[Server, Things, Watch]:
    """Run a watch through the script."""
    things = Things()
    server, made = await followed(things, *script, selector=selector)
    return server, things, made


async def followed(
    sink: Sink, *script: Answer | list[Answer], selector: str = ""
) -> tuple[Server, Watch]:
    server = Server(*script)
    made = Watch(server, PATH, selector, sink)  # type: ignore[arg-type]
    task = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(60):
            await server.done.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return server, made


async def test_pages_are_put_together_and_the_last_version_is_followed() -> None:
    server, things, made = await ran(
        page("5", "a", more="next"),
        page("5", "b"),
        [event("ADDED", "c", "6"), event("DELETED", "a", "7"), event("BOOKMARK", "", "9")],
        selector="x=y",
    )
    assert things.names == {"b", "c"} and things.lists == 1
    assert made.listed.is_set() and made.heard_at > 0
    first, second, third, fourth = server.asked
    assert first == {"labelSelector": "x=y", "limit": "500"}
    assert second["continue"] == "next"
    assert (third["resourceVersion"], third["allowWatchBookmarks"]) == ("5", "true")
    assert fourth["resourceVersion"] == "9"  # Where the bookmark says, not the last change.
    assert 30 <= int(third["timeoutSeconds"]) <= 39


@pytest.mark.parametrize("expired", [[EXPIRED], Refused(410, "too old")])
async def test_an_expired_version_is_listed_anew(expired: Any) -> None:
    server, things, _ = await ran(page("5", "a", "b"), expired, page("90", "b"))
    assert things.names == {"b"} and things.lists == 2
    assert server.asked[-1]["resourceVersion"] == "90"


async def test_a_broken_watch_goes_on_where_it_was() -> None:
    server, things, made = await ran(
        page("5", "a"),
        [event("ADDED", "b", "6"), Unreachable("reset")],
        Unreachable("refused"),
        Refused(500, "no etcd"),
        [b"{", event("ADDED", "never", "7")],
        [event("ADDED", "c", "7"), Unreachable("reset")],
    )
    assert things.names == {"a", "b", "c"} and things.lists == 1
    assert [query["resourceVersion"] for query in server.asked[1:]] == list("566667")
    assert "1 lists" in repr(made)


async def test_a_list_that_fails_leaves_what_is_known() -> None:
    _, things, made = await ran(
        page("5", "a"), [EXPIRED], Unreachable("refused"), Refused(403, "no"), page("9", "a", "b")
    )
    assert things.names == {"a", "b"}
    assert made.listed.is_set()


async def test_an_object_that_cannot_be_read_takes_no_other_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def pods(name: str, version: str, *endpoints: Any) -> dict[str, Any]:
        labels = {names.SERVICE_LABEL: "emb"}
        metadata = {"name": name, "namespace": "team", "resourceVersion": version, "labels": labels}
        ports = [{"name": "http", "port": 8080}]
        return {"metadata": metadata, "endpoints": list(endpoints), "ports": ports}

    def listed(version: str, *items: dict[str, Any]) -> bytes:
        return json.dumps({"metadata": {"resourceVersion": version}, "items": items}).encode()

    def modified(item: dict[str, Any]) -> bytes:
        return json.dumps({"type": "MODIFIED", "object": item}).encode()

    good, bad = {"addresses": ["10.0.0.1"]}, {"addresses": 7}
    view = View(lambda key: None)
    server, _ = await followed(
        Slices(view, None),
        listed("5", pods("a", "1", good), pods("b", "1", bad), pods("c", "1", good)),
        [modified(pods("a", "6", bad)), modified(pods("d", "7", good))],
        [EXPIRED],
        listed("9", pods("a", "6", bad), pods("d", "7", good)),
    )
    assert [query.get("resourceVersion") for query in server.asked] == [None, "5", "7", None, "9"]
    assert sorted(key.name for key in view.slices) == ["a", "d"], "what was known of a stays"
    told = [record.object for record in caplog.records if "not understood" in record.message]  # type: ignore[attr-defined]
    assert told == ["team/b", "team/a", "team/a"]


async def test_a_watch_that_ends_at_once_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []

    def counted(failures: int, draw: float) -> float:
        pauses.append(failures)
        return 0.0

    monkeypatch.setattr(watch, "pause", counted)
    await ran(page("5"), [], [], [], [])
    assert pauses == [1, 2, 3, 4]


async def test_cancelling_ends_it() -> None:
    server = Server(page("5"))
    task = asyncio.create_task(Watch(server, PATH, "", Things()).run())  # type: ignore[arg-type]
    await until(lambda: len(server.asked) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_pauses_grow_jitter_and_stop_growing() -> None:
    lows = [pause(n, 0.0) for n in range(1, 12)]
    highs = [pause(n, 1.0) for n in range(1, 12)]
    assert highs[:3] == pytest.approx([0.1, 0.2, 0.4]) and highs[-1] == 5.0
    assert all(low == high / 2 for low, high in zip(lows, highs, strict=True))
    assert pause(10**6, 0.5) <= 5.0
