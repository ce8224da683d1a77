"""Everything the watches have brought, by the service it belongs to.

``handlers`` puts and removes, ``audit`` corrects, ``reconcile``, the fleet and the metrics API
read. Objects are kept as packed JSON: a dict of Python takes five times the memory, and most
services are at rest most of the time.
"""

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from sluice_api import names
from sluice_operator import kinds
from sluice_operator.ownership import Addition, additions, is_orphan, replicas_managers
from sluice_operator.state import ChildKey, Key, Object, Observed, Refusal
from sluice_operator.trim import trimmed

_PACK_FROM: Final = 512
"""Bytes of JSON from which compressing is worth its time."""
_GRAVES: Final = 4096
"""Of so many removed objects it is known that they are gone: an answer may come after the news."""
_CHILDREN: Final = frozenset(kind.name for kind in kinds.CHILDREN)


class Address(NamedTuple):
    """Where one object is: its kind's name, its namespace and its own name."""

    kind: str
    namespace: str
    name: str


class Entry:
    """One object, packed."""

    __slots__ = (
        *("_packed", "additions", "managers", "node", "orphan"),
        *("owner", "suspect", "uid", "version"),
    )

    def __init__(self, item: Object, owner: Key | None) -> None:
        text = msgspec.json.encode(trimmed(item))
        self._packed = zlib.compress(text, 1) if len(text) >= _PACK_FROM else text
        self.owner = owner
        self.uid: str = item["metadata"]["uid"]
        self.version = number_of(item["metadata"].get("resourceVersion", ""))
        self.managers: frozenset[str] = replicas_managers(item)
        is_child = item["kind"] in _CHILDREN
        self.additions: tuple[Addition, ...] = additions(item) if is_child else ()
        self.orphan: bool = is_child and is_orphan(item)
        is_pod = item["kind"] == kinds.POD.name
        self.node: str = sys.intern(item["spec"].get("nodeName", "")) if is_pod else ""
        self.suspect: bool = is_pod and is_suspect(item)

    def __repr__(self) -> str:
        return f"<Entry {self.uid} of {self.owner}: {len(self._packed)} bytes>"

    def same(self, other: "Entry") -> bool:
        """Whether both say the same to everybody here; versions do not matter."""
        return (
            self._packed == other._packed
            and self.managers == other.managers
            and self.additions == other.additions
            and self.orphan == other.orphan
        )

    def unpacked(self) -> dict[str, Any]:
        text = self._packed if self._packed[:1] == b"{" else zlib.decompress(self._packed)
        return msgspec.json.decode(text, type=dict[str, Any])


class Store:
    """The operator's view of the cluster.

    Args:
        on_gateways: called when a slice of the gateway's admin Service has changed.
    """

    def __init__(self, on_gateways: Callable[[], None] = lambda: None) -> None:
        self._entries: dict[Address, Entry] = {}
        self._belonging: dict[Key, tuple[Address, ...]] = {}
        self._graves: dict[str, int] = {}  # uid: its last version
        self._services = 0
        self._warnings: dict[Key, dict[str, tuple[tuple[str, str], ...]]] = {}
        self._refusals: dict[Key, dict[str, Refusal]] = {}
        self._lost_nodes: frozenset[str] = frozenset()
        self._on_gateways = on_gateways

    def __repr__(self) -> str:
        return f"<Store {self._services} services, {len(self._entries)} objects>"

    def __len__(self) -> int:
        """How many InferenceServices there are."""
        return self._services

    # Writing -------------------------------------------------------------------------------------

    def put(self, item: Object) -> tuple[Key, ...]:
        """Take in an object as it is now; the services it touches, if they are to be looked at.

        Two where the object has changed hands: the one that has lost it wants it back.
        """
        address = address_of(item)
        owner = owner_of(item)
        if owner is not None and (others := self._belonging.get(owner)):
            owner = self._entries[others[0]].owner  # one tuple for all of them
        entry = Entry(item, owner)
        before = self._entries.get(address)
        if before is not None and before.uid == entry.uid and entry.version < before.version:
            return ()
        if entry.version <= self._graves.get(entry.uid, -1):
            return ()
        self._entries[address] = entry
        if before is None:
            self._services += address.kind == names.KIND
        if before is None or before.owner != entry.owner:
            self._disown(address, before)
            if entry.owner is not None:
                others = self._belonging.get(entry.owner, ())
                self._belonging[entry.owner] = (*others, address)
        if before is not None and before.uid == entry.uid and entry.same(before):
            return ()
        return self._touched(address, before, entry)

    def put_scale(self, scale: Object) -> tuple[Key, ...]:
        """Take in the answer to a write of ours to a Deployment's scale subresource."""
        metadata = scale["metadata"]
        address = Address(kinds.DEPLOYMENT.name, metadata["namespace"], metadata["name"])
        entry = self._entries.get(address)
        if entry is None or entry.uid != metadata["uid"]:
            return ()
        item = entry.unpacked()
        replicas = scale["spec"].get("replicas", 0)
        # The same number is everybody's, but for zero: a Scale leaves that out, and others with it.
        same = replicas and item["spec"].get("replicas", 1) == replicas
        managers = {names.SCALER_FIELD_MANAGER} | (entry.managers if same else set())
        owns: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
        item["spec"]["replicas"] = replicas
        item["metadata"] |= {
            "resourceVersion": metadata["resourceVersion"],
            "managedFields": [{"manager": each, "fieldsV1": owns} for each in managers],
        }
        return self.put(item)

    def remove(self, address: Address, uid: str, version: str = "") -> tuple[Key, ...]:
        """Forget an object as of ``version``, unless another one has taken its place.

        A later version of it is taken in again: it may have lost our label and got it back.
        """
        entry = self._entries.get(address)
        last = entry.version if entry is not None and entry.uid == uid else 0
        self._graves[uid] = max(last, number_of(version))
        if len(self._graves) > _GRAVES:
            del self._graves[next(iter(self._graves))]
        if entry is None or entry.uid != uid:
            return ()
        del self._entries[address]
        self._services -= address.kind == names.KIND
        self._disown(address, entry)
        return self._touched(address, entry)

    def warn(self, key: Key, warnings: Mapping[str, tuple[tuple[str, str], ...]]) -> bool:
        """Keep what Events say of a service's pods, by pod; whether that is news."""
        news = self._warnings.get(key, {}) != warnings
        if warnings:
            self._warnings[key] = dict(warnings)
        else:
            self._warnings.pop(key, None)
        return news

    def refuse(self, key: Key, refusals: Mapping[str, Refusal]) -> bool:
        """Keep what Events say of a service's refused pods, by Deployment; whether that is news."""
        news = self._refusals.get(key, {}) != refusals
        if refusals:
            self._refusals[key] = dict(refusals)
        else:
            self._refusals.pop(key, None)
        return news

    def lose_nodes(self, lost: frozenset[str]) -> frozenset[Key]:
        """Keep the names of nodes that have fallen silent; the services to which that is news.

        A pod may have been called ready again before its node was, and be no suspect any more.
        """
        news, self._lost_nodes = lost ^ self._lost_nodes, lost
        if not news:
            return frozenset()
        entries = self._entries.values()
        return frozenset(entry.owner for entry in entries if entry.owner and entry.node in news)

    def _touched(self, address: Address, *entries: Entry | None) -> tuple[Key, ...]:
        if address.kind == kinds.ENDPOINT_SLICE.name:
            self._on_gateways()
        owners = (entry.owner for entry in entries if entry is not None)
        return tuple(dict.fromkeys(owner for owner in owners if owner is not None))

    def _disown(self, address: Address, entry: Entry | None) -> None:
        if entry is None or entry.owner is None:
            return
        others = tuple(one for one in self._belonging[entry.owner] if one != address)
        self._belonging[entry.owner] = others
        if not others:
            del self._belonging[entry.owner]
            self._warnings.pop(entry.owner, None)
            self._refusals.pop(entry.owner, None)

    # Reading -------------------------------------------------------------------------------------

    def services(self) -> Iterator[Key]:
        """Every InferenceService."""
        for address in self._entries:
            if address.kind == names.KIND:
                yield Key(address.namespace, address.name)

    def resource(self, key: Key) -> dict[str, Any] | None:
        """The InferenceService itself."""
        entry = self._entries.get(Address(names.KIND, key.namespace, key.name))
        return entry.unpacked() if entry else None

    def observe(self, key: Key) -> Observed | None:
        """A service with all that belongs to it; None when there is no such service."""
        if (resource := self.resource(key)) is None:
            return None
        children: dict[ChildKey, Object] = {}
        managers: dict[str, frozenset[str]] = {}
        added: dict[ChildKey, tuple[Addition, ...]] = {}
        orphans: set[ChildKey] = set()
        pods: list[Object] = []
        for address in self._belonging[key]:
            if address.kind == names.KIND:
                continue
            entry = self._entries[address]
            if address.kind == kinds.POD.name:
                pods.append(entry.unpacked())
                continue
            child = ChildKey(address.kind, address.name)
            children[child] = entry.unpacked()
            if entry.additions:
                added[child] = entry.additions
            if entry.orphan:
                orphans.add(child)
            if address.kind == kinds.DEPLOYMENT.name:
                managers[address.name] = entry.managers
        pods.sort(key=lambda pod: str(pod["metadata"]["name"]))
        return Observed(
            resource=resource,
            children=children,
            replicas_managers=managers,
            additions=added,
            orphans=frozenset(orphans),
            pods=tuple(pods),
            pod_events=self._warnings.get(key, {}),
            refusals=self._refusals.get(key, {}),
            lost_nodes=self._lost_nodes,
        )

    def gateway_slices(self) -> list[dict[str, Any]]:
        """The EndpointSlices of the gateway's admin Service."""
        return [
            entry.unpacked()
            for address, entry in self._entries.items()
            if address.kind == kinds.ENDPOINT_SLICE.name
        ]

    def uids(self, kind: str) -> dict[Address, str]:
        """Of every object of a kind; for ``audit``."""
        return {
            address: entry.uid for address, entry in self._entries.items() if address.kind == kind
        }

    def holds(self, address: Address, uid: str, version: str = "") -> bool:
        """Whether this very object is here, in this version or a later one."""
        entry = self._entries.get(address)
        return entry is not None and entry.uid == uid and entry.version >= number_of(version)

    def suspect_nodes(self) -> frozenset[str]:
        """Nodes of pods that have become unready without a word of their kubelet."""
        return frozenset(entry.node for entry in self._entries.values() if entry.suspect)


def address_of(item: Object) -> Address:
    metadata = item["metadata"]
    kind, namespace = sys.intern(item["kind"]), sys.intern(metadata.get("namespace", ""))
    return Address(kind, namespace, metadata["name"])


def owner_of(item: Object) -> Key | None:
    """The service an object says it belongs to, by its label; a service belongs to itself."""
    metadata = item["metadata"]
    if item["kind"] == names.KIND:
        return Key(metadata["namespace"], metadata["name"])
    name = (metadata.get("labels") or {}).get(names.SERVICE_LABEL)
    return Key(metadata["namespace"], name) if name else None


def number_of(version: str) -> int:
    """A resourceVersion, to be compared; 0 for one that is no number."""
    # Since Kubernetes 1.35 they are documented to be comparable numbers; they always were.
    return int(version) if version.isdigit() else 0


def is_suspect(pod: Object) -> bool:
    """Whether somebody else than its node's kubelet said Ready=False: that still says ready."""
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or ()
    ready: Object = next(
        (c for c in status.get("conditions") or () if c.get("type") == "Ready"), {}
    )
    running = bool(containers) and all(one.get("ready") for one in containers)
    return running and ready.get("status") == "False"
