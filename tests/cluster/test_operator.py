"""The operator's process on a real API server, with the chart's rights: leads, dies, converges.

No kubelet is needed: what is looked at are objects. The operators run as processes beside a control
plane of their own, because those of the chart, in the tests' shared cluster, would work against
them.
"""

import json
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.operator_process import NAMESPACE, OperatorSite, install_crd
from tests.support.rights import may

KINDS = ("deployment", "service", "poddisruptionbudget", "networkpolicy", "serviceaccount")
"""Made for every service; there is no HPA as long as nobody serves our metric."""
CHILDREN = (*KINDS, "horizontalpodautoscaler")
WATCHED_SECONDS = 60.0
"""Well within the five minutes after which everything is looked at anyway."""
WAITING = ("Starting", "Unschedulable")
"""What is wrong with a service here, at best: there is no node."""


@pytest.fixture(scope="module")
def own_site(
    control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorSite]:
    site = OperatorSite(control_plane, tmp_path_factory.mktemp("operators"))
    yield site
    site.end_all()


@pytest.fixture
def site(own_site: OperatorSite) -> Iterator[OperatorSite]:
    """Without an operator; those that a test starts end with it."""
    own_site.end_all()
    yield own_site
    own_site.end_all()
    own_site.cluster.repair()
    own_site.cluster.check()


@pytest.fixture
def led(own_site: OperatorSite) -> OperatorSite:
    """With one operator, which leads: the one of the test before, if that has left it."""
    if not own_site.is_led():
        own_site.end_all()
        own_site.start_leader("operator-a")
    return own_site


@pytest.fixture
def team(own_site: OperatorSite) -> Iterator[str]:
    name = f"team-{secrets.token_hex(3)}"
    own_site.cluster.kubectl("create", "namespace", name)
    yield name
    # Kubernetes forgets them in a namespace if its API server has only just come back: the next
    # test's operator would look after them.
    own_site.cluster.kubectl("delete", "inferenceservice", "--all", "-n", name)
    own_site.cluster.kubectl("delete", "namespace", name, "--wait=false")


def has_children(site: OperatorSite, namespace: str, name: str) -> bool:
    """Whether all that belongs to a service is there."""
    return all(site.read(namespace, kind, of=name) for kind in KINDS)


def test_one_replica_leads_and_the_other_only_watches(site: OperatorSite, team: str) -> None:
    leader = site.start_leader("operator-a")
    follower = site.start("operator-b")
    site.publish(team, "one")
    site.cluster.until(lambda: has_children(site, team, "one"), "the children of one")
    seen = 'sluice_operator_watch_events_total{kind="Deployment"}'
    site.cluster.until(lambda: follower.metrics().get(seen), "the follower sees them too")
    assert leader.calls(writes_only=True) >= len(KINDS)
    assert follower.calls(writes_only=True) == 0
    assert not follower.leads()
    assert follower.ask("/livez") == (200, "ok")
    metadata = site.read(team, "inferenceservice", "one")["metadata"]
    assert not metadata.keys() & {"finalizers", "annotations"}, "kopf leaves no trace"
    waits = lambda: site.condition(team, "one").get("reason") in WAITING  # noqa: E731
    site.cluster.until(waits, "it waits for a node")


def test_a_killed_leader_is_replaced(site: OperatorSite, team: str) -> None:
    leader = site.start_leader("operator-a")
    other = site.start("operator-b")
    leader.end(signal.SIGKILL)
    before = other.looks()
    site.publish(team, "one")
    site.cluster.until(lambda: has_children(site, team, "one"), "the other has taken over")
    anew = len(other.said("holder is given its time anew"))  # All stood still meanwhile.
    assert other.looks() - before <= 8 * (1 + anew), "lease of 6 s, a look each second"
    assert other.leads()


def test_a_restarted_container_goes_on_leading(site: OperatorSite, team: str) -> None:
    """Its lease would last for seconds yet, and is its own."""
    site.start_leader("operator-a").end(signal.SIGKILL)
    again = site.start_leader("operator-a")
    assert again.looks() <= 2, "at the first look, or one more if that was not answered"
    site.publish(team, "one")
    site.cluster.until(lambda: has_children(site, team, "one"), "it works")


def test_ending_hands_over_at_once(site: OperatorSite, team: str) -> None:
    leader = site.start_leader("operator-a")
    other = site.start("operator-b")
    assert leader.end(signal.SIGTERM) == 0
    holder = site.read(NAMESPACE, "lease", "sluice-operator")["spec"]["holderIdentity"]
    assert holder in ("", "operator-b"), "it has let go of the lease, which would last yet"
    before = other.looks()
    site.cluster.until(other.leads, "the other leads")
    assert other.looks() - before <= 3, "at the next look, and not after six"
    assert leader.said("stopped")
    assert [line for line in leader.lines() if line["level"] in ("error", "critical")] == []


def test_a_leader_that_was_stopped_writes_nothing_when_it_goes_on(
    site: OperatorSite, team: str
) -> None:
    leader = site.start_leader("operator-a")
    other = site.start("operator-b")
    site.until_quiet(leader)
    before = leader.calls(writes_only=True)
    leader.send(signal.SIGSTOP)
    site.cluster.until(other.leads, "the other leads")
    site.publish(team, "one")
    site.cluster.until(lambda: has_children(site, team, "one"), "the other works")
    leader.send(signal.SIGCONT)
    site.cluster.until(lambda: not leader.leads(), "the old one knows")
    seen = 'sluice_operator_watch_events_total{kind="Deployment"}'
    site.cluster.until(lambda: leader.metrics().get(seen), "the old one sees the children")
    assert leader.calls(writes_only=True) == before
    assert other.leads()


def test_an_api_server_that_restarts_costs_nobody_their_process(
    site: OperatorSite, team: str
) -> None:
    operators = [site.start_leader("operator-a"), site.start("operator-b")]
    site.publish(team, "one")
    site.cluster.until(lambda: has_children(site, team, "one"), "the children of one")
    site.cluster.restart("kube-apiserver", signal.SIGKILL)
    site.publish(team, "two")
    site.cluster.until(lambda: has_children(site, team, "two"), "work goes on")
    for operator in operators:
        assert operator.process.is_running()
        assert len(operator.said("started")) == 1
        site.cluster.until(operator.is_ready, f"{operator.name} is ready again")
    site.cluster.until(lambda: sum(each.leads() for each in operators) == 1, "one of them leads")


def test_a_service_at_rest_causes_no_request(site: OperatorSite, team: str) -> None:
    """Nor a write: neither the resources' versions nor the count of calls move."""
    operator = site.start_leader("operator-a")
    site.publish(team, *(f"m-{number}" for number in range(5)), scaling={"initialReplicas": 0})
    asleep = lambda number: site.condition(team, f"m-{number}").get("reason") == "Asleep"  # noqa: E731
    site.cluster.until(lambda: all(map(asleep, range(5))), "all sleep")

    def versions() -> dict[str, str]:
        resources = [site.read(team, "inferenceservice", f"m-{number}") for number in range(5)]
        items = resources + [item for kind in CHILDREN for item in site.read(team, kind)]
        return {i["metadata"]["uid"]: i["metadata"]["resourceVersion"] for i in items}

    applied = 'sluice_operator_api_requests_total{code="200",resource="deployments",verb="patch"}'
    site.until_quiet(operator, 8.0)  # On a busy machine it may pause in the middle of its work.
    before, writes = versions(), operator.calls(writes_only=True)
    # A watch that the API server ends may begin anew with a list, once; nothing may come regularly.
    site.until_quiet(operator, 15.0)
    assert operator.calls(writes_only=True) == writes
    assert versions() == before
    assert operator.metrics().get(applied, 0.0) == 0.0, "what is made asleep is written once"


# What one leader can do, test after test ----------------------------------------------------------


def test_replicas_belong_to_the_scaler_alone(led: OperatorSite, team: str) -> None:
    led.publish(team, "one", scaling={"minReplicas": 2})

    def owners() -> set[str] | None:
        found = led.read(team, "deployment")
        if not found:
            return None
        return {
            entry["manager"]
            for entry in found[0]["metadata"]["managedFields"]
            if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        }

    led.cluster.until(lambda: owners() == {"sluice-scaler"}, "the scaler owns replicas")
    replicas = lambda: led.read(team, "deployment")[0]["spec"]["replicas"]  # noqa: E731
    led.cluster.until(lambda: replicas() == 2, "two replicas")


def test_the_lease_names_the_pod(led: OperatorSite) -> None:
    lease = led.read(NAMESPACE, "lease", "sluice-operator")["spec"]
    assert lease["holderIdentity"] == "operator-a"
    assert lease["leaseDurationSeconds"] == 6


def test_drift_is_repaired_within_seconds(led: OperatorSite, team: str) -> None:
    led.publish(team, "one")
    led.cluster.until(lambda: has_children(led, team, "one"), "the children")
    kubectl = led.cluster.kubectl
    deployment = led.read(team, "deployment")[0]["metadata"]["name"]
    image = '{"spec":{"template":{"spec":{"containers":[{"name":"worker","image":"bad:1"}]}}}}'
    kubectl("patch", "deployment", deployment, "-n", team, "-p", image)
    kubectl("patch", "networkpolicy", "one-workers", "-n", team, "--type=merge",
            "-p", '{"spec":{"ingress":[]}}')  # fmt: skip
    kubectl("delete", "poddisruptionbudget", "one-workers", "-n", team)
    kubectl("label", "service", deployment, "-n", team, "sluice.dev/revision-")

    def is_whole() -> bool:
        policy = led.read(team, "networkpolicy", "one-workers")
        template = led.read(team, "deployment", deployment)["spec"]["template"]["spec"]
        labels = led.read(team, "service", deployment)["metadata"]["labels"]
        budgets = led.read(team, "poddisruptionbudget")
        image = template["containers"][0]["image"]
        return bool(
            policy["spec"].get("ingress")
            and image == "worker:test"
            and "sluice.dev/revision" in labels
            and budgets
        )

    led.cluster.until(is_whole, "all is repaired", WATCHED_SECONDS)


def test_what_others_add_to_children_goes_within_seconds(led: OperatorSite, team: str) -> None:
    """One after the other, each alone: with another beside it, it might go for that one's sake."""
    led.publish(team, "one")
    led.cluster.until(lambda: has_children(led, team, "one"), "the children")
    name = led.read(team, "deployment")[0]["metadata"]["name"]

    def kubectl(*arguments: str) -> None:
        led.cluster.kubectl(*arguments, "-n", team)

    def deployment() -> dict[str, Any]:
        found: dict[str, Any] = led.read(team, "deployment", name)
        return found

    def what_stands() -> tuple[Any, ...]:
        found = deployment()
        budget = led.read(team, "poddisruptionbudget", "one-workers")["spec"]
        labels = found["metadata"]["labels"]
        return found["spec"] | {"replicas": "anybody's"}, budget, labels["sluice.dev/service"]

    before = what_stands()
    pod = '{"spec":{"template":{"spec":%s}}}'
    worker = '{"containers":[{"name":"worker",%s}]}'
    slips = [
        ("rollout", "pause", f"deployment/{name}"),
        ("set", "env", f"deployment/{name}", "EXTRA=1"),
        *(
            ("patch", "deployment", name, "-p", change)
            for change in (
                pod % '{"hostNetwork":true}',
                pod % '{"containers":[{"name":"beside","image":"beside:1"}]}',
                # Kubernetes refuses what is privileged and may not escalate.
                pod % worker % '"securityContext":{"privileged":true,'
                '"allowPrivilegeEscalation":true},"image":"other:1"',
                '{"spec":{"minReadySeconds":9}}',
                '{"spec":{"template":{"metadata":{"labels":{"team":"search"}}}}}',
            )
        ),
        # Kubernetes takes one of these two, not both.
        (
            *("patch", "poddisruptionbudget", "one-workers", "--type=merge", "-p"),
            '{"spec":{"maxUnavailable":null,"minAvailable":1}}',
        ),
        ("label", "deployment", name, "sluice.dev/service=another", "--overwrite"),
    ]
    for slip in slips:
        kubectl(*slip)
        what = f"the end of {' '.join(slip)}"
        led.cluster.until(lambda: what_stands() == before, what, WATCHED_SECONDS)
    assert led.condition(team, "one", "Stalled")["status"] == "False"

    # What others may have: metadata, and what `kubectl rollout restart` writes.
    kubectl("annotate", "deployment", name, "owner=search")
    kubectl("label", "deployment", name, "owner=search")
    kubectl("rollout", "restart", f"deployment/{name}")
    kubectl("patch", "deployment", name, "--type=json", "-p",
            '[{"op":"remove","path":"/metadata/ownerReferences"}]')  # fmt: skip
    led.cluster.until(
        lambda: deployment()["metadata"].get("ownerReferences"),
        "the owner is back",
        WATCHED_SECONDS,
    )
    found = deployment()
    assert found["metadata"]["annotations"]["owner"] == "search"
    assert found["metadata"]["labels"]["owner"] == "search"
    assert found["spec"]["template"]["metadata"]["annotations"]
    assert led.condition(team, "one", "Stalled")["status"] == "False"


def test_a_pod_has_its_deployment_until_it_is_gone(site: OperatorSite, team: str) -> None:
    """Kubernetes' disruption controller cannot count pods whose Deployment has gone before."""
    leader = site.start_leader("operator-a")
    site.publish(team, "one")
    site.cluster.until(lambda: bool(site.read(team, "pod", of="one")), "a pod")
    (pod,) = (one["metadata"]["name"] for one in site.read(team, "pod", of="one"))
    (old,) = (one["metadata"]["name"] for one in site.read(team, "deployment", of="one"))

    def hold(*finalizers: str) -> None:
        """Keep the pod from being gone, as a worker does that finishes what it has begun."""
        patch = json.dumps({"metadata": {"finalizers": finalizers or None}})
        site.cluster.kubectl("patch", "pod", pod, "-n", team, "--type=merge", "-p", patch)

    def deployments() -> dict[str, int]:
        found = site.read(team, "deployment", of="one")
        return {one["metadata"]["name"]: one["spec"]["replicas"] for one in found}

    def is_counted() -> bool:
        budget = site.read(team, "poddisruptionbudget", "one-workers")
        (allowed,) = budget["status"]["conditions"]
        return bool(allowed["reason"] != "SyncFailed")

    hold("example.com/busy")
    try:
        site.publish(team, "one", model={"uri": "hf://a/b"})
        site.cluster.until(
            lambda: "deletionTimestamp" in site.read(team, "pod", pod)["metadata"], "it ends"
        )
        site.until_quiet(leader)
        assert deployments()[old] == 0
        site.cluster.until(is_counted, "its budget is known")
    finally:
        hold()
    site.cluster.until(lambda: old not in deployments(), "nothing of it is left")


def test_deleting_leaves_nothing(led: OperatorSite, team: str) -> None:
    led.publish(team, "one", "two")
    for name in ("one", "two"):
        led.cluster.until(lambda name=name: has_children(led, team, name), f"children of {name}")
    led.cluster.kubectl("delete", "inferenceservice", "one", "-n", team)

    def left() -> list[Any]:
        kinds = (*CHILDREN, "replicaset", "pod")
        return [item for kind in kinds for item in led.read(team, kind, of="one")]

    led.cluster.until(lambda: not left(), "nothing of one is left")
    assert has_children(led, team, "two")


def test_what_the_role_forbids_is_told_and_mended(led: OperatorSite, team: str) -> None:
    rules = '[{"op":"test","path":"/rules/3/resources/0","value":"deployments"},' \
            '{"op":"replace","path":"/rules/3/verbs","value":["get","list","watch"]}]'  # fmt: skip
    try:
        led.cluster.kubectl("patch", "clusterrole", "sluice-operator", "--type=json", "-p", rules)
        account = f"system:serviceaccount:{NAMESPACE}:sluice-operator"
        patching = (led.cluster, account, "patch", "deployments.apps", "-n", team)
        led.cluster.until(lambda: not may(*patching), "the right is gone")
        led.publish(team, "one")
        led.cluster.until(
            lambda: led.condition(team, "one").get("reason") == "PermissionDenied",
            "it is told",
        )
        message = led.condition(team, "one")["message"]
        assert "patch deployments" in message
        assert led.condition(team, "one", "Stalled")["status"] == "True"
    finally:
        led.grant()
    led.cluster.until(lambda: has_children(led, team, "one"), "it goes on by itself")
    led.cluster.until(
        lambda: led.condition(team, "one").get("reason") in WAITING, "it is taken back"
    )


def test_a_foreign_object_of_our_name_is_left_alone(led: OperatorSite, team: str) -> None:
    led.cluster.kubectl("create", "serviceaccount", "one-workers", "-n", team)
    before = led.read(team, "serviceaccount", "one-workers")["metadata"]["resourceVersion"]
    led.publish(team, "one")
    led.cluster.until(
        lambda: led.condition(team, "one").get("reason") == "FieldConflict", "it is told"
    )
    assert "one-workers" in led.condition(team, "one")["message"]
    after = led.read(team, "serviceaccount", "one-workers")["metadata"]["resourceVersion"]
    assert after == before


def test_a_second_refusal_is_told_in_its_own_words(led: OperatorSite, team: str) -> None:
    """Deployment and ReplicaSet keep the first one's, as the reason is the same."""
    reasons: set[str] = set()

    def is_told(name: str) -> bool:
        told = led.read(team, "inferenceservice", "one").get("status", {}).get("conditions", ())
        reasons.update(condition["reason"] for condition in told)
        return any(c["type"] == "Stalled" and f"with name {name} " in c["message"] for c in told)

    for name in ("first", "second", "third"):
        led.publish(team, "one", hardware={"priorityClassName": name})
        what = f"the {name} is told of"
        led.cluster.until(lambda name=name: is_told(name), what)
    assert "RollingOut" not in reasons, "nothing has run yet"


def test_an_operator_without_the_crd_waits_for_it(site: OperatorSite, team: str) -> None:
    site.cluster.kubectl("delete", "crd", "inferenceservices.sluice.dev")
    try:
        operator = site.start("operator-a", ready=False)
        site.cluster.until(
            lambda: operator.port and "install the CRD" in operator.ask("/readyz")[1],
            "it says so",
        )
        assert operator.ask("/livez") == (200, "ok")
    finally:
        install_crd(site.cluster)
    site.cluster.until(operator.leads, "it goes on by itself")
    site.publish(team, "one")
    site.cluster.until(lambda: has_children(site, team, "one"), "it works")


def test_losing_the_crd_ends_the_process_and_the_next_one_waits(site: OperatorSite) -> None:
    operator = site.start_leader("operator-a")
    site.cluster.kubectl("delete", "crd", "inferenceservices.sluice.dev")
    try:
        site.cluster.until(lambda: operator.process.status() == "zombie", "it ends")
        assert operator.end() == 1
        assert operator.said("ended")
    finally:
        install_crd(site.cluster)


def test_the_log_is_quiet(site: OperatorSite, team: str) -> None:
    operator = site.start_leader("operator-a")
    site.publish(team, "one")
    site.cluster.until(lambda: has_children(site, team, "one"), "the children")
    site.until_quiet(operator)
    lines = [line for line in operator.lines() if "steps" not in line]
    assert len(lines) <= 10, [line["message"] for line in lines]
    loud = [line for line in operator.lines() if line["level"] in ("warning", "error")]
    # A busy machine may keep the API server from answering in time, which is worth a word.
    assert [line for line in loud if "no answer" not in line.get("error", "")] == []
