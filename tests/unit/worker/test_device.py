"""Threads from cgroups of both versions, instruction sets, and what auto resolves to."""

from pathlib import Path

import pytest

from sluice_worker import device
from sluice_worker.models.errors import BadConfiguration


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.mark.parametrize(
    ("content", "quota"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("50000 100000\n", 0.5),
        ("", None),
        ("garbage", None),
        ("100000 0", None),
    ],
)
def test_version_two_quota(content: str, quota: float | None) -> None:
    assert device.quota_v2(content) == quota


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1\n", "100000\n", None), ("150000\n", "100000\n", 1.5), ("", "", None), ("1", "0", None)],
)
def test_version_one_quota(quota: str, period: str, expected: float | None) -> None:
    assert device.quota_v1(quota, period) == expected


def test_the_strictest_ancestor_counts(tmp_path: Path) -> None:
    write(tmp_path / "cpu.max", "max 100000")
    write(tmp_path / "kubepods" / "cpu.max", "800000 100000")
    write(tmp_path / "kubepods" / "pod1" / "cpu.max", "150000 100000")
    write(tmp_path / "kubepods" / "pod1" / "box" / "cpu.max", "max 100000")
    assert device.cgroup_quota("0::/kubepods/pod1/box\n", tmp_path) == 1.5


def test_a_path_of_the_host_falls_back_to_the_mount(tmp_path: Path) -> None:
    """Without a cgroup namespace the path is the host's, but the mount is the container's own."""
    write(tmp_path / "cpu.max", "300000 100000")
    assert device.cgroup_quota("0::/kubepods/not/mounted/here\n", tmp_path) == 3.0


def test_version_one_membership(tmp_path: Path) -> None:
    group = tmp_path / "cpu,cpuacct" / "docker" / "abc"
    write(group / "cpu.cfs_quota_us", "400000")
    write(group / "cpu.cfs_period_us", "100000")
    membership = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"
    assert device.cgroup_quota(membership, tmp_path) == 4.0


def test_both_versions_mounted(tmp_path: Path) -> None:
    write(tmp_path / "cpu" / "cpu.cfs_quota_us", "-1")
    write(tmp_path / "cpu" / "cpu.cfs_period_us", "100000")
    write(tmp_path / "cpu.max", "250000 100000")
    assert device.cgroup_quota("3:cpu:/\n0::/\n", tmp_path) == 2.5


def test_no_cgroups_is_no_limit(tmp_path: Path) -> None:
    assert device.cgroup_quota("", tmp_path) is None
    assert device.cgroup_quota("0::/x\n", tmp_path / "absent") is None


def test_a_path_that_climbs_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "cpu.max", "100000 100000")
    write(tmp_path / "inner" / "cpu.max", "max 100000")
    assert device.cgroup_quota("0::/../..\n", tmp_path / "inner") is None


@pytest.mark.parametrize(
    ("affinity", "quota", "threads"),
    [(8, None, 8), (8, 2.0, 2), (8, 2.9, 2), (8, 0.5, 1), (2, 6, 2)],
)
def test_only_whole_processors_get_a_thread(
    affinity: int, quota: float | None, threads: int
) -> None:
    assert device.usable_cpus(affinity, quota) == threads


def test_this_machine_has_a_processor() -> None:
    assert device.available_cpus() >= 1


def test_limits_reach_every_library() -> None:
    environment = {"OMP_NUM_THREADS": "64"}
    device.limit_threads(3, environment)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_wait_policy_that_was_asked_for_stays() -> None:
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    device.limit_threads(1, environment)
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"


def test_flags_of_both_families() -> None:
    assert device.cpu_flags("processor: 0\nflags\t\t: fpu avx2 amx_bf16\n") == {
        "fpu",
        "avx2",
        "amx_bf16",
    }
    assert "asimd" in device.cpu_flags("Features\t: fp asimd bf16\n")
    assert device.cpu_flags("") == frozenset()


def test_auto_is_exact_on_a_processor_even_where_bf16_exists() -> None:
    chosen = device.resolve_dtype("auto", "cpu", frozenset({"avx512_bf16"}))
    assert chosen.name == "float32"
    assert chosen.reason


def test_auto_on_a_gpu_has_the_range_that_the_weights_were_stored_for() -> None:
    def chosen(stored: str | None, *, bfloat16: bool = True) -> str:
        return device.resolve_dtype(
            "auto", "cuda", frozenset(), stored=stored, bfloat16=bfloat16
        ).name

    assert chosen("bfloat16") == "bfloat16"
    assert chosen("bfloat16", bfloat16=False) == "float16", "an older GPU"
    assert [chosen(stored) for stored in ("float32", "float16", None)] == ["float16"] * 3


def test_a_slow_choice_is_honoured_and_said() -> None:
    slow = device.resolve_dtype("bfloat16", "cpu", frozenset({"avx2"}))
    fast = device.resolve_dtype("bfloat16", "cpu", frozenset({"amx_bf16"}))
    assert slow.name == fast.name == "bfloat16"
    assert "slower" in slow.reason or "faster" in slow.reason
    assert fast.reason == "asked for"


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(BadConfiguration, match="int3"):
        device.resolve_dtype("int3", "cpu", frozenset())
    with pytest.raises(BadConfiguration, match="tpu"):
        device.choose_device("tpu")
    assert device.choose_device("cpu") == "cpu"
