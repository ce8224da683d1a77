"""An API server in memory, at the operator's own seam: for tests of what it does, step by step.

It keeps what matters to an operator as the real one does: server-side apply with ownership of
single fields, ``generation``, ``resourceVersion`` that stays when nothing changes, uids, the status
and scale subresources, and garbage collection by owner. Lists and selectors are owned whole. Any
call can be made to fail, before or after its effect.
"""

import copy
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from sluice_api import names
from sluice_operator.api_errors import Conflict, Foreign, NotFound
from sluice_operator.kinds import Kind
from sluice_operator.ownership import is_orphan, taken_over
from sluice_operator.state import Object
from sluice_operator.steps import Apply, Delete, Rank, Scale, Step
from sluice_operator.store import Address, Store, address_of

Path = tuple[str, ...]
DEFAULTS: dict[str, dict[str, Any]] = {
    "Deployment": {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600},
    "Service": {"type": "ClusterIP", "sessionAffinity": "None"},
    "HorizontalPodAutoscaler": {"minReplicas": 1},
}
"""Of ``spec``, as the API server fills them in."""
IDENTITY = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}
REPLICAS = ("spec", "replicas")
APPLIERS = {names.FIELD_MANAGER, names.SCALER_FIELD_MANAGER}
ATOMIC = {"selector", "podSelector", "labelSelector", "nodeSelector"}
"""Maps that have one owner."""


class Crash(Exception):
    """The process died here."""


class FakeCluster:
    """The objects, who owns which of their fields, and everything that was written.

    Attributes:
        writes: what changed something, in order, such as ``apply Deployment a/b``.
        before_write, after_write: called with the number of the write, from 1; may raise.
    """

    def __init__(self) -> None:
        self.objects: dict[Address, dict[str, Any]] = {}
        self.owned: dict[Address, dict[str, set[Path]]] = {}
        self.writes: list[str] = []
        self.calls = 0
        self.before_write: Callable[[int], None] = lambda _: None
        self.after_write: Callable[[int], None] = lambda _: None
        self._version = 100
        self._uids = 0

    def __repr__(self) -> str:
        return f"<FakeCluster {len(self.objects)} objects, {len(self.writes)} writes>"

    # What the operator calls ---------------------------------------------------------------------

    async def apply_status(self, resource: Object, status: Mapping[str, Any]) -> dict[str, Any]:
        address = address_of(resource)
        there = self.objects.get(address)
        if there is None:
            raise NotFound("patch", "inferenceservices/status", "not found")
        if there["metadata"]["uid"] != resource["metadata"]["uid"]:
            raise Conflict("patch", "inferenceservices/status", "uid mismatch")
        return self._write(f"status {address.name}", address, {"status": status}, "status")

    async def carry_out(self, step: Step) -> dict[str, Any] | None:
        match step:
            case Apply():
                return self.apply(step)
            case Scale():
                address = Address("Deployment", step.namespace, step.deployment)
                if address not in self.objects:
                    raise NotFound("patch", "deployments/scale", "not found")
                spec = {"replicas": step.replicas}
                what, manager = f"scale {step.deployment}", names.SCALER_FIELD_MANAGER
                metadata = self._write(what, address, {"spec": spec}, manager)["metadata"]
                kept = ("namespace", "name", "uid", "resourceVersion")
                return {"kind": "Scale", "metadata": {k: metadata[k] for k in kept}, "spec": spec}
            case Delete():
                self._delete(step)
            case Rank():
                address = Address("Pod", step.namespace, step.pod)
                if address in self.objects:
                    cost = {names.DELETION_COST: str(step.cost)}
                    change = {"metadata": {"annotations": cost}}
                    self._write(f"rank {step.pod}", address, change, names.SCALER_FIELD_MANAGER)
        return None

    def apply(self, step: Apply) -> dict[str, Any]:
        address = address_of(step.object)
        there = self.objects.get(address)
        if step.new and there is not None and not self._is_ours(address, step.object):
            raise Foreign("patch", address.kind, f"{address.kind} {address.name} exists already")
        if step.take_over:
            self._take_over(address)
        return self._write(
            f"apply {address.kind} {address.name}", address, step.object, step.manager
        )

    def _is_ours(self, address: Address, wanted: Object) -> bool:
        there = self.read(*address)
        return is_orphan(there) or _controlled_alike(there, wanted)

    def _take_over(self, address: Address) -> None:
        self.calls += 1
        self.before_write(self.calls)
        item = copy.deepcopy(self.objects[address])
        item["metadata"]["annotations"][names.RENDERED] = ""
        self.owned[address] = {
            entry["manager"]: set(_leaves_of(entry["fieldsV1"]))
            for entry in taken_over(self.read(*address))
        }
        self._store_changed(address, item, owners_changed=True)
        self.writes.append(f"take over {address.kind} {address.name}")
        self.after_write(self.calls)

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any]:
        try:
            return self.read(kind.name, namespace or "", name)
        except KeyError:
            raise NotFound("get", kind.plural, "not found") from None

    async def create(
        self, kind: Kind, wanted: Mapping[str, Any], *, fenced: bool = True
    ) -> dict[str, Any]:
        address = _address(kind, wanted)
        if address in self.objects:
            raise Conflict("create", kind.plural, "exists already")
        return self._write(f"create {kind.name} {address.name}", address, wanted, "update")

    async def replace(
        self, kind: Kind, wanted: Mapping[str, Any], *, fenced: bool = True
    ) -> dict[str, Any]:
        address = _address(kind, wanted)
        if address not in self.objects:
            raise NotFound("update", kind.plural, "not found")
        version = wanted["metadata"].get("resourceVersion")
        if version != self.objects[address]["metadata"]["resourceVersion"]:
            raise Conflict("update", kind.plural, "the object has been modified")
        return self._write(f"update {kind.name} {address.name}", address, wanted, "update")

    async def list_metadata(
        self, kind: Kind, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[dict[str, Any]]:
        for address, item in list(self.objects.items()):
            if address.kind == kind.name:
                yield copy.deepcopy(item["metadata"])

    # What tests do -------------------------------------------------------------------------------

    def put(self, item: Mapping[str, Any], manager: str = "kubectl") -> dict[str, Any]:
        """Make an object, or change it as others do: what differs becomes theirs."""
        address = address_of(item)
        if address not in self.objects:
            return self._write(f"put {address.name}", address, item, manager, count=False)
        before = self.objects[address]
        merged = _merged(before, item)
        for path, value in _leaves(item):
            if path not in IDENTITY and _value(before, path) != value:
                for owned in self.owned[address].values():
                    owned.discard(path)
                self.owned[address].setdefault(manager, set()).add(path)
        self._store_changed(address, merged)
        return self.read(*address)

    def read(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """One object, with ``managedFields``. Raises KeyError."""
        address = Address(kind, namespace, name)
        item = copy.deepcopy(self.objects[address])
        item["metadata"]["managedFields"] = [
            {
                "manager": manager,
                "operation": "Apply" if manager in APPLIERS else "Update",
                "apiVersion": item["apiVersion"],
                "fieldsV1": _fields(paths),
            }
            for manager, paths in self.owned[address].items()
            if paths
        ]
        return item

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, as others do; what it owned goes with :meth:`collect`."""
        del self.objects[Address(kind, namespace, name)]
        del self.owned[Address(kind, namespace, name)]

    def collect(self) -> None:
        """Collect garbage: whatever has an owner that is gone."""
        while True:
            uids = {item["metadata"]["uid"] for item in self.objects.values()}
            lost = [
                address
                for address, item in self.objects.items()
                if any(r["uid"] not in uids for r in item["metadata"].get("ownerReferences", ()))
            ]
            if not lost:
                return
            for address in lost:
                self.remove(*address)

    def show(self, store: Store) -> None:
        """Bring a store up to date, as the watches would."""
        for address in self.objects:
            store.put(self.read(*address))
        for kind in {address.kind for address in self.objects} | set(names_of(store)):
            for address, uid in store.uids(kind).items():
                if address not in self.objects:
                    store.remove(address, uid)

    # Inside --------------------------------------------------------------------------------------

    def _write(
        self,
        what: str,
        address: Address,
        wanted: Mapping[str, Any],
        manager: str,
        *,
        count: bool = True,
    ) -> dict[str, Any]:
        """Server-side apply by force."""
        if count:
            self.calls += 1
            self.before_write(self.calls)
        before = self.objects.get(address)
        item = copy.deepcopy(before) if before else self._born(address, wanted)
        owned = self.owned.setdefault(address, {})
        owned_before = copy.deepcopy(owned)
        applied = {path for path, _ in _leaves(wanted) if path not in IDENTITY}
        for path in owned.get(manager, set()) - applied:
            if not any(path in paths for who, paths in owned.items() if who != manager):
                _drop(item, path)
        for path, value in _leaves(wanted):
            if path not in IDENTITY:
                if before is not None and _value(before, path) != value:
                    for paths in owned.values():
                        paths.discard(path)
                _set(item, path, value)
        owned[manager] = applied
        for field, value in DEFAULTS.get(address.kind, {}).items():
            item.setdefault("spec", {}).setdefault(field, value)
        if self._store_changed(address, item, owned != owned_before) and count:
            self.writes.append(what)
        if count:
            self.after_write(self.calls)
        return self.read(*address)

    def _store_changed(
        self, address: Address, item: dict[str, Any], owners_changed: bool = False
    ) -> bool:
        before = self.objects.get(address)
        same = before is not None and _content(before) == _content(item)
        if same and not owners_changed:
            return False
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        if before is not None and before.get("spec") != item.get("spec"):
            item["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
        self.objects[address] = item
        return True

    def _born(self, address: Address, wanted: Mapping[str, Any]) -> dict[str, Any]:
        self._uids += 1
        return {
            "apiVersion": wanted["apiVersion"],
            "kind": address.kind,
            "metadata": {
                "namespace": address.namespace,
                "name": address.name,
                "uid": f"uid-{self._uids}",
                "generation": 1,
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
        }

    def _delete(self, step: Delete) -> None:
        address = Address(step.kind, step.namespace, step.name)
        self.calls += 1
        self.before_write(self.calls)
        there = self.objects.get(address)
        if there is not None and there["metadata"]["uid"] == step.uid:
            self.remove(*address)
            self.collect()
            self.writes.append(f"delete {step.kind} {step.name}")
        self.after_write(self.calls)


def names_of(store: Store) -> Iterator[str]:
    """The kinds that a store may hold."""
    from sluice_operator import kinds

    for kind in (kinds.INFERENCE_SERVICE, *kinds.CHILDREN, kinds.POD, kinds.ENDPOINT_SLICE):
        yield kind.name


def _address(kind: Kind, item: Mapping[str, Any]) -> Address:
    return Address(kind.name, item["metadata"].get("namespace", ""), item["metadata"]["name"])


def _controlled_alike(there: Object, wanted: Object) -> bool:
    uid = wanted["metadata"]["ownerReferences"][0]["uid"]
    return any(r["uid"] == uid for r in there["metadata"].get("ownerReferences", ()))


def _content(item: Mapping[str, Any]) -> Any:
    """What a write can change."""
    metadata = {k: v for k, v in item["metadata"].items() if k not in _SERVER_SET}
    return {**item, "metadata": metadata}


_SERVER_SET = {"resourceVersion", "generation", "managedFields", "creationTimestamp"}


def _leaves(value: Mapping[str, Any], at: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, inner in value.items():
        path = (*at, key)
        if path[0] == "metadata" and len(path) == 2 and key in _SERVER_SET | {"uid"}:
            continue
        if isinstance(inner, Mapping) and inner and key not in ATOMIC:
            yield from _leaves(inner, path)
        else:
            yield path, copy.deepcopy(inner)


def _value(item: Mapping[str, Any], path: Path) -> Any:
    for key in path:
        if not isinstance(item, Mapping) or key not in item:
            return None
        item = item[key]
    return item


def _set(item: dict[str, Any], path: Path, value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(item.get(key), dict):
            item[key] = {}
        item = item[key]
    item[path[-1]] = value


def _drop(item: dict[str, Any], path: Path) -> None:
    for key in path[:-1]:
        inner = item.get(key)
        if not isinstance(inner, dict):
            return
        item = inner
    item.pop(path[-1], None)


def _merged(before: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    item: dict[str, Any] = copy.deepcopy(dict(before))
    for path, value in _leaves(change):
        _set(item, path, value)
    return item


def _leaves_of(fields: Mapping[str, Any], at: Path = ()) -> Iterator[Path]:
    """The other way round of :func:`_fields`."""
    for name, below in fields.items():
        path = (*at, name.removeprefix("f:"))
        yield from _leaves_of(below, path) if below else (path,)


def _fields(paths: set[Path]) -> dict[str, Any]:
    """``fieldsV1``, as far as anybody here reads it."""
    fields: dict[str, Any] = {}
    for path in paths:
        _set(fields, tuple(f"f:{key}" for key in path), {})
    return fields
