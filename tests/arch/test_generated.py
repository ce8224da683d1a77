"""The CRD and the reference pages equal their source."""

import subprocess
import sys
from pathlib import Path

from sluice_operator import crd

ROOT = Path(__file__).parents[2]


def test_generated_files_equal_their_source() -> None:
    assert crd.differing(ROOT) == [], "run `make generate`"


def test_a_changed_or_missing_file_is_noticed(tmp_path: Path) -> None:
    for path, content in crd.files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert crd.differing(tmp_path) == []
    (tmp_path / "docs/errors.md").write_text("something else")
    (tmp_path / "docs/metrics.md").unlink()
    assert crd.differing(tmp_path) == ["docs/errors.md", "docs/metrics.md"]


def test_the_command_that_make_calls() -> None:
    command = [sys.executable, "-m", "sluice_operator.crd"]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=180)
    assert (checked.returncode, checked.stderr) == (0, "")
    printed = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert printed.stdout == (ROOT / f"manifests/crd/{crd.CRD_NAME}.yaml").read_text()
