"""Who has set what in a child, and how it becomes ours to drop."""

from typing import Any

import pytest

from sluice_api import names
from sluice_operator.ownership import Addition, additions, is_orphan, taken_over

WORKER = 'k:{"name":"worker"}'
OURS: dict[str, Any] = {
    "f:metadata": {"f:annotations": {"f:sluice.dev/rendered": {}}},
    "f:spec": {
        "f:template": {
            "f:spec": {
                "f:containers": {
                    WORKER: {
                        ".": {},
                        "f:env": {'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}}},
                        "f:name": {},
                    }
                }
            }
        }
    },
}
EXTRA: dict[str, Any] = {".": {}, "f:name": {}, "f:value": {}}


def in_pod(fields: dict[str, Any]) -> dict[str, Any]:
    return {"f:spec": {"f:template": {"f:spec": fields}}}


def in_worker(fields: dict[str, Any]) -> dict[str, Any]:
    return in_pod({"f:containers": {WORKER: fields}})


def entry(fields: dict[str, Any], manager: str = "kubectl-edit", **more: Any) -> dict[str, Any]:
    return {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
        **more,
    }


def ours(fields: dict[str, Any] = OURS) -> dict[str, Any]:
    return entry(fields, names.FIELD_MANAGER, operation="Apply")


def deployment(*managed: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    metadata["managedFields"] = list(managed)
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"f:spec": {"f:paused": {}}}, "spec.paused"),
        (in_pod({"f:hostNetwork": {}}), "spec.template.spec.hostNetwork"),
        (
            in_worker({"f:env": {'k:{"name":"EXTRA"}': EXTRA}}),
            "spec.template.spec.containers[worker].env[EXTRA]",
        ),
        (
            in_pod({"f:containers": {'k:{"name":"beside"}': {".": {}, "f:image": {}}}}),
            "spec.template.spec.containers[beside]",
        ),
        (
            in_worker(
                {
                    "f:ports": {
                        'k:{"containerPort":8080,"protocol":"TCP"}': {"f:hostPort": {}},
                    }
                }
            ),
            "spec.template.spec.containers[worker].ports[8080,TCP].hostPort",
        ),
        ({"f:spec": {"f:finalizers": {'v:"a.b/c"': {}}}}, "spec.finalizers[a.b/c]"),
        (
            {"f:spec": {"f:template": {"f:metadata": {"f:labels": {"f:team": {}}}}}},
            "spec.template.metadata.labels.team",
        ),
    ],
)
def test_what_another_has_set_is_named(fields: dict[str, Any], path: str) -> None:
    assert additions(deployment(ours(), entry(fields))) == (Addition("kubectl-edit", path),)


RESTARTED = {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/restartedAt": {}}}


@pytest.mark.parametrize(
    "other",
    [
        entry({"f:metadata": {"f:annotations": {"f:team": {}}, "f:labels": {"f:team": {}}}}),
        entry({"f:spec": {"f:replicas": {}}}),
        entry({"f:spec": {"f:template": {"f:metadata": RESTARTED}}}),
        entry({"f:status": {"f:replicas": {}}}, subresource="status"),
        entry({"f:spec": {"f:replicas": {}}}, subresource="scale"),
        entry({"f:spec": {"f:paused": {}}}, apiVersion="apps/v2"),
        entry({"f:spec": OURS["f:spec"]}, operation="Apply"),
        {"manager": "kubectl-edit", "operation": "Update"},
    ],
    ids=lambda other: str(other.get("fieldsV1", "nothing"))[:40],
)
def test_what_others_may_have_is_no_addition(other: dict[str, Any]) -> None:
    assert additions(deployment(ours(), other)) == ()


def test_what_is_taken_over_is_ours_and_the_rest_stays_where_it_is() -> None:
    metadata = {"f:metadata": {"f:labels": {"f:team": {}}}}
    kept = {"f:spec": {"f:replicas": {}, "f:template": {"f:metadata": RESTARTED}}}
    both: dict[str, Any] = {
        "f:spec": {
            "f:paused": {},
            "f:replicas": {},
            "f:template": {"f:metadata": RESTARTED, "f:spec": {"f:hostNetwork": {}}},
        }
    }
    status = entry({"f:status": {}}, "kube-controller-manager", subresource="status")
    other = in_worker({"f:env": {'k:{"name":"EXTRA"}': EXTRA}})
    given = deployment(ours(), entry({**metadata, **both}), entry(other, "kubectl-set"), status)
    *others, mine = taken_over(given)
    assert others == [entry({**metadata, **kept}), status]
    assert (mine["manager"], mine["operation"]) == (names.FIELD_MANAGER, "Apply")
    spec = mine["fieldsV1"]["f:spec"]
    assert spec["f:paused"] == {}
    assert spec["f:template"]["f:spec"]["f:hostNetwork"] == {}
    env = spec["f:template"]["f:spec"]["f:containers"][WORKER]["f:env"]
    assert env.keys() == {'k:{"name":"A"}', 'k:{"name":"EXTRA"}'}
    assert mine["fieldsV1"]["f:metadata"] == OURS["f:metadata"]
    given["metadata"]["managedFields"] = [*others, mine]
    assert additions(given) == ()


@pytest.mark.parametrize(
    ("owners", "managed", "orphan"),
    [
        ([], ours(), True),
        ([{"kind": "Note", "uid": "u"}], ours(), True),
        ([{"kind": "Other", "uid": "u", "controller": True}], ours(), False),
        ([], entry(OURS), False),
        ([], entry(OURS, names.FIELD_MANAGER), False),
    ],
)
def test_only_what_we_have_applied_is_adopted(
    owners: list[Any], managed: dict[str, Any], orphan: bool
) -> None:
    assert is_orphan(deployment(managed, ownerReferences=owners)) is orphan
