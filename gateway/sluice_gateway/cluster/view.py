"""What the watches have brought, as the lines of a service table. Pure: no calls, no clock.

A service's line is made from its InferenceService and its EndpointSlices as they come, and only a
change that shows in the line is reported: a slice that changes costs the work of one service,
however many there are. ``discovery`` owns one.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from sluice_api import names, wire
from sluice_api.inference_service import InferenceService
from sluice_api.service_entry import entry_from_status
from sluice_api.service_files import parse_service
from sluice_api.spec_errors import SpecError
from sluice_gateway.cluster.watch import tell_skipped

APP_PORT_NAME: Final = "http"
_MAX_TOLD: Final = 500

log = logging.getLogger(__name__)


class Key(NamedTuple):
    """Names one service, or one slice."""

    namespace: str
    name: str


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    labels: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _Conditions(msgspec.Struct):
    terminating: bool | None = None


class _Target(msgspec.Struct):
    uid: str = ""


class _Address(msgspec.Struct, rename="camel"):
    addresses: list[str]
    zone: str | None = None
    conditions: _Conditions | None = None
    target_ref: _Target | None = None


class _Port(msgspec.Struct):
    name: str | None = None
    port: int | None = None


class _Slice(msgspec.Struct, rename="camel"):
    """What is read of a ``discovery.k8s.io/v1`` EndpointSlice."""

    metadata: _Metadata
    endpoints: list[_Address] | None = None
    ports: list[_Port] | None = None


class _Named(msgspec.Struct):
    metadata: _Metadata


class _Revision(msgspec.Struct, rename="camel"):
    name: str
    answer_digest: str = ""
    tasks: list[str] = []
    role: str = ""


class _Condition(msgspec.Struct):
    type: str
    status: str = ""
    reason: str = ""


class _Status(msgspec.Struct):
    """What decides about a service's line, of all that is in its status."""

    revision: str = ""
    revisions: list[_Revision] = []
    conditions: list[_Condition] = []


class _Resource(msgspec.Struct):
    metadata: _Metadata
    status: _Status | None = None


class _Definition(NamedTuple):
    """What a line was made from: the spec by its generation, the status as it was."""

    uid: str
    generation: int
    status: _Status


_decode_slice = msgspec.json.Decoder(_Slice).decode
_decode_named = msgspec.json.Decoder(_Named).decode
_decode_resource = msgspec.json.Decoder(_Resource).decode


class Services:
    """The InferenceServices of a namespace, or of all: a sink of a watch.

    Args:
        namespace: None for all.
    """

    def __init__(self, view: "View", namespace: str | None) -> None:
        self._view = view
        self._namespace = namespace

    def replaced(self, objects: list[msgspec.Raw]) -> None:
        found = set(_each(self._put, objects))
        for key in [k for k in self._view.lines if self._namespace in (None, k.namespace)]:
            if key not in found:
                self._view.drop_service(key)

    def changed(self, given: msgspec.Raw) -> None:
        self._put(given)

    def _put(self, given: msgspec.Raw) -> Key:
        metadata = _decode_named(given).metadata
        key = Key(metadata.namespace, metadata.name)
        self._view.put_service(key, given)
        return key

    def deleted(self, given: msgspec.Raw) -> None:
        metadata = _decode_named(given).metadata
        self._view.drop_service(Key(metadata.namespace, metadata.name))


class Slices:
    """The EndpointSlices of a namespace, or of all: a sink of a watch."""

    def __init__(self, view: "View", namespace: str | None) -> None:
        self._view = view
        self._namespace = namespace

    def replaced(self, objects: list[msgspec.Raw]) -> None:
        found = set(_each(self._put, objects))
        for key in [k for k in self._view.slices if self._namespace in (None, k.namespace)]:
            if key not in found:
                self._view.drop_slice(key)

    def changed(self, given: msgspec.Raw) -> None:
        self._put(given)

    def _put(self, given: msgspec.Raw) -> Key:
        read = _decode_slice(given)
        key = Key(read.metadata.namespace, read.metadata.name)
        service = (read.metadata.labels or {}).get(names.SERVICE_LABEL)
        if service is None or read.metadata.deletion_timestamp is not None:
            self._view.drop_slice(key)
        else:
            self._view.put_slice(key, Key(key.namespace, service), workers(read))
        return key

    def deleted(self, given: msgspec.Raw) -> None:
        metadata = _decode_named(given).metadata
        self._view.drop_slice(Key(metadata.namespace, metadata.name))


def _each(put: Callable[[msgspec.Raw], Key], objects: list[msgspec.Raw]) -> Iterator[Key]:
    """What is in a list. One that cannot be read is there too, and takes no other with it."""
    for given in objects:
        try:
            yield put(given)
        except msgspec.DecodeError as error:
            yield Key(*tell_skipped(given, error))


class View:
    """All services and slices, and which lines they make.

    Attributes:
        lines: per service its line, without endpoints.
        slices: per slice its service.

    Args:
        changed: told which service's line is not what it was.
    """

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self.lines: dict[Key, wire.Service] = {}
        self.slices: dict[Key, Key] = {}
        self._changed = changed
        self._made_from: dict[Key, _Definition] = {}
        self._workers: defaultdict[Key, dict[Key, dict[str, wire.Endpoint]]] = defaultdict(dict)

    def __repr__(self) -> str:
        return f"<View {len(self.lines)} services, {len(self.slices)} slices>"

    def line(self, key: Key) -> wire.Service | None:
        """The service's line as things stand; None when there is no such service."""
        line = self.lines.get(key)
        if line is None:
            return None
        # One worker may stand in several slices: while they are rearranged, and by address family.
        found: dict[str, wire.Endpoint] = {}
        for slice_key in sorted(self._workers.get(key, ())):
            for worker, endpoint in self._workers[key][slice_key].items():
                found.setdefault(worker, endpoint)
        return msgspec.structs.replace(line, endpoints=list(found.values()))

    def put_service(self, key: Key, given: msgspec.Raw) -> None:
        try:
            read = _decode_resource(given)
            status = read.status or _Status()
            definition = _Definition(read.metadata.uid, read.metadata.generation, status)
            # Reading a spec costs a hundred times as much as seeing that it is the same: most
            # changes are of numbers in the status, and a new list holds little that is new.
            if self._made_from.get(key) == definition:
                return
            self._made_from[key] = definition
            # What a newer version has added is no reason to know nothing of the service.
            known = InferenceService.known(msgspec.json.decode(given))
            service = parse_service(known, "/".join(key))
            made = read.metadata.creation_timestamp
            line = entry_from_status(
                service,
                msgspec.to_builtins(status),
                created=0 if made is None else int(made.timestamp()),
            )
        except (SpecError, ValueError, TypeError) as error:
            # Written for a newer version, perhaps. What was understood last goes on.
            log.error(
                "service is not understood, its last good definition stays",
                extra={"service": "/".join(key), "reason": str(error)[:_MAX_TOLD]},
            )
            return
        if self.lines.get(key) != line:
            self.lines[key] = line
            self._changed(key)

    def drop_service(self, key: Key) -> None:
        self._made_from.pop(key, None)
        if self.lines.pop(key, None) is not None:
            self._changed(key)

    def put_slice(self, key: Key, service: Key, workers: dict[str, wire.Endpoint]) -> None:
        if self.slices.get(key, service) != service:
            self.drop_slice(key)
        self.slices[key] = service
        if self._workers[service].get(key) != workers:
            self._workers[service][key] = workers
            self._changed(service)

    def drop_slice(self, key: Key) -> None:
        service = self.slices.pop(key, None)
        if service is None:
            return
        of_service = self._workers[service]
        del of_service[key]
        if not of_service:
            del self._workers[service]
        self._changed(service)


def workers(read: _Slice) -> dict[str, wire.Endpoint]:
    """The workers of a slice that may get requests, by their pods.

    One that is not ready counts: the gateway's own probe says so sooner. One that ends does not.
    """
    port = next((p.port for p in read.ports or () if p.name == APP_PORT_NAME), None)
    revision = (read.metadata.labels or {}).get(names.REVISION_LABEL, "")
    found: dict[str, wire.Endpoint] = {}
    for entry in read.endpoints or ():
        if (
            port is None
            or not entry.addresses
            or (entry.conditions and entry.conditions.terminating)
        ):
            continue
        address = entry.addresses[0]
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{port}"
        pod = entry.target_ref.uid if entry.target_ref else ""
        found[pod or url] = wire.Endpoint(url=url, revision=revision, zone=entry.zone or "")
    return found
