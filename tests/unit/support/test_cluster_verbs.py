"""The verbs of `make cluster`, without a cluster."""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.cluster import __main__ as verbs
from tests.support.cluster import machine, options
from tests.support.cluster.options import Options, Site

GIVEN = argparse.Namespace(release="1.36", hpa_sync=2, control_plane_only=False, name="dev")


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A stand-in for the cluster `dev`, which runs already."""
    site = Site(tmp_path / "sluice-cluster-dev", tmp_path, tmp_path, tmp_path, 1)
    cluster = SimpleNamespace(
        site=site, options=Options("1.36"), kubeconfig=site.kubeconfig(), entering=lambda: ["enter"]
    )

    def start(*_: Any, **__: Any) -> None:
        raise FileExistsError("the cluster dev exists")

    monkeypatch.setattr(machine, "require", lambda: None)
    monkeypatch.setattr(verbs, "Cluster", SimpleNamespace(start=start, join=lambda _: cluster))
    return cluster


def test_what_runs_is_used_and_how_is_said(
    running: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs.start(GIVEN)
    said = capsys.readouterr().out
    assert "sluice-cluster-dev runs Kubernetes 1.36" in said
    assert "make cluster-exec CMD=" in said
    assert "make cluster-down" in said


def test_another_release_than_the_one_that_runs_is_refused(running: Any) -> None:
    running.options = Options("1.34")
    with pytest.raises(RuntimeError, match="make cluster-down"):
        verbs.start(GIVEN)


def test_a_short_name_of_a_service_is_searched_for_as_in_a_pod() -> None:
    lines = dict(line.split(" ", 1) for line in options.RESOLVER.splitlines())
    assert lines["nameserver"] == options.DNS_SERVICE_ADDRESS
    assert "svc.cluster.local" in lines["search"].split()
