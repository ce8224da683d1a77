"""Reconciling: converges from wherever it was cut off, tells refusals, does not run hot."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

from sluice_api import names
from sluice_operator.api_errors import (
    ApiError,
    Invalid,
    NamespaceEnding,
    NotLeader,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
)
from sluice_operator.contests import FREE, PAUSE_SECONDS
from sluice_operator.failures import TOLD_TRIES
from sluice_operator.state import ChildKey, Key, Observed
from sluice_operator.steps import Apply, Plan
from sluice_operator.store import Address
from tests.support.fake_cluster import Crash, FakeCluster
from tests.support.reconciling import KEY, World, settle
from tests.support.resources import document


def service(**changes: Any) -> dict[str, Any]:
    item = document(**changes)
    item["metadata"] = {"namespace": KEY.namespace, "name": KEY.name}
    return item


def world_with_service(**changes: Any) -> World:
    world = World()
    world.cluster.put(service(**changes))
    return world


def condition(world: World, kind: str) -> dict[str, Any]:
    status = world.cluster.read(names.KIND, *KEY)["status"]
    return next((one for one in status["conditions"] if one["type"] == kind), {})


def content(cluster: FakeCluster) -> dict[Any, Any]:
    """What stands in the cluster: specifications, and who owns replicas."""
    return {
        address: (
            item.get("spec"),
            {who for who, paths in cluster.owned[address].items() if ("spec", "replicas") in paths},
        )
        for address, item in cluster.objects.items()
    }


def test_a_service_comes_to_all_its_children_and_then_to_rest() -> None:
    world = world_with_service()
    settle(world)
    kinds = sorted(address.kind for address in world.cluster.objects)
    assert kinds == [
        "Deployment",
        "HorizontalPodAutoscaler",
        names.KIND,
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    ]
    written, calls = len(world.cluster.writes), world.cluster.calls
    world.restart()
    assert settle(world) == 0, "another process finds nothing to write"
    assert (len(world.cluster.writes), world.cluster.calls) == (written, calls)


def test_replicas_end_up_with_the_scaler_alone() -> None:
    world = world_with_service()
    settle(world)
    deployment = next(a for a in world.cluster.objects if a.kind == "Deployment")
    assert world.cluster.objects[deployment]["spec"]["replicas"] == 2
    owners = {
        who
        for who, paths in world.cluster.owned[deployment].items()
        if ("spec", "replicas") in paths
    }
    assert owners == {names.SCALER_FIELD_MANAGER}
    assert "scale" in " ".join(world.cluster.writes)


@pytest.mark.parametrize("effect", ["before", "after"])
def test_a_crash_at_any_write_converges_to_the_same(effect: str) -> None:
    whole = world_with_service()
    settle(whole)
    wanted = content(whole.cluster)
    writes = whole.cluster.calls
    assert writes >= 8
    for number in range(1, writes + 1):
        world = world_with_service()

        def crash(at: int, number: int = number) -> None:
            if at == number:
                raise Crash(f"at write {number}")

        setattr(world.cluster, f"{effect}_write", crash)
        with pytest.raises(Crash):
            settle(world)
        world.restart()
        settle(world)
        assert content(world.cluster) == wanted, f"crash {effect} write {number}"


@pytest.mark.parametrize("effect", ["before", "after"])
def test_a_crash_while_a_new_revision_rolls_out_converges(effect: str) -> None:
    def changed() -> World:
        world = world_with_service()
        settle(world)
        world.cluster.put(service(model={"maxInputTokens": 64}))
        world.cluster.calls = 0
        return world

    whole = changed()
    settle(whole)
    wanted = content(whole.cluster)
    for number in range(1, whole.cluster.calls + 1):
        world = changed()

        def crash(at: int, number: int = number) -> None:
            if at == number:
                raise Crash(f"at write {number}")

        setattr(world.cluster, f"{effect}_write", crash)
        with pytest.raises(Crash):
            settle(world)
        world.restart()
        settle(world)
        assert content(world.cluster) == wanted, f"crash {effect} write {number}"


def test_drift_is_repaired_and_what_others_own_is_left() -> None:
    world = world_with_service()
    settle(world)
    address = next(a for a in world.cluster.objects if a.kind == "NetworkPolicy")
    policy = world.cluster.read(*address)
    before = policy["spec"]["ingress"]
    policy["spec"]["ingress"] = []
    policy["metadata"]["annotations"] = {"team": "search"}
    world.cluster.put(policy)
    settle(world)
    policy = world.cluster.read(*address)
    assert policy["spec"]["ingress"] == before
    assert policy["metadata"]["annotations"]["team"] == "search"


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("NetworkPolicy", ("podSelector", "matchLabels")),
        ("NetworkPolicy", ("podSelector",)),
        ("Service", ("selector",)),
        ("PodDisruptionBudget", ("selector", "matchLabels")),
    ],
)
def test_what_is_added_to_a_selector_is_taken_out(kind: str, path: tuple[str, ...]) -> None:
    world = world_with_service()
    settle(world)
    address = next(a for a in world.cluster.objects if a.kind == kind)
    before = world.cluster.read(*address)["spec"]
    changed = world.cluster.read(*address)
    place = changed["spec"]
    for step in path:
        place = place[step]
    place["added"] = "by somebody"
    world.cluster.put(changed)
    settle(world)
    assert world.cluster.read(*address)["spec"] == before


def with_rollout_paused(world: World) -> Address:
    """Somebody has paused the Deployment's rollout, and the watch has brought it."""
    address = next(a for a in world.cluster.objects if a.kind == "Deployment")
    changed = world.cluster.read(*address)
    changed["spec"]["paused"] = True
    world.cluster.put(changed, "kubectl-rollout")
    world.cluster.show(world.store)
    return address


def test_what_is_added_is_taken_out_and_told() -> None:
    world = world_with_service()
    settle(world)
    address = with_rollout_paused(world)
    changed = world.cluster.read(*address)
    changed["spec"]["template"]["metadata"]["annotations"] = {"kubectl.kubernetes.io/x": "now"}
    changed["spec"]["template"]["metadata"]["labels"]["team"] = "search"
    changed["spec"]["template"]["spec"]["hostNetwork"] = True
    world.cluster.put(changed, "kubectl-edit")
    settle(world)
    template = world.cluster.read(*address)["spec"].pop("template")
    assert "paused" not in world.cluster.read(*address)["spec"]
    assert "hostNetwork" not in template["spec"]
    assert "team" not in template["metadata"]["labels"]
    assert template["metadata"]["annotations"], "as kubectl rollout restart writes one"
    [told] = [event for event in world.events if event.reason == "Repaired"]
    assert "spec.paused was set by kubectl-rollout" in told.message
    assert "kubectl-edit" in told.message
    world.restart()
    assert settle(world) == 0


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("effect", ["before", "after"])
def test_a_crash_while_something_is_taken_out_converges(effect: str, at: int) -> None:
    world = world_with_service()
    settle(world)
    address = with_rollout_paused(world)
    world.cluster.calls = 0

    def crash(number: int) -> None:
        if number == at:
            raise Crash(f"at write {number}")

    setattr(world.cluster, f"{effect}_write", crash)
    with pytest.raises(Crash):
        settle(world)
    world.restart()
    settle(world)
    assert "paused" not in world.cluster.read(*address)["spec"]


def test_a_fight_about_a_child_is_bounded_and_told_until_it_is_over() -> None:
    world = world_with_service()
    settle(world)
    clock = Clock()

    async def fight(passes: int) -> list[float | None]:
        with clock:
            looks = []
            for _ in range(passes):
                with_rollout_paused(world)
                looks.append(await world.reconciler.reconcile(KEY))
            return looks

    before = len(world.cluster.writes)
    looks = asyncio.run(fight(40))
    written = world.cluster.writes[before:]
    assert sum(write.startswith("take over") for write in written) == FREE
    assert sum(write.startswith("status") for write in written) == 1
    assert looks[-1] == pytest.approx(PAUSE_SECONDS)
    stalled = condition(world, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "FieldConflict")
    assert "spec.paused was set by kubectl-rollout" in stalled["message"]
    assert [event.reason for event in world.events].count("FieldConflict") == 1
    clock.now += PAUSE_SECONDS
    assert asyncio.run(fight(2))[-1] == pytest.approx(2 * PAUSE_SECONDS)
    assert condition(world, "Stalled")["reason"] == "FieldConflict"
    clock.now += 2 * PAUSE_SECONDS

    async def peace(passes: int) -> float | None:
        with clock:
            for _ in range(passes):
                world.cluster.show(world.store)
                look = await world.reconciler.reconcile(KEY)
            return look

    assert asyncio.run(peace(4)) == pytest.approx(4 * PAUSE_SECONDS), "it may come again"
    assert condition(world, "Stalled")["reason"] == "FieldConflict"
    clock.now += 4 * PAUSE_SECONDS
    assert asyncio.run(peace(3)) is None
    assert condition(world, "Stalled")["status"] == "False"


def test_what_is_always_written_otherwise_than_asked_for_is_no_fight() -> None:
    world = world_with_service()
    settle(world)
    policy = world.cluster.read("NetworkPolicy", KEY.namespace, "minilm-workers")
    del policy["metadata"]["managedFields"]
    again = Apply(policy, "spec.x was changed", repairs="spec.x was changed")

    def normalised(observed: Observed, *_: Any) -> Plan:
        return Plan(dict(observed.resource["status"]), (again,))

    world.plan = normalised
    world.restart()
    for _ in range(2 * FREE):
        world.cluster.show(world.store)
        assert asyncio.run(world.reconciler.reconcile(KEY)) is None
    assert not {event.reason for event in world.events} & {"Repaired", "FieldConflict"}


class Clock:
    """The running loop's clock, at rest."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __enter__(self) -> None:
        asyncio.get_running_loop().time = lambda: self.now  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del asyncio.get_running_loop().time


def test_what_has_lost_its_owner_is_adopted_and_goes_with_it() -> None:
    world = world_with_service()
    settle(world)
    for address in [a for a in world.cluster.objects if a.kind != names.KIND]:
        changed = world.cluster.read(*address)
        changed["metadata"]["ownerReferences"] = []
        if address.kind == "ServiceAccount":
            changed["metadata"]["labels"][names.SERVICE_LABEL] = "another"
        world.cluster.put(changed)
    world.cluster.show(world.store)
    settle(world)
    assert condition(world, "Stalled")["status"] == "False"
    world.cluster.remove(names.KIND, *KEY)
    world.cluster.collect()
    assert world.cluster.objects == {}


def test_what_is_deleted_is_made_again_and_what_has_lost_its_owner_goes() -> None:
    world = world_with_service()
    settle(world)
    wanted = content(world.cluster)
    for address in [a for a in world.cluster.objects if a.kind != names.KIND]:
        world.cluster.remove(*address)
        settle(world)
    assert content(world.cluster) == wanted
    world.cluster.remove(names.KIND, *KEY)
    world.cluster.collect()
    world.cluster.show(world.store)
    asyncio.run(world.reconciler.reconcile(KEY))
    assert world.cluster.objects == {}
    assert world.scaling.removed == [KEY]


def test_a_foreign_object_of_our_name_is_left_alone_and_told() -> None:
    world = world_with_service()
    foreign = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"namespace": "team", "name": "minilm-workers", "labels": {"owner": "me"}},
    }
    world.cluster.put(foreign)
    for _ in range(3):
        world.cluster.show(world.store)
        with pytest.raises(ApiError):
            asyncio.run(world.reconciler.reconcile(KEY))
    there = world.cluster.read("ServiceAccount", "team", "minilm-workers")
    assert there["metadata"]["labels"] == {"owner": "me"}
    assert condition(world, "Ready")["reason"] == "FieldConflict"
    assert condition(world, "Stalled")["status"] == "True"
    assert "minilm-workers" in condition(world, "Ready")["message"]
    assert [event.reason for event in world.events].count("FieldConflict") == 1
    world.cluster.remove("ServiceAccount", "team", "minilm-workers")
    settle(world)
    assert condition(world, "Ready")["reason"] == "Starting"
    assert condition(world, "Stalled").get("status") != "True"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionDenied("patch", "deployments", "user cannot patch"), "PermissionDenied"),
        (QuotaExceeded("patch", "deployments", "exceeded quota: small"), "QuotaExceeded"),
        (Invalid("patch", "deployments", "spec.template: Invalid value"), "InvalidSpec"),
    ],
)
def test_a_refusal_is_told_until_it_is_over_and_written_once(error: ApiError, reason: str) -> None:
    world = world_with_service()
    refused = True

    original = world.cluster.apply

    def apply(step: Apply) -> dict[str, Any]:
        if refused and step.object["kind"] == "Deployment":
            raise error
        return original(step)

    world.cluster.apply = apply  # type: ignore[method-assign]
    for _ in range(5):
        world.cluster.show(world.store)
        with pytest.raises(type(error)):
            asyncio.run(world.reconciler.reconcile(KEY))
    ready = condition(world, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", reason)
    assert error.message in ready["message"]
    states = [(c, condition(world, c)["status"]) for c in ("Stalled", "Reconciling")]
    assert states == [("Stalled", "True"), ("Reconciling", "False")]
    told = [write for write in world.cluster.writes if write.startswith("status")]
    assert len(told) <= 2, "once without, once with the refusal"
    assert [event.reason for event in world.events] == ["Starting", reason]
    refused = False
    settle(world)
    assert condition(world, "Ready")["reason"] == "Starting"


def test_what_runs_is_scaled_while_something_else_is_refused() -> None:
    world = world_with_service()
    settle(world)
    budget = next(a for a in world.cluster.objects if a.kind == "PodDisruptionBudget")
    deployment = next(a for a in world.cluster.objects if a.kind == "Deployment")
    world.cluster.remove(*budget)
    original = world.cluster.apply

    def apply(step: Apply) -> dict[str, Any]:
        if step.object["kind"] == budget.kind:
            raise QuotaExceeded("patch", "poddisruptionbudgets", "exceeded quota: small")
        return original(step)

    world.cluster.apply = apply  # type: ignore[method-assign]
    world.scaling.desired = 5
    world.cluster.show(world.store)
    with pytest.raises(QuotaExceeded):
        asyncio.run(world.reconciler.reconcile(KEY))
    assert world.cluster.objects[deployment]["spec"]["replicas"] == 5
    seen = world.store.observe(KEY)
    assert seen is not None
    assert seen.children[ChildKey("Deployment", deployment.name)]["spec"]["replicas"] == 5
    assert condition(world, "Stalled")["reason"] == "QuotaExceeded"


@pytest.mark.parametrize("error", [Unavailable("patch", "x", "timeout"), NotLeader("fenced")])
def test_what_passes_by_itself_is_not_told(error: Exception) -> None:
    world = world_with_service()

    def fail(at: int) -> None:
        if at == 3:
            raise error

    world.cluster.before_write = fail
    with pytest.raises(type(error)):
        settle(world)
    assert condition(world, "Ready")["reason"] == "Starting"
    world.restart()
    settle(world)


def refusing(world: World, error: ApiError) -> None:
    """From now on no Deployment can be applied."""

    def apply(step: Apply) -> dict[str, Any]:
        if step.object["kind"] == "Deployment":
            raise error
        return FakeCluster.apply(world.cluster, step)

    world.cluster.apply = apply  # type: ignore[method-assign]


def try_to(world: World) -> None:
    """One reconcile, which fails."""
    world.cluster.show(world.store)
    with pytest.raises(ApiError):
        asyncio.run(world.reconciler.reconcile(KEY))


def edit(world: World, **changes: Any) -> None:
    resource = world.cluster.read(names.KIND, *KEY)
    resource["spec"] = service(**changes)["spec"]
    resource["metadata"]["generation"] = resource["metadata"].get("generation", 1) + 1
    world.cluster.put(resource)


def test_what_does_not_pass_by_itself_is_told_and_is_no_end() -> None:
    world = world_with_service()
    refusing(world, Unavailable("patch", "deployments", "a webhook does not answer"))
    for _ in range(TOLD_TRIES - 1):
        try_to(world)
    assert condition(world, "Reconciling")["message"] == "The workers are starting."
    for _ in range(3):
        try_to(world)
    for kind, status in (("Reconciling", "True"), ("Ready", "False")):
        found = condition(world, kind)
        assert (found["status"], found["reason"]) == (status, "Starting")
        assert "a webhook does not answer" in found["message"]
    assert condition(world, "Stalled")["status"] == "False"
    assert [event.reason for event in world.events].count("ApiServerFails") == 1
    del world.cluster.apply  # type: ignore[method-assign]
    settle(world)
    assert condition(world, "Reconciling")["message"] == "The workers are starting."


def test_a_refusal_says_nothing_of_the_spec_that_came_after_it() -> None:
    world = world_with_service()
    refusing(world, Invalid("patch", "deployments", "spec.template: Invalid value"))
    edit(world, hardware__nodeSelector={"bad key!": "x"})
    try_to(world)
    assert condition(world, "Stalled")["status"] == "True"
    edit(world, hardware__nodeSelector={"good": "x"})
    refusing(world, Unavailable("patch", "deployments", "busy"))
    try_to(world)
    stalled = condition(world, "Stalled")
    assert (stalled["status"], stalled["observedGeneration"]) == ("False", 3)


def test_a_namespace_that_ends_is_no_failure() -> None:
    world = world_with_service()

    def fail(at: int) -> None:
        if at > 1:
            raise NamespaceEnding("patch", "serviceaccounts", "is being terminated")

    world.cluster.before_write = fail
    settle(world)
    assert condition(world, "Stalled").get("status") != "True"


def test_a_service_whose_namespace_is_gone_is_left_alone() -> None:
    """Kubernetes may forget one when the API server has only just come back."""
    world = world_with_service()

    def fail(at: int) -> None:
        raise NamespaceEnding("patch", "inferenceservices/status", 'namespaces "gone" not found')

    world.cluster.before_write = fail
    settle(world)
    assert asyncio.run(world.reconciler.reconcile(KEY)) is None, "nothing to come back for"


def test_writes_that_never_settle_are_slowed_down() -> None:
    """Somebody undoes everything: the pause keeps the API server from paying for it."""

    def restless(observed: Any, wanted: Any, learnt: Any, platform: Any, now: datetime) -> Plan:
        told = (observed.resource.get("status") or {}).get("n", 0)
        return Plan({"n": told + 1})

    world = World(plan=restless)
    world.cluster.put(service())
    looks = []
    for _ in range(30):
        world.cluster.show(world.store)
        looks.append(asyncio.run(world.reconciler.reconcile(KEY)))
    assert set(looks) == {0.0, 10.0}
    assert looks.count(10.0) == 2


def test_a_service_made_anew_gets_no_status_of_the_one_before() -> None:
    world = world_with_service()
    world.cluster.show(world.store)
    world.cluster.remove(names.KIND, *KEY)
    world.cluster.put(service())
    with pytest.raises(ApiError):
        asyncio.run(world.reconciler.reconcile(KEY))
    assert "status" not in world.cluster.read(names.KIND, *KEY)


def test_an_unknown_service_is_forgotten() -> None:
    world = World()
    key = Key("team", "gone")
    assert asyncio.run(world.reconciler.reconcile(key)) is None
    assert world.scaling.removed == [key]
