"""The verbs of `make cluster`, without a cluster."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import release
from tests.support.cluster import __main__ as verbs
from tests.support.cluster import leftovers, machine, options
from tests.support.cluster.access import ClusterError
from tests.support.cluster.options import Options, Site
from tests.support.images.recipes import RECIPES

GIVEN = argparse.Namespace(
    release="1.36", hpa_sync=2, control_plane_only=False, name="dev", command=["true"]
)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A stand-in for the cluster `dev`, which runs already."""
    site = Site(tmp_path / "sluice-cluster-dev", tmp_path, tmp_path, tmp_path, 1)
    cluster = SimpleNamespace(
        site=site,
        options=Options("1.36"),
        kubeconfig=site.kubeconfig(),
        entering=lambda: ["enter"],
        entrance=lambda: "enter bash",
        close=lambda: None,
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


@pytest.mark.parametrize("verb", [verbs.start, verbs.execute, verbs.install, verbs.end])
def test_a_cluster_of_another_checkout_is_left_alone(
    verb: Any, running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))
    running.site.state.mkdir()
    running.site = replace(running.site, checkout=tmp_path)
    with pytest.raises(ClusterError) as refused:
        verb(GIVEN)
    assert str(tmp_path) in str(refused.value)
    assert "NAME=" in str(refused.value)
    assert "make cluster-down" in str(refused.value)


def test_a_cluster_whose_checkout_is_gone_is_anybodys(
    running: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running.site = replace(running.site, checkout=tmp_path / "removed")
    verbs.start(GIVEN)
    assert "sluice-cluster-dev runs" in capsys.readouterr().out


def test_hints_carry_the_name_of_the_cluster(
    running: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs.start(argparse.Namespace(**vars(GIVEN) | {"name": "mine"}))
    said = capsys.readouterr().out
    assert "make cluster-exec NAME=mine CMD=" in said
    assert "make cluster-down NAME=mine" in said


@pytest.mark.parametrize("name", ["", "../x", "a b", "A", "x" * 33])
def test_a_name_that_can_be_no_folder_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cluster", f"--name={name}", "end"])
    with pytest.raises(SystemExit):
        verbs.main()
    assert "letters, digits and -" in capsys.readouterr().err


def test_a_short_name_of_a_service_is_searched_for_as_in_a_pod() -> None:
    lines = dict(line.split(" ", 1) for line in options.RESOLVER.splitlines())
    assert lines["nameserver"] == options.DNS_SERVICE_ADDRESS
    assert "svc.cluster.local" in lines["search"].split()


def test_a_cluster_that_is_not_there_is_ended_already(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))
    verbs.end(GIVEN)
    assert capsys.readouterr().out == "there is no cluster dev\n"


class Cluster:
    """Notes what it is told to do."""

    def __init__(self, *, installed: bool) -> None:
        self.installed = installed
        self.told: list[str] = []

    def kubectl(self, *arguments: str, **_: Any) -> Any:
        self.told.append(" ".join(arguments))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    def helm(self, *arguments: str, **_: Any) -> Any:
        done = 0 if self.installed or arguments[0] != "status" else 1
        return SimpleNamespace(returncode=done, stdout="installed", stderr="")

    def load(self, *_: Path) -> list[str]:
        return []

    @property
    def restarted(self) -> str:
        return next((line for line in self.told if line.startswith("rollout restart")), "")


@pytest.mark.parametrize(
    ("installed", "new", "restarted"),
    [
        (False, ["operator", "gateway", "worker"], []),
        (True, [], []),
        (True, ["worker"], []),
        (True, ["gateway"], ["gateway"]),
        (True, ["operator", "gateway"], ["operator", "gateway"]),
    ],
)
def test_pods_that_run_older_code_under_the_same_tag_are_replaced(
    installed: bool, new: list[str], restarted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    references = [RECIPES[name].reference for name in new]
    monkeypatch.setattr(release, "load", lambda *_: references)
    monkeypatch.setattr(release.redis_image, "archive", lambda: Path("redis.tar"))
    cluster = Cluster(installed=installed)
    verbs._install(cluster)  # type: ignore[arg-type]
    for name in ("operator", "gateway"):
        assert (f"deployment/sluice-{name}" in cluster.restarted) == (name in restarted)
    waited = [line for line in cluster.told if line.startswith("rollout status")]
    assert len(waited) == len(restarted)
