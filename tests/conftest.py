"""Fixtures of the whole session."""

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.support.trained import Models

# Before anything imports torch: of two threads each waits for the other, which on processors that
# others use too is up to six times the work. Workers are told how many by whoever starts them.
os.environ["OMP_NUM_THREADS"] = "1"

# How long an example takes says how busy the machine is, and nothing about what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
