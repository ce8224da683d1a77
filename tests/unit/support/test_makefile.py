"""What people type after `make` arrives as they typed it, and what their shell forbids does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def cluster_exec(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`make cluster-exec`, with the shell of this machine instead of one inside a cluster."""
    return subprocess.run(
        ["make", "--no-print-directory", "cluster-exec", "CLUSTER=", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("x=$(echo hi); echo got:$x", "got:hi\n"),
        ("p=pod/a; echo ${p#pod/}, 'it'\"'\"'s' $?", "a, it's 0\n"),
        ('n=$(printf "%s" \\\n  two)\necho "$n"', "two\n"),
    ],
)
def test_a_command_for_the_cluster_is_the_shells_alone(command: str, output: str) -> None:
    done = cluster_exec(f"CMD={command}")
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


def test_without_a_command_the_usage_is_printed() -> None:
    done = cluster_exec()
    assert done.returncode == 2
    assert done.stderr.startswith("usage: make cluster-exec CMD=")


@pytest.mark.parametrize("goal", ["cluster", "cluster-exec", "cluster-down"])
@pytest.mark.parametrize(("given", "name"), [([], "dev"), (["NAME=mine"], "mine")])
def test_a_cluster_is_named_on_the_command_line(goal: str, given: list[str], name: str) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", goal, "CMD=true", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NAME": "of-the-machine"},  # as some shells set it
    )
    assert f"tests.support.cluster --name {name} " in done.stdout, done.stderr


def test_modules_are_compiled_once_where_the_environment_forbids_it() -> None:
    shown = f"{sys.executable} -c 'import sys; print(sys.dont_write_bytecode, sys.pycache_prefix)'"
    done = cluster_exec(f"CMD={shown}", PYTHONDONTWRITEBYTECODE="1")
    assert done.stdout == f"False {ROOT}/.venv/bytecode\n", done.stderr
