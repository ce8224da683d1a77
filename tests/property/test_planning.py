"""Plan, apply, observe, plan: the second plan is empty, from whatever state in between."""

from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluice_api import names
from sluice_api.inference_service import canary_of, revision_of
from sluice_api.service_files import parse_service
from sluice_operator import crd
from sluice_operator.planning import plan_service
from sluice_operator.state import ChildKey, Observed, Wanted
from sluice_operator.steps import Apply
from sluice_operator.workers import is_rolling
from tests.support.planned_cluster import PlannedCluster
from tests.support.structural_schema import with_defaults

STATUS_SCHEMA = crd.resource_schema()["properties"]["status"]

SPECS = st.fixed_dictionaries(
    {},
    optional={
        "model__uri": st.sampled_from(["hf://a/b", "pvc://claim/m", "oci://r/m:1"]),
        "engine__image": st.sampled_from(["a/b:1", "a/b:2"]),
        "paused": st.booleans(),
        "scaling__mode": st.sampled_from(["hpa", "direct", "signal", "off"]),
        "scaling__minReplicas": st.integers(0, 3),
        "scaling__initialReplicas": st.integers(0, 2),
        "limits__timeout": st.sampled_from(["1s", "10m"]),
        "hardware": st.sampled_from(
            [
                {"device": "gpu", "gpu": {"product": "NVIDIA-H200"}},
                {"resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}}},
                {"tolerations": [{"key": "a", "operator": "Exists"}]},
                {"nodeSelector": {"pool": "a"}},
            ]
        ),
        "rollout__canary": st.sampled_from(
            [{"model": {"uri": "hf://c/d"}, "weight": 20}, {"engine": {"image": "a/b:2"}}]
        ),
    },
)
ADDED: dict[str, list[tuple[Any, tuple[str, ...]]]] = {
    "Deployment": [
        (True, ("spec", "paused")),
        (9, ("spec", "minReadySeconds")),
        ("search", ("spec", "template", "metadata", "labels", "team")),
        (True, ("spec", "template", "spec", "hostNetwork")),
    ],
    "Service": [(["10.0.0.9"], ("spec", "externalIPs"))],
    "HorizontalPodAutoscaler": [({"scaleUp": {}}, ("spec", "behavior"))],
    "NetworkPolicy": [(["Egress"], ("spec", "egress"))],
    "PodDisruptionBudget": [(1, ("spec", "minAvailable"))],
}
"""What somebody may set in the ``spec`` of a child and the operator does not."""
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), SPECS),
        st.tuples(st.just("late"), SPECS),
        st.tuples(st.just("settle"), st.booleans()),
        st.tuples(st.just("want"), st.integers(0, 4)),
        st.tuples(st.just("run"), st.booleans()),
        st.tuples(st.just("time"), st.sampled_from([1.0, 6.0, 30.0])),
        st.tuples(st.just("partly"), st.integers(0, 9)),
        st.tuples(st.just("delete"), st.integers(0, 20)),
        st.tuples(st.just("drift"), st.integers(0, 20)),
        st.tuples(st.just("add"), st.tuples(st.integers(0, 20), st.integers(0, 20))),
        st.tuples(st.just("orphan"), st.integers(0, 20)),
        st.tuples(st.just("scale"), st.integers(0, 5)),
        st.tuples(st.just("platform"), st.sampled_from(["Always", "IfNotPresent"])),
        st.tuples(st.just("metrics"), st.booleans()),
    ),
    max_size=12,
)


@settings(max_examples=120)
@given(SPECS, EVENTS)
@example({}, [("partly", 9), ("want", 4), ("late", {"limits__timeout": "1s"})])
@example({}, [("settle", True), ("edit", {"model__uri": "hf://a/b"}), ("time", 1.0)])
def test_from_any_state_the_plans_come_to_an_end(
    spec: dict[str, Any], events: list[tuple[str, Any]]
) -> None:
    cluster = PlannedCluster(**spec)
    for event, value in events:
        happen(cluster, event, value)
    # The fleet has the coming revision carry what the stable one carries.
    most = max((each.desired for each in cluster.wanted.values()), default=1)
    for name in {cluster.resource.get("status", {}).get("revision", ""), *revisions(cluster)}:
        cluster.wanted[name] = Wanted(most, "arrivals", "because")
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    cluster.pass_time(60)  # beyond every grace
    cluster.settle()
    cluster.run_pods()
    last = cluster.settle()
    check(cluster, last.status)


def happen(cluster: PlannedCluster, event: str, value: Any) -> None:
    match event:
        case "edit":
            cluster.edit(**value)
        case "late":
            # The watch has not brought yet what was scaled.
            before = cluster.observed()
            cluster.carry_out(cluster.plan())
            cluster.edit(**value)
            cluster.carry_out(cluster.plan(before))
        case "settle":
            cluster.settle()
            cluster.run_pods(ready=value)
            cluster.settle()
        case "want":
            for name in revisions(cluster):
                cluster.wanted[name] = Wanted(value, "arrivals", "because")
        case "run":
            cluster.run_pods(ready=value)
        case "time":
            cluster.pass_time(value)
        case "partly":
            # A reconcile that dies after so many writes.
            cluster.carry_out(cluster.plan(), steps=value)
        case "delete" | "drift" | "orphan" if cluster.children:
            key = sorted(cluster.children)[value % len(cluster.children)]
            if event == "delete":
                del cluster.children[key]
                cluster.managers.pop(key.name, None) if key.kind == "Deployment" else None
            elif event == "orphan":
                cluster.orphan(key)
            else:
                cluster.children[key]["metadata"]["labels"][names.COMPONENT] = "somebody"
        case "add" if cluster.children:
            key = sorted(cluster.children)[value[0] % len(cluster.children)]
            if can_be := ADDED.get(key.kind):
                what, path = can_be[value[1] % len(can_be)]
                cluster.add(key, what, *path)
        case "scale":
            for (kind, name), child in cluster.children.items():
                if kind == "Deployment":
                    child["spec"]["replicas"] = value
                    cluster.managers[name] = frozenset({"kubectl"})
        case "platform":
            cluster.platform = replace(cluster.platform, pull_policy=value)
        case "metrics":
            cluster.platform = replace(cluster.platform, metrics_api=value)


def revisions(cluster: PlannedCluster) -> list[str]:
    service = parse_service(
        {name: part for name, part in cluster.resource.items() if name != "status"}, "test"
    )
    trial = canary_of(service)
    return [revision_of(service), *([revision_of(trial)] if trial else [])]


def check(cluster: PlannedCluster, status: dict[str, Any]) -> None:
    spec = cluster.resource["spec"]
    assert with_defaults(STATUS_SCHEMA, status) == status
    if spec.get("paused"):
        return
    target, *canary = revisions(cluster)
    # With every pod ready and every grace over, only what the spec names is left.
    roles = {entry["name"]: entry["role"] for entry in status["revisions"]}
    expected = {target: "stable"} | {name: "canary" for name in canary if name != target}
    first = max(
        spec.get("scaling", {}).get("minReplicas", 0),
        spec.get("scaling", {}).get("initialReplicas", 1),
    )
    desired = cluster.wanted.get(target)
    if desired is not None and desired.desired < first and roles.get(target) == "next":
        return  # scaling does not let it prove itself: the old one stays
    assert roles == expected
    assert cluster.added.keys().isdisjoint(cluster.children)
    for (kind, name), child in cluster.children.items():
        assert child["metadata"]["ownerReferences"], f"{kind} {name} has no owner"
        for what, path in ADDED.get(kind, ()):
            place: Any = child
            for step in path[:-1]:
                place = place.get(step) or {}
            assert place.get(path[-1]) != what, f"{kind} {name} still has {'.'.join(path)}"
        if kind == "Deployment":
            owners = cluster.managers[name]
            assert names.FIELD_MANAGER not in owners
            assert owners
            revision = child["metadata"]["labels"][names.REVISION_LABEL]
            if revision in cluster.wanted:
                assert child["spec"]["replicas"] == cluster.wanted[revision].desired
    metrics = cluster.platform.metrics_api and spec.get("scaling", {}).get("mode", "hpa") == "hpa"
    kinds = sorted(kind for kind, _ in cluster.children)
    each = ["Deployment", "Service"] + (["HorizontalPodAutoscaler"] if metrics else [])
    assert kinds == sorted(
        each * len(expected) + ["NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"]
    )


@settings(max_examples=80)
@given(SPECS, EVENTS)
@example({}, [("settle", True), ("edit", {"limits__timeout": "1s"}), ("partly", 9), ("run", False)])
@example({"scaling__mode": "signal"}, [("settle", False), ("edit", {"limits__timeout": "1s"})])
def test_what_is_called_done_is_done(spec: dict[str, Any], events: list[tuple[str, Any]]) -> None:
    """Whatever has happened: tools wait until no change is under way, and then go on."""
    cluster = PlannedCluster(**spec)
    for event, value in events:
        happen(cluster, event, value)
        plan = cluster.plan()
        told = {entry["type"]: entry["status"] for entry in plan.status["conditions"]}
        assert (told["Reconciling"], told["Stalled"]) != ("True", "True")
        paused = cluster.resource["spec"].get("paused")
        if paused or "True" in (told["Reconciling"], told["Stalled"]):
            continue
        stable = ChildKey("Deployment", f"minilm-{plan.status['revision']}")
        written = [step.object for step in plan.steps if isinstance(step, Apply) and step.new_pods]
        assert stable.name not in [item["metadata"]["name"] for item in written]
        if stable in cluster.children:
            assert not is_rolling(cluster.children[stable])


@settings(max_examples=40, deadline=None)
@given(SPECS, EVENTS)
def test_a_plan_is_a_function_of_what_is_seen(
    spec: dict[str, Any], events: list[tuple[str, Any]]
) -> None:
    cluster = PlannedCluster(**spec)
    for event, value in events:
        happen(cluster, event, value)
    seen = cluster.observed()
    reordered = Observed(
        resource=seen.resource,
        children=dict(reversed(list(seen.children.items()))),
        replicas_managers=seen.replicas_managers,
        additions=seen.additions,
        orphans=seen.orphans,
        pods=seen.pods,
    )
    again = plan_service(reordered, cluster.wanted, cluster.learnt, cluster.platform, cluster.now)
    first = cluster.plan()
    assert first.status == again.status
    assert sorted(map(repr, first.steps)) == sorted(map(repr, again.steps))
