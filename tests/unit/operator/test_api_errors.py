"""Every answer of the API server means one thing, and owners hear of what they can change."""

import pytest

from sluice_operator import api_errors
from sluice_operator.api_errors import ApiError, Throttled, error_of
from sluice_operator.failures import TOLD_TRIES, failure_of


@pytest.mark.parametrize(
    ("status", "message", "kind", "reason"),
    [
        (404, "not found", "NotFound", None),
        (409, "has been modified", "Conflict", None),
        (
            403,
            'User "x" cannot patch resource "deployments"',
            "PermissionDenied",
            "PermissionDenied",
        ),
        (403, "is forbidden: exceeded quota: small", "QuotaExceeded", "QuotaExceeded"),
        (403, "unable to create: it is being terminated", "NamespaceEnding", None),
        (404, 'namespaces "team" not found', "NamespaceEnding", None),
        (422, "spec.replicas: Invalid value", "Invalid", "InvalidSpec"),
        (400, "cannot be handled", "Invalid", "InvalidSpec"),
        (401, "Unauthorized", "Unavailable", None),
        (410, "too old", "Unavailable", None),
        (500, "etcdserver: request timed out", "Unavailable", None),
        (
            500,
            "failed to create typed patch object (a/b): .spec.x: field not declared in schema",
            "Invalid",
            "InvalidSpec",
        ),
        (503, "apiserver not ready", "Unavailable", None),
    ],
)
def test_statuses(status: int, message: str, kind: str, reason: str | None) -> None:
    error = error_of("patch", "deployments", status, message, "")
    assert type(error) is getattr(api_errors, kind)
    assert message in str(error)
    failure = failure_of(error, 1)
    assert (failure.reason if failure else None) == reason
    if failure:
        assert message in failure.message


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("", 1.0), ("soon", 1.0)])
def test_throttling_says_when(header: str, seconds: float) -> None:
    error = error_of("get", "pods", 429, "too many requests", header)
    assert isinstance(error, Throttled)
    assert error.retry_after == seconds


def test_long_words_of_the_api_server_fit_into_a_condition() -> None:
    error: ApiError = error_of("patch", "deployments", 422, "x" * 100_000, "")
    for tries in (1, TOLD_TRIES):
        failure = failure_of(error, tries)
        assert failure is not None
        assert len(failure.message) <= 2048


@pytest.mark.parametrize("status", [403, 422, 500])
@pytest.mark.parametrize("said", ["the policy forbids it", "the policy forbids it."])
def test_what_the_api_server_says_ends_once(said: str, status: int) -> None:
    failure = failure_of(error_of("patch", "deployments", status, said, ""), TOLD_TRIES)
    assert failure is not None
    assert f"{said.rstrip('.')}. " in failure.message


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (
            500,
            "failed to create typed patch object (team/a-1; apps/v1, Kind=Deployment):"
            " .spec.template.spec.affinity.nodeAffinity.nonsense: field not declared in schema",
            "spec.hardware.affinity.nodeAffinity.nonsense",
        ),
        (
            422,
            'Deployment.apps "a-1" is invalid: spec.template.spec.nodeSelector: Invalid value:'
            ' "bad key!": name part must consist of alphanumeric characters',
            "spec.hardware.nodeSelector",
        ),
        (
            422,
            'Deployment.apps "a-1" is invalid: spec.template.spec.tolerations[0].operator:'
            ' Unsupported value: "Lt"',
            "spec.hardware.tolerations[0].operator",
        ),
    ],
)
def test_what_is_refused_bears_the_name_it_has_in_the_spec(
    status: int, said: str, told: str
) -> None:
    failure = failure_of(error_of("patch", "deployments", status, said, ""), 1)
    assert failure is not None
    assert failure.reason == "InvalidSpec"
    assert f"{told}: " in failure.message
    assert "template" not in failure.message
    assert failure.message.endswith(f"Correct {told}.")


@pytest.mark.parametrize("status", [500, 503, 429, 409])
def test_what_does_not_pass_by_itself_is_told_after_some_tries(status: int) -> None:
    error = error_of("patch", "deployments", status, "the webhook does not answer", "")
    assert failure_of(error, TOLD_TRIES - 1) is None
    failure = failure_of(error, TOLD_TRIES)
    assert failure is not None
    assert failure.reason == ""
    assert "patch deployments: the webhook does not answer" in failure.message
