"""Every answer of the API server means one thing, and owners hear of what they can change."""

import pytest

from sluice_operator import api_errors
from sluice_operator.api_errors import ApiError, Throttled, error_of
from sluice_operator.failures import failure_of


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
        (503, "apiserver not ready", "Unavailable", None),
    ],
)
def test_statuses(status: int, message: str, kind: str, reason: str | None) -> None:
    error = error_of("patch", "deployments", status, message, "")
    assert type(error) is getattr(api_errors, kind)
    assert message in str(error)
    failure = failure_of(error)
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
    failure = failure_of(error)
    assert failure is not None
    assert len(failure.message) <= 1000
