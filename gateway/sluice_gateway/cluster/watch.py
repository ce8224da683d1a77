"""List, then watch, for ever: one collection of objects, kept as the API server has it.

Every way a watch goes wrong ends here: an expired version is listed anew, a silent connection is
opened anew, an API server that is away is asked again with growing, jittered pauses – and what was
known stays known meanwhile. ``discovery`` runs one per collection.
"""

import asyncio
import contextlib
import logging
import random
import time
from typing import Final, Protocol

import msgspec

from sluice_gateway.cluster.api import ApiServer, Refused, Unreachable

PAGE: Final = 500
WATCH_SECONDS: Final = 30.0
"""The server is asked to end a watch after so long, so that a dead connection shows soon."""
SILENCE_SECONDS: Final = 5.0
"""How much later the end may come before the connection is taken to be dead."""
FIRST_PAUSE_SECONDS: Final = 0.1
MAX_PAUSE_SECONDS: Final = 5.0
SHORT_SECONDS: Final = 1.0
"""A watch that the server ends sooner than this counts as failed: it might end at once for ever."""
TELL_EVERY: Final = 20
"""Failures in a row between two lines of the log."""
GONE: Final = 410

log = logging.getLogger(__name__)


class Sink(Protocol):
    """What takes the objects, each as the JSON it came as."""

    def replaced(self, objects: list[msgspec.Raw]) -> None:
        """These are all objects there are; one that cannot be read is skipped."""
        ...

    # One of these may raise msgspec.DecodeError: the object is skipped.
    def changed(self, given: msgspec.Raw) -> None: ...
    def deleted(self, given: msgspec.Raw) -> None: ...


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _Named(msgspec.Struct):
    namespace: str = ""
    name: str = ""


class _Anyone(msgspec.Struct):
    metadata: _Named


class _List(msgspec.Struct):
    metadata: _Metadata
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Any(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    code: int = 0
    message: str = ""


_decode_list = msgspec.json.Decoder(_List).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_anyone = msgspec.json.Decoder(_Anyone).decode
_decode_any = msgspec.json.Decoder(_Any).decode


class Watch:
    """One collection.

    Attributes:
        heard_at: when the server was last heard of this collection, on the monotonic clock.
        listed: set once the sink has been given everything.

    Args:
        path: of the collection, such as ``/apis/sluice.dev/v1alpha1/inferenceservices``.
        selector: a label selector; empty for all objects.
    """

    def __init__(self, api: ApiServer, path: str, selector: str, sink: Sink) -> None:
        self.path = path
        self.heard_at = float("-inf")
        self.listed = asyncio.Event()
        self._api = api
        self._query = {"labelSelector": selector} if selector else {}
        self._sink = sink
        self._version = ""
        self._lists = 0
        self._failures = 0

    def __repr__(self) -> str:
        state = f"failing {self._failures} times" if self._failures else "good"
        return f"<Watch {self.path} {state}, {self._lists} lists, at {self._version or 'nothing'}>"

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            began = time.monotonic()
            try:
                if not self._version:
                    await self._list()
                await self._follow()
                if time.monotonic() - began < SHORT_SECONDS:
                    raise Unreachable("the watch ended at once")
                self._recovered()
            except Refused as error:
                if error.status == GONE:
                    self._version = ""
                self._failed(error)
            except (Unreachable, msgspec.DecodeError) as error:
                self._failed(error)
            if self._failures:
                await asyncio.sleep(pause(self._failures, random.random()))  # noqa: S311

    async def _list(self) -> None:
        objects: list[msgspec.Raw] = []
        query = self._query | {"limit": str(PAGE)}
        while True:
            page = _decode_list(await self._api.get(self.path, query))
            objects += page.items or []
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        self._sink.replaced(objects)
        self._lists += 1
        self.heard_at = time.monotonic()
        self._recovered()
        self._version = page.metadata.resource_version
        self.listed.set()
        log.info("listed", extra={"path": self.path, "objects": len(objects)})

    async def _follow(self) -> None:
        """Follow the changes since the last version until the server ends the watch."""
        seconds = WATCH_SECONDS * random.uniform(1.0, 1.3)  # noqa: S311
        query = self._query | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(seconds)),
        }
        lines = self._api.lines(self.path, query, seconds + SILENCE_SECONDS)
        async with contextlib.aclosing(lines):
            async for line in lines:
                self.heard_at = time.monotonic()
                if line:
                    self._take(_decode_event(line))
                    self._recovered()

    def _take(self, event: _Event) -> None:
        given = _decode_any(event.object)
        if event.type == "ERROR":
            raise Refused(given.code, given.message)
        try:
            if event.type == "DELETED":
                self._sink.deleted(event.object)
            elif event.type != "BOOKMARK":
                self._sink.changed(event.object)
        except msgspec.DecodeError as error:
            tell_skipped(event.object, error)  # Or the same event would come back for ever.
        self._version = given.metadata.resource_version or self._version

    def _recovered(self) -> None:
        if self._failures > 1:
            log.info("watching again", extra={"path": self.path, "failures": self._failures})
        self._failures = 0

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        # The first is often a restart of the server, or a version that has expired.
        told = self._failures == 2 or self._failures % TELL_EVERY == 0
        level = logging.WARNING if told else logging.DEBUG
        log.log(level, "watch failed", extra={"path": self.path, "reason": str(error)})


def tell_skipped(given: msgspec.Raw, error: msgspec.DecodeError) -> tuple[str, str]:
    """Log that an object cannot be read. Its namespace and name, empty as far as unknown."""
    try:
        metadata = _decode_anyone(given).metadata
    except msgspec.DecodeError:
        metadata = _Named()
    log.error(
        "object is not understood, what was known of it stays",
        extra={"object": f"{metadata.namespace}/{metadata.name}", "reason": str(error)},
    )
    return metadata.namespace, metadata.name


def pause(failures: int, draw: float) -> float:
    """Seconds to wait after so many failures in a row; ``draw`` is uniform in [0, 1)."""
    longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + draw / 2)
