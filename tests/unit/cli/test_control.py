"""The control loop's own decisions; what it does with real processes is in test_up."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice_api.inference_service import InferenceService
from sluice_cli.up.control import Control
from sluice_cli.up.errors import UpError
from sluice_cli.up.settings import LogLevel, Settings
from sluice_cli.up.sockets import listen
from sluice_cli.up.state import StateFolder
from sluice_cli.up.view import PlainView
from tests.support.up_process import manifest

ASLEEP = {"initialReplicas": 0}


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    settings = Settings(
        files=(tmp_path,),
        host="127.0.0.1",
        port=0,
        admin_port=0,
        redis_url=None,
        state_dir=tmp_path / "state",
    )
    specs = [InferenceService.model_validate(manifest("m", scaling=ASLEEP))]
    with (
        StateFolder(settings.state_dir) as state,
        listen("127.0.0.1", 0, option="--port") as app,
        listen("127.0.0.1", 0, option="--admin-port") as admin,
    ):
        yield Control(settings, specs, state, PlainView(LogLevel.INFO), app, admin)


async def test_a_turn_that_fails_ends_the_run_instead_of_leaving_it_half_alive(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UpError("broken")

    monkeypatch.setattr(control, "_publish", fail)
    with pytest.raises(UpError, match="broken"):
        async with asyncio.timeout(60):
            await control.run(asyncio.Event())


async def test_a_table_that_cannot_be_written_is_said_once_and_tried_again(
    control: Control,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(StateFolder, "write_table", full)
        await control._turn(1.0)
        await control._turn(2.0)
    assert capsys.readouterr().err.count("No space left on device") == 1
    await control._turn(3.0)
    assert '"name":"m"' in (tmp_path / "state" / "services.json").read_text()
