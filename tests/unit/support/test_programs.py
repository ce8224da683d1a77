"""Where the test cluster's programs come from, without building them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cluster import machine, programs
from tests.support.cluster.options import DEFAULT_RELEASE


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the Go modules, and a cache folder of its own."""
    copy = tmp_path / "modules"
    shutil.copytree(programs.MODULES, copy)
    monkeypatch.setattr(programs, "MODULES", copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return copy


@pytest.mark.parametrize("release", sorted(programs.releases()))
def test_a_release_says_its_true_version(release: str) -> None:
    module = programs.kubernetes(release)
    version = programs.releases()[release]
    assert version.startswith(f"{release}.")
    assert any(f"gitVersion=v{version} " in flag for flag in module.flags)
    assert f"k8s.io/kubernetes v{version}" in module.file.read_text()


def test_the_default_release_is_there_and_an_unknown_one_is_refused() -> None:
    assert DEFAULT_RELEASE in programs.releases()
    with pytest.raises(ValueError, match=r"1\.2 is not one of"):
        programs.kubernetes("1.2")


@pytest.mark.parametrize("changed", ["go.mod", "go.sum", "main.go"])
def test_a_change_of_the_module_builds_anew(modules: Path, changed: str) -> None:
    before = programs.kubernetes(DEFAULT_RELEASE).folder
    assert before == programs.kubernetes(DEFAULT_RELEASE).folder
    path = modules / changed
    path.write_text(path.read_text() + "\n")
    assert programs.kubernetes(DEFAULT_RELEASE).folder != before


def test_what_is_built_is_not_built_again(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = programs.tools().folder
    folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", "")  # no Go
    assert programs.ensure(programs.tools()) == folder


@pytest.mark.skipif(not shutil.which("go"), reason="needs Go, as the cluster tests do")
def test_a_build_makes_its_names_or_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = subprocess.run(["go", "env", "GOCACHE"], capture_output=True, text=True, check=True)
    monkeypatch.setenv("GOCACHE", go.stdout.strip())  # its standard library is compiled there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "go.mod").write_text("module small\n\ngo 1.21\n")
    (source / "go.sum").write_text("")
    module = programs.Module("small", source / "go.mod", (".",), links=("one", "two"))
    (source / "main.go").write_text("package main\n\nfunc main() { nothing() }\n")
    with pytest.raises(programs.BuildError, match="undefined: nothing"):
        programs.ensure(module)
    assert [path for path in module.folder.parent.iterdir() if path.is_dir()] == []
    show = 'package main\n\nimport "os"\n\nfunc main() { os.Stdout.WriteString(os.Args[0]) }\n'
    (source / "main.go").write_text(show)
    built = programs.ensure(module)
    said = subprocess.run([built / "two"], capture_output=True, text=True, check=True)
    assert said.stdout == str(built / "two")


def test_make_installs_every_package_that_the_node_needs() -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text().replace("\\\n", "")
    listed = re.search(r"^NODE := (.*)$", makefile, re.MULTILINE)
    assert listed
    packages = {entry.partition(":")[0] for entry in listed[1].split()}
    assert {*machine.PACKAGES.values(), machine.CNI_PACKAGE} - {"util-linux"} <= packages


def test_a_machine_without_the_programs_reads_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(machine, "SYSTEM_FOLDERS", ())
    with pytest.raises(machine.UnfitMachineError) as raised:
        machine.require()
    said = str(raised.value)
    assert re.search(r"apt-get install .*containerd.* iptables", said)
    assert re.search(r"install Go 1\.\d+\.\d+ or newer", said)
