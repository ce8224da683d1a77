"""The stub worker in a process of its own, to be killed or stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from tests.support.gateway_process import ROOT


class StubProcess:
    """Use as a context manager; ``url`` is where it listens.

    Args:
        behaviour: fields of ``Behaviour`` as JSON has them.
    """

    def __init__(self, port: int = 0, **behaviour: Any) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.stub_worker"),
                *(str(port), json.dumps(behaviour)),
            ],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> "StubProcess":
        return self

    def __exit__(self, *exc: object) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)
