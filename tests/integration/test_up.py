"""``sluice up`` with the real gateway and real workers: first answer, 0→N→0, wake, reload.

One run serves the module; the tests follow each other as its day would go.
"""

import json
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.open_loop import open_loop
from tests.support.up_process import MINILM, UpProcess, alive, manifest, running_up, write

IDLE = {"minReplicas": 0, "maxReplicas": 2, "idleAfter": "2s"}
PATIENT = {"timeout": "2m"}
"""So that a slow machine is late and not wrong."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("manifests")
    write(made / "minilm.yaml", manifest(scaling=IDLE, limits=PATIENT))
    return made


@pytest.fixture(scope="module")
def up(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    with running_up(tmp_path_factory.mktemp("state"), folder, "--log-level", "debug") as running:
        running.until_ready()
        yield running


def _asleep(up: UpProcess) -> bool:
    return not up.table()[0]["endpoints"] and len(up.children()) == 1


def test_one_ready_line_and_three_curl_lines_that_work(up: UpProcess) -> None:
    ready, embed, classify, again = up.until(lambda: up.out if len(up.out) == 4 else None, "lines")
    assert ready == f"ready {up.url}"
    assert '"embedding"' in _shell(embed)
    assert '"label":"billing"' in _shell(classify)
    cached = _shell(again).lower()
    assert "cache-status: sluice; hit" in cached
    assert '"label":"billing"' in cached


def test_it_sleeps_when_nobody_asks(up: UpProcess) -> None:
    up.until(lambda: _asleep(up), "sleep")


def test_asleep_it_answers_from_the_cache_and_only_a_new_request_wakes_it(up: UpProcess) -> None:
    starts = [line for line in up.err if " starts: " in line]
    assert "cache-status: sluice; hit" in _shell(up.out[3]).lower()
    assert _asleep(up)
    assert len(up.embed("wake up")["body"]["data"][0]["embedding"]) == 384
    assert len(up.ready_workers()) == 1
    (wake,) = [line for line in up.err if " starts: " in line][len(starts) :]
    assert "held" in wake


def test_it_scales_out_under_load_and_back_to_zero(up: UpProcess, folder: Path) -> None:
    workers = set(up.workers())
    eager = IDLE | {"target": {"concurrency": 1}}
    changed = manifest(scaling=eager, limits=PATIENT | {"maxWaiting": 5000}, cache={"ttl": "1h"})
    write(folder / "minilm.yaml", changed)
    with open_loop(up.url, rate=5, words=60) as load:

        def ordered() -> bool:
            load.rate += 0.2  # However fast this machine is, at some rate two are needed.
            return len(up.workers()) == 2

        up.until(ordered, "a second worker", 240)
        load.rate = 5
        up.until(lambda: len(up.ready_workers()) == 2, "two ready workers", 240)
        assert workers <= set(up.workers())  # Such a change restarts nobody.
    assert load.failures == []
    assert load.sent > 10
    up.until(lambda: _asleep(up), "sleep", 240)


def test_a_new_revision_takes_over_under_load_without_a_failed_request(
    up: UpProcess, folder: Path
) -> None:
    up.embed("be awake")
    revision = up.table()[0]["revision"]
    before, old = up.count_answers(), list(up.workers().values())
    with open_loop(up.url, rate=10) as load:
        changed = manifest(scaling=IDLE, limits=PATIENT)
        changed["spec"]["model"]["maxInputTokens"] = 128
        write(folder / "minilm.yaml", changed)

        def switched() -> bool:
            up.count_answers()
            return up.table()[0]["revision"] != revision and not alive(old)

        up.until(switched, "the end of the old worker", 240)
    assert load.failures == []
    after = up.count_answers()
    assert sum(after.values()) - sum(before.values()) == len(load.seconds) > 25
    assert sum(after[url] for url in after.keys() - before.keys()) > 0


def test_an_invalid_file_changes_nothing_and_says_why(up: UpProcess, folder: Path) -> None:
    good = (folder / "minilm.yaml").read_text()
    before = up.table()
    (folder / "minilm.yaml").write_text(good.replace("maxInputTokens", "maxInputTokns"))
    up.until(lambda: up.said("did you mean maxInputTokens"), "the reason")
    up.embed("still here")
    assert up.table()[0]["revision"] == before[0]["revision"]
    (folder / "minilm.yaml").write_text(good)


def test_a_revision_that_cannot_start_leaves_the_old_one_serving(
    up: UpProcess, folder: Path
) -> None:
    good = (folder / "minilm.yaml").read_text()
    up.embed("be awake again")
    before = up.table()[0]["revision"]
    (folder / "minilm.yaml").write_text(good.replace(MINILM, "file:///no/such/folder"))
    up.until(lambda: up.said("ModelNotFound, exit code 64"), "the reason")
    up.embed("answered by the old one")
    assert up.table()[0]["revision"] == before
    (folder / "minilm.yaml").write_text(good)
    up.until(lambda: up.said(f"new revision {before}"), "the way back")
    up.embed("and again")
    assert up.table()[0]["revision"] == before


def test_a_service_comes_and_goes_with_its_file(up: UpProcess, folder: Path) -> None:
    second = folder / "second.yaml"
    before = int(time.time())
    write(second, manifest("second", scaling=IDLE | {"initialReplicas": 0}))
    up.until(lambda: up.models() == ["minilm", "second"], "the second service")
    created = up.created()
    assert 0 < created["minilm"] <= before <= created["second"] <= time.time()
    assert up.embed("to the second", model="second")["body"]["model"] == "second"
    second.unlink()
    up.until(lambda: up.models() == ["minilm"], "the removal")
    up.until(lambda: up.said("second-1 ended"), "the end of its worker")
    up.embed("the first goes on")
    assert up.created() == {"minilm": created["minilm"]}


def test_callers_of_a_model_that_cannot_start_are_refused_at_once_with_the_reason(
    up: UpProcess, folder: Path
) -> None:
    broken = folder / "broken.yaml"
    write(broken, manifest("broken", model={"uri": "file:///no/such/folder"}))

    def told() -> bool:
        return any(service.get("failure") for service in up.table())

    up.until(told, "the failure in the table")

    def refusal() -> urllib.error.HTTPError | None:
        try:
            up.embed("who answers?", model="broken", timeout=60.0)
        except urllib.error.HTTPError as error:
            return error if error.code == 503 else None
        return None

    refused = up.until(refusal, "the refusal")  # Until the gateway has read the table: 404.
    error = json.load(refused)["error"]
    assert error["code"] == "model_failed"
    assert "file:///no/such/folder" in error["message"]
    assert int(refused.headers["retry-after"]) >= 1
    broken.unlink()
    up.until(lambda: "broken" not in up.models(), "the removal")
    up.embed("the others go on")


def _shell(line: str) -> str:
    """What a pasted line prints."""
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout
