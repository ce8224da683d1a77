"""Another revision on a real Kubernetes under load: nothing fails, each answer says whose it is.

The stub engine answers, open-loop load with unique inputs comes from inside the cluster, and what
the workers count themselves must equal what the clients saw.
"""

from typing import Any

import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.cluster_load import Load, cluster_load
from tests.support.published import GATEWAY, Published, fixed, stub
from tests.support.release import Release

OLD, NEW = "old-ms20-slots8-start300", "new-ms20-slots8-start300"
RATE = 40.0
TWO = fixed(2)


@pytest.fixture
def service(platform: Release, cluster: Cluster, restricted: str) -> Published:
    """Two workers of the old revision, ready."""
    service = Published(cluster, restricted)
    service.apply(stub(OLD, scaling=TWO))
    service.until_ready(2)
    return service


def trial(weight: int) -> dict[str, Any]:
    return {"canary": {"weight": weight, "model": {"uri": f"hf://stub/{NEW}"}}}


def load_on(service: Published) -> Any:
    return cluster_load(service.cluster, GATEWAY, service.model, RATE)


def counted(service: Published, *revisions: str) -> dict[str, int]:
    """Answers by revision, as the workers count them."""
    return {revision: service.answered(revision) for revision in revisions}


def wait_for(service: Published, load: Load, more: int, what: str = "") -> None:
    service.cluster.until(load.more(more), f"{more} more answers {what}")


def test_a_new_revision_takes_over_without_a_failure(service: Published) -> None:
    old = service.revision
    with load_on(service) as load:
        wait_for(service, load, 40)
        service.apply(stub(NEW, scaling=TWO))
        service.until(lambda: service.revision not in ("", old), "another revision answers")
        new = service.revision
        service.until(lambda: load.revisions[new] >= 40, "answers of the new revision")
        # The old one is kept whole a while for gateways that have not turned yet; read it now.
    assert load.failures == []
    assert set(load.revisions) == {old, new}
    assert counted(service, old, new) == load.revisions
    order = [answer.revision for answer in sorted(load.answers, key=lambda each: each.began)]
    assert order[:20] == [old] * 20
    assert order[-20:] == [new] * 20
    service.until_ready(2)
    service.until(lambda: not any(old in one for one in service.objects()), f"{old} is gone")


def test_a_canary_gets_its_share_and_is_promoted_with_its_own_workers(service: Published) -> None:
    stable = service.revision
    service.apply(stub(OLD, scaling=TWO, rollout=trial(25)))
    service.until(lambda: service.condition("CanaryHealthy").get("status") == "True", "a canary")
    (canary,) = [one["name"] for one in service.status["revisions"] if one["role"] == "canary"]
    service.until(lambda: bool(service.workers(canary, ready=True)), "the canary's worker")
    with load_on(service) as load:
        service.until(lambda: load.revisions[canary] > 0, "an answer of the canary")
        start = load.revisions
        wait_for(service, load, 200)
        share = load.revisions - start
    assert load.failures == []
    assert counted(service, stable, canary) == load.revisions
    # 200 draws of a quarter: 50, and 5 standard deviations of 6.1 to either side.
    assert 20 <= share[canary] <= 80, share

    tried = service.workers(canary)
    with load_on(service) as load:
        wait_for(service, load, 20)
        service.apply(stub(NEW, scaling=TWO))
        service.until(lambda: service.revision == canary, "the canary is promoted")
        service.until(lambda: load.answers[-1].revision == canary, "its answers")
        wait_for(service, load, 40)
    assert load.failures == []
    assert {answer.revision for answer in load.answers[-20:]} == {canary}
    service.until_ready(2)
    assert tried.keys() <= service.workers(canary).keys()


def test_a_canary_is_rolled_back_without_a_failure(service: Published) -> None:
    stable = service.revision
    workers = service.workers()
    service.apply(stub(OLD, scaling=TWO, rollout=trial(50)))
    with load_on(service) as load:
        service.until(lambda: load.revisions.total() > load.revisions[stable], "a canary's answer")
        service.apply(stub(OLD, scaling=TWO))
        service.until(lambda: len(service.workers()) == 2, "the canary's workers are gone")
        wait_for(service, load, 40)
    assert load.failures == []
    assert {answer.revision for answer in load.answers[-20:]} == {stable}
    assert service.workers().keys() == workers.keys()


def test_a_paused_service_answers_and_changes_only_afterwards(service: Published) -> None:
    old, workers = service.revision, service.workers()
    with load_on(service) as load:
        service.apply(stub(NEW, scaling=TWO, paused=True))
        service.until(lambda: service.condition().get("reason") == "Paused", "it is paused")
        wait_for(service, load, 60)
        assert service.workers().keys() == workers.keys()
        assert service.revision == old
        service.apply(stub(NEW, scaling=TWO))
        service.until(lambda: service.revision != old, "another revision answers")
        wait_for(service, load, 40)
    assert load.failures == []
