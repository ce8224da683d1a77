"""Another revision on a real Kubernetes under load: nothing fails, each answer says whose it is.

The stub engine answers, open-loop load with unique inputs comes from inside the cluster, and what
the workers count themselves must equal what the clients saw.
"""

import math
import secrets
from collections import Counter
from functools import partial
from typing import Any

import pytest

from sluice_api import names
from tests.support.cluster.cluster import Cluster
from tests.support.cluster_load import Load, cluster_load
from tests.support.published import GATEWAY, Published, ask, fixed, stub
from tests.support.release import Release

OLD, NEW = "old-ms20-slots8-start300", "new-ms20-slots8-start300"
RATE = 20.0
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


def all_choose(platform: Release, service: Published, revision: str) -> "Counter[str]":
    """Ask each gateway until it has chosen a revision; what was answered meanwhile, by revision.

    They learn of a change each for itself, and one that is delayed chooses as before.
    """
    told: Counter[str] = Counter()

    def chosen(url: str) -> bool:
        body = {"model": service.model, "input": secrets.token_hex(8)}
        answer = ask(f"{url}/v1/embeddings", body)
        assert answer.status == 200, answer
        told[answer.headers[names.REVISION.lower()]] += 1
        return answer.headers[names.REVISION.lower()] == revision

    for gateway in platform.gateways():
        service.until(partial(chosen, gateway), f"{gateway} chooses {revision}")
    return told


def wait_for(service: Published, load: Load, more: int, what: str = "") -> None:
    service.cluster.until(load.more(more), f"{more} more answers {what}")


def test_a_new_revision_takes_over_without_a_failure(platform: Release, service: Published) -> None:
    old = service.revision
    with load_on(service) as load:
        wait_for(service, load, 40)
        service.apply(stub(NEW, scaling=TWO))
        service.until(lambda: service.revision not in ("", old), "another revision answers")
        new = service.revision
        told = all_choose(platform, service, new)
        wait_for(service, load, 40)
        # The old one is kept whole a while for gateways that have not turned yet; read it now.
    assert load.failures == []
    assert set(load.revisions) == {old, new}
    assert counted(service, old, new) == load.revisions + told
    order = [answer.revision for answer in sorted(load.answers, key=lambda each: each.began)]
    assert order[:20] == [old] * 20
    assert order[-20:] == [new] * 20
    service.until_ready(2)
    service.until(lambda: not any(old in one for one in service.objects()), f"{old} is gone")


def test_a_canary_gets_its_share_and_is_promoted_with_its_own_workers(
    platform: Release, service: Published
) -> None:
    stable = service.revision
    service.apply(stub(OLD, scaling=TWO, rollout=trial(25)))
    service.until(lambda: service.condition("CanaryHealthy").get("status") == "True", "a canary")
    (canary,) = [one["name"] for one in service.status["revisions"] if one["role"] == "canary"]
    service.until(lambda: bool(service.workers(canary, ready=True)), "the canary's worker")
    with load_on(service) as load:
        told = all_choose(platform, service, canary)
        start = load.revisions
        wait_for(service, load, 200)
        share = load.revisions - start
    assert load.failures == []
    assert counted(service, stable, canary) == load.revisions + told
    # Draws of a quarter, and 5 standard deviations to either side.
    draws = share.total()
    assert abs(share[canary] - draws / 4) <= 5 * math.sqrt(draws * 3 / 16), share

    tried = service.workers(canary)
    with load_on(service) as load:
        wait_for(service, load, 20)
        service.apply(stub(NEW, scaling=TWO))
        service.until(lambda: service.revision == canary, "the canary is promoted")
        all_choose(platform, service, canary)
        wait_for(service, load, 60)
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
