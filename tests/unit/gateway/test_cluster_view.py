"""What the watches bring becomes lines of the table, and only what changed is reported."""

import itertools
import json
import logging
from typing import Any

import msgspec
import pytest

from sluice_api import names, wire
from sluice_api.inference_service import InferenceService, revision_of
from sluice_gateway.cluster.view import Key, Services, Slices, View

GENERATION = itertools.count(1)
EMB = Key("team", "emb")


class Watched:
    """A view, fed as its watches would."""

    def __init__(self) -> None:
        self.changes: list[Key] = []
        self.view = View(self.changes.append)
        self.services = Services(self.view, None)
        self.slices = Slices(self.view, None)

    def take(self) -> list[Key]:
        """What was reported since the last time."""
        taken, self.changes[:] = list(self.changes), []
        return taken

    def line(self) -> wire.Service:
        line = self.view.line(EMB)
        assert line is not None
        return line

    def urls(self) -> dict[str, str]:
        return {endpoint.url: endpoint.revision for endpoint in self.line().endpoints}


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def resource(name: str = "emb", status: Any = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": "u",
            "creationTimestamp": "2026-11-26T09:20:00Z",
            "generation": next(GENERATION),
            "resourceVersion": "7",
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"model": {"uri": "hf://org/model"}} | spec,
        "status": status or {},
    }


def worker_slice(
    *addresses: str, name: str = "emb-1", revision: str = "r1", **changes: Any
) -> dict[str, Any]:
    """A slice as the controller writes it."""
    labels = {names.SERVICE_LABEL: "emb", names.REVISION_LABEL: revision}
    return {
        "metadata": {"name": name, "namespace": "team", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": False, "serving": False, "terminating": False},
                "targetRef": {"kind": "Pod", "uid": f"uid-{address}"},
                "zone": "a",
            }
            for address in addresses
        ],
        "ports": [{"name": "admin", "port": 8081}, {"name": "http", "port": 8080}],
    } | changes


@pytest.fixture
def watched() -> Watched:
    made = Watched()
    made.services.changed(raw(resource()))
    made.take()
    return made


def test_a_service_before_its_first_status() -> None:
    watched = Watched()
    watched.services.changed(raw(resource(access={"public": True})))
    line = watched.line()
    expected = InferenceService.model_validate(
        {k: v for k, v in resource().items() if k != "status"}
    )
    assert watched.take() == [EMB]
    assert (line.namespace, line.name, line.public) == ("team", "emb", True)
    assert line.revision == revision_of(expected)
    assert line.created == 1_795_684_800, "2026-11-26T09:20:00Z"
    assert line.answer_digest == "" and line.endpoints == [] and line.canary is None


def test_only_what_shows_is_reported(watched: Watched) -> None:
    told = resource(status={"revision": "r1", "scaling": {"desired": 3}})
    watched.services.changed(raw(told))
    assert watched.take() == [EMB] and watched.line().revision == "r1"
    told["status"]["scaling"] = {"desired": 4}
    told["metadata"]["resourceVersion"] = "8"
    watched.services.changed(raw(told))
    assert watched.take() == []
    watched.slices.changed(raw(worker_slice("10.0.0.1")))
    watched.take()
    again = worker_slice("10.0.0.1")
    again["endpoints"][0]["conditions"]["ready"] = True  # The gateway's own probe says so.
    watched.slices.changed(raw(again))
    assert watched.take() == []


def test_a_service_made_anew_is_read_anew(watched: Watched) -> None:
    again = resource(access={"public": True})
    again["metadata"] |= {"uid": "another", "generation": 1}
    watched.services.changed(raw(again))
    assert watched.line().public
    # The same generation of the same service is not read twice, whatever it says.
    again["spec"]["access"]["public"] = False
    watched.services.changed(raw(again))
    assert watched.line().public


def test_workers_that_are_not_ready_count_and_those_that_end_do_not(watched: Watched) -> None:
    given = worker_slice("10.0.0.1", "10.0.0.2", "10.0.0.3")
    given["endpoints"][1]["conditions"]["terminating"] = True
    given["endpoints"][2].pop("conditions")
    watched.slices.changed(raw(given))
    assert watched.urls() == {"http://10.0.0.1:8080": "r1", "http://10.0.0.3:8080": "r1"}
    assert watched.take() == [EMB]
    given["metadata"]["deletionTimestamp"] = "2026-11-23T00:00:00Z"
    watched.slices.changed(raw(given))
    assert watched.urls() == {} and watched.take() == [EMB]


def test_all_slices_of_a_service_count_each_worker_once(watched: Watched) -> None:
    watched.slices.changed(raw(worker_slice("10.0.0.1", "10.0.0.2")))
    # Rearranged: the second worker stands in two slices for a moment.
    watched.slices.changed(raw(worker_slice("10.0.0.2", "10.0.0.3", name="emb-2")))
    watched.slices.changed(raw(worker_slice("10.0.0.9", name="new-1", revision="r2")))
    assert watched.urls() == {
        "http://10.0.0.1:8080": "r1",
        "http://10.0.0.2:8080": "r1",
        "http://10.0.0.3:8080": "r1",
        "http://10.0.0.9:8080": "r2",
    }
    # Both address families name the same pods.
    both = worker_slice("fd00::1", name="emb-3", addressType="IPv6")
    both["endpoints"][0]["targetRef"]["uid"] = "uid-10.0.0.1"
    watched.slices.changed(raw(both))
    assert len(watched.urls()) == 4
    watched.slices.deleted(raw(worker_slice(name="emb-1")))
    watched.slices.deleted(raw(worker_slice(name="emb-2")))
    assert watched.urls() == {"http://[fd00::1]:8080": "r1", "http://10.0.0.9:8080": "r2"}


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoints": None},
        {"ports": None},
        {"ports": [{"name": "admin", "port": 8081}]},
        {"endpoints": [{"addresses": []}]},
    ],
)
def test_slices_that_name_nobody(watched: Watched, changes: dict[str, Any]) -> None:
    watched.slices.changed(raw(worker_slice("10.0.0.1") | changes))
    assert watched.urls() == {}


def test_a_new_list_drops_what_it_does_not_hold(watched: Watched) -> None:
    watched.slices.changed(raw(worker_slice("10.0.0.1")))
    watched.services.changed(raw(resource("other")))
    watched.take()
    watched.slices.replaced([raw(worker_slice("10.0.0.2", name="emb-2"))])
    assert watched.urls() == {"http://10.0.0.2:8080": "r1"}
    assert set(watched.take()) == {EMB}
    watched.services.replaced([raw(resource())])
    assert watched.take() == [Key("team", "other")]
    assert watched.view.line(Key("team", "other")) is None


def test_a_list_of_one_namespace_says_nothing_of_others(watched: Watched) -> None:
    watched.slices.changed(raw(worker_slice("10.0.0.1")))
    watched.take()
    Services(watched.view, "elsewhere").replaced([])
    Slices(watched.view, "elsewhere").replaced([])
    assert watched.take() == [] and len(watched.urls()) == 1


def test_workers_wait_for_their_service() -> None:
    watched = Watched()
    watched.slices.changed(raw(worker_slice("10.0.0.1")))
    assert watched.view.line(EMB) is None
    watched.services.changed(raw(resource()))
    assert watched.urls() == {"http://10.0.0.1:8080": "r1"}


def test_what_is_not_understood_keeps_its_last_good_definition(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    before = watched.line()
    for spec in ({"scaling": {"minReplicas": "three"}}, {"model": {"uri": "ftp://x"}}):
        with caplog.at_level(logging.ERROR):
            watched.services.changed(raw(resource(**spec)))
    assert watched.line() == before and watched.take() == []
    assert [record.__dict__["service"] for record in caplog.records] == ["team/emb"] * 2
    # Relisting finds it still there.
    watched.services.replaced([raw(resource(**spec))])
    assert watched.line() == before


def test_what_a_newer_version_added_is_left_aside(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    newer = resource(access={"public": True, "hours": "9-17"}, schedule=[{"at": "9"}])
    watched.services.changed(raw(newer))
    assert watched.line().public and not caplog.records


def test_failure_and_canary_come_from_the_status(watched: Watched) -> None:
    status = {
        "revision": "r1",
        "revisions": [
            {"name": "r1", "answerDigest": "sha256:1", "tasks": ["embeddings"]},
            {"name": "r2", "role": "canary", "answerDigest": "sha256:2"},
        ],
        "conditions": [{"type": "Ready", "status": "False", "reason": "ModelNotFound"}],
    }
    canary = {"weight": 20, "model": {"revision": "next"}}
    watched.services.changed(raw(resource(status=status, rollout={"canary": canary})))
    line = watched.line()
    assert line.answer_digest == "sha256:1" and line.failure is not None
    assert line.canary == wire.Canary(revision="r2", weight=20, answer_digest="sha256:2")


def test_one_slice_costs_one_service() -> None:
    watched = Watched()
    for number in range(500):
        watched.services.changed(raw(resource(f"s{number}")))
    watched.take()
    watched.slices.changed(raw(worker_slice("10.0.0.1")))
    assert watched.take() == [EMB]
