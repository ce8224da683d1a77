"""Live is progress, ready is loaded and warm; neither follows from load."""

import pytest

from sluice_api.wire import Phase
from sluice_worker.lifecycle import FAILURES_IN_A_ROW, STALL_SECONDS, Lifecycle

NOW = 5000.0


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle("minilm", "0123456789", NOW)


def test_a_start_passes_through_its_phases(lifecycle: Lifecycle) -> None:
    assert lifecycle.readiness().phase is Phase.STARTING
    lifecycle.report(Phase.DOWNLOADING, 0.25, "weights")
    readiness = lifecycle.readiness()
    assert (readiness.phase, readiness.progress, readiness.message) == (
        "downloading",
        0.25,
        "weights",
    )
    assert not lifecycle.ready
    assert repr(lifecycle) == "<Lifecycle downloading 25% weights>"
    lifecycle.report(Phase.READY)
    assert lifecycle.ready
    assert (readiness.model, readiness.revision) == ("minilm", "0123456789")


def test_draining_is_final(lifecycle: Lifecycle) -> None:
    lifecycle.report(Phase.LOADING)
    lifecycle.drain()
    lifecycle.report(Phase.READY)  # the loader did not hear of the signal
    assert lifecycle.draining
    assert not lifecycle.ready
    assert lifecycle.ailment(NOW + 1) is None


def test_idle_is_live_for_as_long_as_the_loop_turns(lifecycle: Lifecycle) -> None:
    for hour in range(100):
        lifecycle.turn(NOW + hour * 3600)
        assert lifecycle.ailment(NOW + hour * 3600 + 1) is None


def test_waiting_work_without_progress_is_not_live(lifecycle: Lifecycle) -> None:
    lifecycle.progress.waiting_since = NOW
    lifecycle.turn(NOW + STALL_SECONDS)
    assert lifecycle.ailment(NOW + STALL_SECONDS) is None
    assert "no batch has finished" in str(lifecycle.ailment(NOW + STALL_SECONDS + 1))


def test_a_loop_that_does_not_turn_is_not_live(lifecycle: Lifecycle) -> None:
    assert "event loop" in str(lifecycle.ailment(NOW + STALL_SECONDS + 1))


def test_batches_that_only_fail_are_not_live(lifecycle: Lifecycle) -> None:
    lifecycle.progress.failures_in_a_row = FAILURES_IN_A_ROW - 1
    assert lifecycle.ailment(NOW) is None
    lifecycle.progress.failures_in_a_row = FAILURES_IN_A_ROW
    assert "engine failed" in str(lifecycle.ailment(NOW))
