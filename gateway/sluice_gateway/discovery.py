"""Where the gateway learns which services and workers there are.

An adapter tells the table of services whenever something may have changed, and keeps what was good
when its source fails: a gateway without its source goes on with what it knows. ``static`` reads a
file; ``cluster.discovery`` watches Kubernetes. Made by ``app``.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol, get_args

import msgspec
import yaml

from sluice_api import names, strict_yaml, wire
from sluice_api.decode import value_at
from sluice_api.spec_errors import MAX_FIELD, MAX_TOLD, shown
from sluice_gateway.worker_url import split_url

POLL_SECONDS: Final = 0.05
MAX_TABLE_BYTES: Final = 64 * 1024 * 1024

log = logging.getLogger(__name__)


class _Loader(strict_yaml.Strict, yaml.SafeLoader):
    pass


class TableError(ValueError):
    """The source says nothing that can be used; the message says where and why."""


class Table(Protocol):
    """What an adapter tells: the services, kept live by ``services``."""

    def replace(self, table: wire.ServiceTable) -> None:
        """These are all services there are."""
        ...

    def put(self, spec: wire.Service) -> None:
        """One service is new, or has changed."""
        ...

    def remove(self, namespace: str, name: str) -> None: ...


class Discovery(Protocol):
    """An adapter.

    Attributes:
        synced: set once the table has been told everything for the first time.
        read_at: when the source was last known to be good, on the monotonic clock.
    """

    synced: asyncio.Event

    @property
    def read_at(self) -> float: ...

    def begin(self, table: Table) -> None:
        """Tell what can be told at once. Raises :class:`TableError` when that is nothing good."""
        ...

    async def run(self, table: Table) -> None:
        """Tell what changes, until cancelled."""
        ...


class StaticDiscovery:
    """A file with a service table, YAML or JSON, read again whenever it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.synced = asyncio.Event()
        self.read_at = 0.0
        self.failing = False
        self.tables = 0
        self._seen: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        state = "failing" if self.failing else "good"
        return f"<StaticDiscovery {self.path.name} {state}, {self.tables} read>"

    def begin(self, table: Table) -> None:
        self._seen = self._stamp()
        table.replace(read_table(self.path))
        self.tables += 1
        self.read_at = time.monotonic()
        self.synced.set()

    async def run(self, table: Table) -> None:
        # Polling sees every way of replacing a file, on every file system, for 20 stats a second.
        while True:
            await asyncio.sleep(POLL_SECONDS)
            stamp = self._stamp()
            if stamp == self._seen:
                if not self.failing:
                    self.read_at = time.monotonic()
                continue
            self._seen = stamp
            try:
                found = read_table(self.path)
            except TableError as error:
                self.failing = True
                log.error(
                    "service table is not usable, the last good one stays",
                    extra={"path": str(self.path), "reason": str(error)},
                )
                continue
            self.failing = False
            self.read_at = time.monotonic()
            self.tables += 1
            table.replace(found)
            log.info("service table applied", extra={"services": len(found.services)})

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)


def read_table(path: Path) -> wire.ServiceTable:
    """Read and check a table. Raises :class:`TableError`."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise TableError(f"{path}: {error.strerror or error}") from None
    if len(text) > MAX_TABLE_BYTES:
        raise TableError(f"{path}: larger than {MAX_TABLE_BYTES} bytes")
    try:
        is_json = text.lstrip()[:1] == b"{"
        given = msgspec.json.decode(text) if is_json else strict_yaml.load(text, _Loader)
        if isinstance(given, dict) and given.get("kind") == names.KIND:
            raise TableError(
                f"{path}: this is an {names.KIND}, not a table of services. Run `sluice up {path}`."
            )
        table = _convert(given, path)
    except RecursionError:
        raise TableError(f"{path}: it nests too deeply") from None
    except (msgspec.DecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: {' '.join(str(error).split())}") from None
    _check(table, path)
    # Not an error: a table written by a newer version may say more than this one knows.
    if unknown := list(unknown_members(given, wire.ServiceTable)):
        log.warning(
            "service table has members that are not known and were ignored",
            extra={
                "path": str(path),
                "members": [member[:MAX_FIELD] for member in unknown[:MAX_TOLD]],
                "count": len(unknown),
            },
        )
    return table


def _convert(given: Any, path: Path) -> wire.ServiceTable:
    try:
        return msgspec.convert(given, wire.ServiceTable)
    except msgspec.ValidationError as error:
        got = shown(value_at(str(error), given))
        raise TableError(f"{path}: {error}: got {got}") from None


def unknown_members(given: Any, kind: type[msgspec.Struct], where: str = "") -> Iterator[str]:
    """Paths of the members of ``given``, as decoded, that ``kind`` does not have."""
    for name, value in given.items():
        path = f"{where}.{name}" if where else str(name)
        if name not in _members(kind):
            yield path
        elif inner := _members(kind)[name]:
            if isinstance(value, list):
                for index, entry in enumerate(value):
                    yield from unknown_members(entry, inner, f"{path}[{index}]")
            elif value is not None:
                yield from unknown_members(value, inner, path)


@cache
def _members(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """By name on the wire: the message that a member holds, one or a list; None for the rest."""
    members: dict[str, type[msgspec.Struct] | None] = {}
    for member in msgspec.structs.fields(kind):
        types = (member.type, *get_args(member.type))
        structs = (t for t in types if isinstance(t, type) and issubclass(t, msgspec.Struct))
        members[member.encode_name] = next(structs, None)
    return members


def _check(table: wire.ServiceTable, path: Path) -> None:
    seen: set[tuple[str, str]] = set()
    for index, service in enumerate(table.services):
        where = f"{path}: services[{index}]"
        key = (service.namespace, service.name)
        if not service.name or not service.namespace or "/" in service.name + service.namespace:
            raise TableError(f"{where}: name and namespace must be plain names, got {key}")
        if key in seen:
            raise TableError(f"{where}: {service.namespace}/{service.name} is there twice")
        if not service.revision:
            raise TableError(f"{where}: revision is empty")
        seen.add(key)
        for number, endpoint in enumerate(service.endpoints):
            try:
                split_url(endpoint.url)
            except ValueError as error:
                name = f"{service.namespace}/{service.name}"
                raise TableError(
                    f"{where}.endpoints[{number}].url of service {name}: {error}"
                ) from None
