"""The store: what belongs to whom, what is news, and how little of it is kept."""

from typing import Any

import pytest

from sluice_api import names
from sluice_operator.ownership import Addition
from sluice_operator.state import ChildKey, Key
from sluice_operator.store import Address, Store

KEY = Key("team", "minilm")


def metadata(name: str, version: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "namespace": "team",
        "name": name,
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
        **more,
    }


def service(version: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": metadata("minilm", version),
        **more,
    }


def child(kind: str, name: str, version: int = 1, **more: Any) -> dict[str, Any]:
    labels = {names.SERVICE_LABEL: "minilm"}
    of_kind = {"apiVersion": "apps/v1", "kind": kind}
    return {**of_kind, "metadata": metadata(name, version, labels=labels), **more}


def pod(
    name: str, version: int = 1, *, ready: str = "True", running: bool = True
) -> dict[str, Any]:
    return child(
        "Pod",
        name,
        version,
        spec={
            "nodeName": "node1",
            "volumes": [{"name": "tmp"}],
            "containers": [{"name": "worker", "image": "w:1", "env": [{"name": "A"}]}],
        },
        status={
            "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{"name": "worker", "ready": running}],
        },
    )


def test_a_service_is_seen_with_all_that_belongs_to_it() -> None:
    store = Store()
    assert store.put(child("Deployment", "minilm-1")) == (KEY,)
    assert store.observe(KEY) is None, "its children came first"
    assert store.put(service()) == (KEY,)
    store.put(pod("minilm-1-b"))
    store.put(pod("minilm-1-a"))
    other = child("Service", "other")
    other["metadata"]["labels"] = {names.SERVICE_LABEL: "other"}
    store.put(other)
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.key == KEY
    assert list(observed.children) == [ChildKey("Deployment", "minilm-1")]
    assert [one["metadata"]["name"] for one in observed.pods] == ["minilm-1-a", "minilm-1-b"]
    assert list(store.services()) == [KEY]
    assert len(store) == 1


def test_what_says_the_same_is_no_news() -> None:
    store = Store()
    store.put(service(1, spec={"a": 1}))
    assert store.put(service(2, spec={"a": 1})) == ()
    assert store.put(service(3, spec={"a": 2})) == (KEY,)


def test_an_older_version_changes_nothing() -> None:
    store = Store()
    store.put(service(9, spec={"a": 2}))
    assert store.put(service(8, spec={"a": 1})) == ()
    seen = store.resource(KEY)
    assert seen is not None
    assert seen["spec"] == {"a": 2}


def test_another_object_of_the_name_takes_the_place_whatever_its_version() -> None:
    store = Store()
    store.put(service(9))
    again = service(3)
    again["metadata"]["uid"] = "another"
    assert store.put(again) == (KEY,)
    assert store.remove(Address(names.KIND, *KEY), "uid-minilm") == (), "that one is gone already"
    assert store.resource(KEY) is not None
    assert len(store) == 1


def test_only_what_is_read_is_kept() -> None:
    store = Store()
    item = pod("minilm-1-a")
    item["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    item["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        names.DELETION_COST: "5",
    }
    store.put(service())
    store.put(item)
    observed = store.observe(KEY)
    assert observed is not None
    kept = observed.pods[0]
    assert "managedFields" not in kept["metadata"]
    assert kept["metadata"]["annotations"] == {names.DELETION_COST: "5"}
    assert kept["spec"] == {
        "nodeName": "node1",
        "containers": [{"name": "worker", "image": "w:1"}],
    }
    assert item["spec"]["volumes"], "the given object stays as it was"


def test_who_owns_replicas_is_known_and_its_change_is_news() -> None:
    store = Store()
    deployment = child("Deployment", "minilm-1", 1, spec={"replicas": 2})
    fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
    deployment["metadata"]["managedFields"] = [
        {"manager": names.FIELD_MANAGER, "fieldsV1": fields},
        {"manager": "kubelet", "fieldsV1": {"f:status": {}}},
    ]
    store.put(service())
    store.put(deployment)
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.replicas_managers == {"minilm-1": frozenset({names.FIELD_MANAGER})}
    deployment["metadata"]["resourceVersion"] = "2"
    deployment["metadata"]["managedFields"][1] = {
        "manager": names.SCALER_FIELD_MANAGER,
        "subresource": "scale",
        "fieldsV1": fields,
    }
    assert store.put(deployment) == (KEY,)
    observed = store.observe(KEY)
    assert observed is not None
    both = frozenset({names.FIELD_MANAGER, names.SCALER_FIELD_MANAGER})
    assert observed.replicas_managers == {"minilm-1": both}


def test_what_is_removed_is_forgotten_to_the_last() -> None:
    store = Store()
    store.put(service())
    store.put(pod("a"))
    store.warn(KEY, {"a": (("FailedMount", "no such volume"),)})
    assert store.remove(Address("Pod", "team", "a"), "uid-a") == (KEY,)
    assert store.remove(Address(names.KIND, *KEY), "uid-minilm") == (KEY,)
    assert store.observe(KEY) is None
    assert repr(store) == "<Store 0 services, 0 objects>"
    store.put(service(2))
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.pod_events == {}


def test_an_answer_that_comes_after_the_end_brings_nothing_back() -> None:
    store = Store()
    address = Address(names.KIND, *KEY)
    store.put(service(1))
    store.remove(address, "uid-minilm", "5")
    assert store.put(service(4)) == ()
    assert (store.observe(KEY), len(store)) == (None, 0)
    assert store.put(service(6)) == (KEY,), "it was only out of sight"
    other = child("Deployment", "minilm-1", 7)
    store.remove(Address("Deployment", "team", "minilm-1"), "uid-minilm-1", "8")
    assert store.put(other) == (), "its answer came later than both of its events"


def test_what_was_scaled_is_seen_before_the_watch_brings_it() -> None:
    store = Store()
    owns: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
    fields = [{"manager": names.FIELD_MANAGER, "fieldsV1": owns}]
    deployment = child("Deployment", "minilm-1", 3, spec={"replicas": 1})
    deployment["metadata"]["managedFields"] = fields
    store.put(service())
    store.put(deployment)
    assert store.put_scale({"metadata": metadata("minilm-1", 4), "spec": {"replicas": 1}}) == (KEY,)
    observed = store.observe(KEY)
    assert observed is not None
    both = {names.FIELD_MANAGER, names.SCALER_FIELD_MANAGER}
    assert observed.replicas_managers["minilm-1"] == both, "the same number is everybody's"
    assert store.put_scale({"metadata": metadata("minilm-1", 5), "spec": {}}) == (KEY,)
    assert store.put(deployment) == (), "late"
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.children[ChildKey("Deployment", "minilm-1")]["spec"]["replicas"] == 0
    assert observed.replicas_managers["minilm-1"] == {names.SCALER_FIELD_MANAGER}
    fields[0]["manager"] = names.FIELD_MANAGER
    asleep = child("Deployment", "minilm-1", 6, spec={"replicas": 0})
    asleep["metadata"]["managedFields"] = fields
    store.put(asleep)
    store.put_scale({"metadata": metadata("minilm-1", 7), "spec": {}})
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.replicas_managers["minilm-1"] == {names.SCALER_FIELD_MANAGER}
    assert store.put_scale({"metadata": metadata("another", 6), "spec": {"replicas": 1}}) == ()


def test_a_label_that_changes_moves_the_object() -> None:
    store = Store()
    store.put(service())
    store.put(child("Service", "minilm-1"))
    moved = child("Service", "minilm-1", 2)
    moved["metadata"]["labels"] = {names.SERVICE_LABEL: "other"}
    assert store.put(moved) == (KEY, Key("team", "other")), "who has lost it wants it back"
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.children == {}
    unlabelled = child("Service", "minilm-1", 3)
    unlabelled["metadata"]["labels"] = {}
    assert store.put(unlabelled) == (Key("team", "other"),)


def test_what_others_have_set_and_what_has_lost_its_owner_is_known_and_news() -> None:
    store = Store()
    store.put(service())
    ours = {
        "manager": names.FIELD_MANAGER,
        "operation": "Apply",
        "apiVersion": "apps/v1",
        "fieldsV1": {"f:spec": {"f:strategy": {"f:type": {}}}},
    }
    theirs = {
        "manager": "kubectl-rollout",
        "operation": "Update",
        "apiVersion": "apps/v1",
        "fieldsV1": {"f:spec": {"f:paused": {}}},
    }
    owner = {"kind": names.KIND, "name": "minilm", "uid": "uid-minilm", "controller": True}
    deployment = child("Deployment", "minilm-1", 1, spec={})
    key = ChildKey("Deployment", "minilm-1")

    def put(version: int, *managed: dict[str, Any], owners: list[Any]) -> tuple[Key, ...]:
        deployment["metadata"] |= {
            "resourceVersion": str(version),
            "managedFields": list(managed),
            "ownerReferences": owners,
        }
        return store.put(deployment)

    put(1, ours, owners=[owner])
    observed = store.observe(KEY)
    assert observed is not None
    assert (observed.additions, observed.orphans) == ({}, frozenset())
    assert put(2, ours, theirs, owners=[owner]) == (KEY,)
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.additions == {key: (Addition("kubectl-rollout", "spec.paused"),)}
    assert put(3, ours, theirs, owners=[]) == (KEY,)
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.orphans == {key}
    put(4, theirs, owners=[])
    observed = store.observe(KEY)
    assert observed is not None
    assert observed.orphans == frozenset(), "never ours"


def test_a_pod_that_its_kubelet_calls_ready_and_others_do_not_makes_its_node_suspect() -> None:
    store = Store()
    store.put(pod("a"))
    store.put(pod("b", ready="False", running=False))
    assert store.suspect_nodes() == frozenset()
    store.put(pod("a", 2, ready="False"))
    assert store.suspect_nodes() == {"node1"}
    assert store.lose_nodes(frozenset({"node1"})) == {KEY}
    assert store.lose_nodes(frozenset({"node1"})) == frozenset(), "no news"


def test_gateways_slices_are_told_apart() -> None:
    calls = []
    store = Store(on_gateways=lambda: calls.append(1))
    part = {
        "kind": "EndpointSlice",
        "metadata": {"namespace": "sluice-system", "name": "g", "uid": "u", "resourceVersion": "1"},
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    }
    assert store.put(part) == ()
    assert store.gateway_slices()[0]["endpoints"] == part["endpoints"]
    store.put(part)
    assert len(calls) == 1
    store.remove(Address("EndpointSlice", "sluice-system", "g"), "u")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("held", "asked", "answer"), [(5, "5", True), (5, "4", True), (5, "6", False)]
)
def test_a_later_version_holds_an_earlier_one(held: int, asked: str, answer: bool) -> None:
    store = Store()
    store.put(service(held))
    assert store.holds(Address(names.KIND, *KEY), "uid-minilm", asked) is answer
    assert not store.holds(Address(names.KIND, *KEY), "another", asked)


def test_a_thousand_services_fit_into_ten_mebibytes() -> None:
    import tracemalloc

    store = Store()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            for kind in ("Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy"):
                item = child(kind, f"m-{number}", spec={"template": {"spec": {"args": ["x"] * 50}}})
                item["metadata"]["labels"] = {names.SERVICE_LABEL: f"m-{number}"}
                item["metadata"]["managedFields"] = [{"manager": "x" * 500}]
                store.put(item)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 10 * 2**20
