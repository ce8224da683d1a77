"""Changes of files are noticed once each, and only when they are over."""

import asyncio
import os
from pathlib import Path

import pytest

from sluice_cli.up.reload import changes, fingerprint


@pytest.mark.parametrize("change", ["write", "replace", "add", "remove"])
def test_every_kind_of_change_shows(tmp_path: Path, change: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("x")
    before = fingerprint([tmp_path])
    assert fingerprint([tmp_path]) == before
    if change == "write":
        file.write_text("y")
        os.utime(file, ns=(1, 1))
    elif change == "replace":
        other = tmp_path / "new"
        other.write_text("x")
        os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        other.replace(file)
    elif change == "add":
        (tmp_path / "b.yaml").write_text("x")
    else:
        file.unlink()
    assert fingerprint([tmp_path]) != before


async def test_a_burst_of_writes_is_one_change(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("0")
    stream = changes([file], poll_seconds=0.02)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    for number in range(5):
        file.write_text("x" * (number + 2))
        assert not first.done()
    async with asyncio.timeout(60):
        await first
    second = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait([second], timeout=0.2)
    assert not done
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await stream.aclose()  # type: ignore[attr-defined]
