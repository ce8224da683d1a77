"""What the machine offers, by its own account."""

import os
from pathlib import Path

import psutil
import pytest

from sluice_cli.up import host


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    return tmp_path


def test_without_limits_the_machine_counts(cgroup: Path) -> None:
    assert host.cores() == len(os.sched_getaffinity(0))
    free = host.free_memory_bytes()
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 1), ("100000 100000", 1)])
def test_a_quota_bounds_the_cores(cgroup: Path, quota: str, cores: int) -> None:
    (cgroup / "cpu.max").write_text(quota)
    assert host.cores() == cores
    (cgroup / "cpu.max").write_text("max 100000")
    assert host.cores() == len(os.sched_getaffinity(0))


def test_the_quota_of_version_1_counts_too(cgroup: Path) -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("100000")
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert host.cores() == 1
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert host.cores() == len(os.sched_getaffinity(0))


def test_a_memory_limit_bounds_what_is_free(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("1000000")
    (cgroup / "memory.current").write_text("400000")
    assert host.free_memory_bytes() == 600_000
    (cgroup / "memory.max").write_text("max")
    free = host.free_memory_bytes()
    assert free is not None
    assert free > 600_000


def test_the_memory_of_a_process() -> None:
    mine = host.resident_bytes(os.getpid())
    assert mine is not None
    assert 0.5 < mine / psutil.Process().memory_info().rss < 2
    assert host.resident_bytes(2**22 + 1) is None
