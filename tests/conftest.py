"""Fixtures of the whole session."""

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.trained import Models

# How long an example takes says how busy the machine is, and nothing about what is tested.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def trained_models() -> "Models":
    """The example models; each is trained when a test first asks for it, and kept."""
    from tests.support.trained import Models

    return Models()


@pytest.fixture(scope="session")
def shuffled_models() -> "Models":
    """Their controls, which learnt from targets dealt out at random."""
    from tests.support.trained import Models

    return Models(shuffled=True)
