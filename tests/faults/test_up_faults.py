"""``sluice up`` when its processes are killed, and how it ends itself."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.open_loop import open_loop
from tests.support.up_process import UpProcess, alive, manifest, running_up, write

STEADY = {"minReplicas": 2, "maxReplicas": 2}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    folder = tmp_path_factory.mktemp("killed")
    write(folder / "minilm.yaml", manifest(scaling=STEADY, limits={"timeout": "4m"}))
    with running_up(folder / "state", folder) as running:
        running.until_ready()
        running.until(lambda: len(running.ready_workers()) == 2, "two ready workers", 120)
        yield running


def test_a_killed_worker_fails_no_request_and_is_replaced(up: UpProcess) -> None:
    victim = next(iter(up.workers().values()))
    # What one worker can do while the other starts, on a machine with much else to do, too.
    with open_loop(up.url, rate=5) as load:
        up.until(lambda: len(load.seconds) > 15, "answers")
        victim.kill()
        up.until(
            lambda: len(up.ready_workers()) == 2 and victim not in up.workers().values(),
            "a new worker",
            240,
        )
    assert load.failures == []
    assert up.said("ended by SIGKILL (out of memory, or killed by hand) – restart now")
    assert up.said("starts: again, after SIGKILL")


def test_a_killed_gateway_comes_back_on_the_same_port(up: UpProcess) -> None:
    workers = up.workers()
    (gateway,) = [c for c in up.children() if c not in workers.values()]
    gateway.kill()
    # Not refused: the socket is ours, and the request waits in it for the next gateway.
    assert up.embed("after the gateway")["body"]["data"]
    assert set(up.workers()) == set(workers)


def test_a_second_run_on_the_same_state_folder_is_refused(up: UpProcess, tmp_path: Path) -> None:
    write(tmp_path / "minilm.yaml", manifest())
    with running_up(up.state, tmp_path) as second:
        assert second.process.wait(90) == 1
        second.end()
        assert second.said("in use by another `sluice up`")


def test_ctrl_c_answers_what_is_running_and_leaves_no_process(up: UpProcess) -> None:
    children = up.children()
    assert len(children) == 3
    # A connection each: one that is kept may be closed just when it is used again.
    with open_loop(up.url, rate=20, keep_alive=False) as load:
        up.until(lambda: len(load.seconds) > 10, "answers")
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(60) == 0
    assert alive(children) == []
    # Connections after the end are refused, or reset where nobody had accepted them before it: a
    # client may notice that only as it writes. Nothing that was accepted is lost.
    told = ("Connect", "Can not write request body", "503")
    lost = [each for each in load.failures if not any(words in each for words in told)]
    assert lost == []
    assert up.said("stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_while_a_model_is_loading(tmp_path: Path, number: signal.Signals) -> None:
    write(tmp_path / "minilm.yaml", manifest())
    with running_up(tmp_path / "state", tmp_path) as up:
        children = _two_children(up)
        assert up.end(number) == 0
        assert alive(children) == []


def test_ctrl_c_still_answers_what_is_held_and_a_second_one_does_not_wait(tmp_path: Path) -> None:
    write(tmp_path / "minilm.yaml", manifest(scaling={"initialReplicas": 0}))
    for signals, code in ((1, 0), (2, 130)):
        with running_up(tmp_path / "state", tmp_path) as up, ThreadPoolExecutor(1) as pool:
            up.until_ready()
            held = pool.submit(up.embed, "who wakes you?")
            children = _two_children(up)
            if signals == 1:  # A busy machine may need longer for it than a caller is held.
                up.until(lambda up=up: up.said("phase=warming"), "the model is loaded", 240)
            up.process.send_signal(signal.SIGINT)
            up.until(lambda up=up: up.said("stopping"), "stopping")
            if signals == 2:
                up.process.send_signal(signal.SIGINT)
            assert up.process.wait(180) == code
            assert (held.exception(60) is None) == (signals == 1)
            assert alive(children) == []


def test_a_killed_run_leaves_no_process_behind(tmp_path: Path) -> None:
    write(tmp_path / "minilm.yaml", manifest())
    with running_up(tmp_path / "state", tmp_path) as up:
        children = _two_children(up)
        assert up.end(signal.SIGKILL) == -signal.SIGKILL
        _, late = psutil.wait_procs(children, timeout=60)
        assert alive(late) == []


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again(tmp_path: Path) -> None:
    broken = manifest("broken")
    broken["spec"]["model"]["uri"] = f"file://{tmp_path}/missing"
    write(tmp_path / "broken.yaml", broken)
    with running_up(tmp_path / "state", tmp_path) as up:
        up.until(lambda: up.said("ModelNotFound, exit code 64"), "the reason", 120)
        up.until(lambda: up.said("broken-2 starts: again, after ModelNotFound"), "a new try", 120)
        failure = up.until(lambda: up.table()[0]["failure"], "the reason in the table")
        assert failure["reason"] == "ModelNotFound"
        assert f"file://{tmp_path}/missing" in failure["message"]
        assert failure["retryAfterSeconds"] >= 1
        assert up.out == []
        assert up.end() == 0


def test_a_gateway_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "minilm.yaml", manifest())
    with running_up(tmp_path / "state", tmp_path, env={"SLUICE_GATEWAY_CACHE_MIB": "many"}) as up:
        assert up.process.wait(60) == 1
        assert up.end() == 1
        assert up.said("sluice up: The gateway cannot start: InvalidSpec, exit code 78")
        assert up.said("SLUICE_GATEWAY_CACHE_MIB")


def _two_children(up: UpProcess) -> list[psutil.Process]:
    return up.until(  # type: ignore[no-any-return]
        lambda: c if len(c := up.children()) == 2 else None, "gateway and worker"
    )
