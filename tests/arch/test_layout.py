"""The house rules that no linter knows: markers, packaging, the weight of an import."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPONENTS = ("operator", "gateway", "worker")
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "numpy"}

FORBIDDEN = {
    "sluice_api": HEAVY | {"kopf", "kubernetes", "fastapi", "uvicorn", "redis", "aiohttp"},
    "sluice_operator": HEAVY | {"fastapi", "uvicorn", "redis"},
    "sluice_gateway": HEAVY | {"kopf", "kubernetes", "pydantic_settings", "redis"},
    "sluice_cli": HEAVY | {"kopf", "kubernetes", "fastapi", "redis"},
}
"""Top-level packages that importing every module of a component must not load."""

PRINT_LOADED = """
import importlib, json, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def packages_on_disk() -> set[str]:
    return {
        str(path.parent.relative_to(ROOT))
        for component in COMPONENTS
        for path in (ROOT / component).glob("sluice_*/__init__.py")
    }


def test_marker_files_exist_only_inside_our_packages() -> None:
    # One in operator/ or tests/operator/ replaces Python's own module and kills the interpreter.
    stray = [
        path
        for folder in (*COMPONENTS, "tests", "bench")
        for path in (ROOT / folder).rglob("__init__.py")
        if not any(part.startswith("sluice_") for part in path.relative_to(ROOT).parts)
    ]
    assert stray == []


def test_every_folder_with_code_in_our_packages_is_a_package() -> None:
    missing = {
        str(path.parent.relative_to(ROOT))
        for package in packages_on_disk()
        for path in (ROOT / package).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert missing == set()


def test_the_package_list_equals_the_disk() -> None:
    # hatchling skips a listed package that is absent, silently, and ships a wheel without it.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(listed) == packages_on_disk()
    assert len(listed) == len(set(listed))


def test_every_dependency_has_its_reason_beside_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    bare = [line.strip() for line in lines if re.match(r'  "[^"]+>=[^"]*",\s*$', line)]
    assert bare == []


def test_no_lock_file_that_records_addresses() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in tracked if Path(name).name in {"uv.lock", "pylock.toml"}] == []
    pinned = [name for name in tracked if name.startswith("requirements/")]
    assert {"requirements/local.txt", "requirements/dev.txt"} <= set(pinned)
    for name in pinned:
        assert "://" not in (ROOT / name).read_text(), name


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_importing_a_component_loads_nothing_heavy(package: str) -> None:
    # -P keeps the checkout off the path, so that `operator` stays Python's own module.
    output = subprocess.run(
        [sys.executable, "-P", "-c", PRINT_LOADED.format(package=package)],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    ).stdout
    assert set(json.loads(output)) & FORBIDDEN[package] == set()


def test_a_gateway_outside_a_cluster_pays_for_no_client() -> None:
    script = "import sys, sluice_gateway.app; print('aiohttp' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    ).stdout
    assert output.strip() == "False"


def test_pinned_files_hold_every_dependency_with_a_hash() -> None:
    for name in ("local", "dev"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        entries = [entry for entry in text.split("\n") if "==" in entry and entry[0] not in " #"]
        assert entries
        assert all(entry.endswith("\\") for entry in entries), "an entry without a hash"
        assert not any(entry.startswith(("torch=", "nvidia-")) for entry in entries)
