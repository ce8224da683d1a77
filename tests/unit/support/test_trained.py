"""A trained model is kept until what trains it changes, and no longer."""

from pathlib import Path

import pytest

from tests.support.trained import code_behind


@pytest.mark.parametrize(
    ("example", "others"),
    [
        ("classification", {"examples.training"}),
        ("summarization", {"examples.writing"}),
        ("translation", {"examples.writing", "models.sentencepiece", "models.errors"}),
    ],
)
def test_a_model_depends_on_what_its_example_imports(example: str, others: set[str]) -> None:
    names = {
        name.removeprefix("sluice_worker.")
        for name in code_behind(f"sluice_worker.examples.{example}")
    }
    assert names == others | {f"examples.{example}"}


def test_it_depends_on_code_and_not_on_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "toy_example.py"

    def of(source: str) -> dict[str, str]:
        file.write_text(source)
        return code_behind("toy_example")

    first = of("EPOCHS = 5  # enough\n")
    assert of("# Five are enough.\nEPOCHS = 5\n") == first
    assert of("EPOCHS = 6  # enough\n") != first
