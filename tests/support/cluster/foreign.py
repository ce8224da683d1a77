"""A cluster that somebody else runs, such as one of kind, taken by the name of its context.

The tests' own cluster can do more: its daemons can be stopped, its network entered. A test that
needs that is skipped here, and says so. Images must be there already (`make cluster-kind`).
"""

import re
import subprocess
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, NoReturn

import pytest

from .access import Access, ClusterError

LOAD_SECONDS = 600.0


class ForeignCluster(Access):
    """The cluster of one context of the user's kubeconfig."""

    def __init__(self, context: str) -> None:
        """Raises ClusterError for a context that the kubeconfig does not have."""
        self.context = context
        self._file = NamedTemporaryFile("w", suffix=".kubeconfig")  # noqa: SIM115 - closed by close
        view = ["kubectl", "config", "view", "--raw", "--minify", "--flatten", "--context", context]
        only = subprocess.run(view, capture_output=True, text=True)
        if only.returncode:
            self._file.close()
            raise ClusterError(
                f"SLUICE_TEST_CLUSTER={context} is neither a running cluster of `make cluster` nor "
                f"a context of the kubeconfig: {only.stderr.strip()}"
            )
        self._file.write(only.stdout)
        self._file.flush()
        super().__init__(Path(self._file.name))
        self.kubectl("config", "use-context", context)
        self._forwards: dict[tuple[str, str, int], tuple[subprocess.Popen[str], str]] = {}

    def __repr__(self) -> str:
        return f"<ForeignCluster {self.context}, {len(self._forwards)} forwarded Services>"

    def close(self) -> None:
        for process, _ in self._forwards.values():
            process.kill()
            process.wait()
            _stream(process).close()
        self._forwards.clear()
        super().close()
        with suppress(FileNotFoundError):
            self._file.close()

    def check(self) -> None:
        answer = self.kubectl("get", "--raw", "/readyz", check=False)
        if answer.returncode:
            raise ClusterError(f"{self.context} is not ready: {answer.stderr}")

    def repair(self) -> None:
        """Nothing: what cannot be disturbed needs no repair."""

    def service_url(self, namespace: str, name: str, port: int = 80) -> str:
        target = (namespace, name, port)
        if target not in self._forwards or self._forwards[target][0].poll() is not None:
            command = ["kubectl", "port-forward", "-n", namespace, f"service/{name}", f":{port}"]
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
            found = re.search(r"127\.0\.0\.1:\d+", _stream(process).readline())
            if not found:
                process.kill()
                process.wait()
                raise ClusterError(f"kubectl forwarded no port to {namespace}/{name}")
            self._forwards[target] = process, f"http://{found[0]}"
        return self._forwards[target][1]

    def load(self, *image_archives: Path) -> list[str]:
        """With kind; any other cluster must be able to pull them. Raises RuntimeError."""
        for archive in image_archives:
            self._load("image-archive", str(archive))
        return []

    def load_from_docker(self, *names: str) -> None:
        """Put images into the node that Docker has; see `load`."""
        for name in names:
            self._load("docker-image", name)

    def _load(self, what: str, image: str) -> None:
        kind = self.context.removeprefix("kind-")
        if kind != self.context:
            command = ["kind", "load", what, image, "--name", kind]
            self._run(command, LOAD_SECONDS, check=True, stdin=None)

    # What only the tests' own cluster can do ------------------------------------------------------

    def exec(self, *_: Any, **__: Any) -> NoReturn:
        _only_own("entering its network")

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        _only_own("reaching its pods")

    def url(self, *_: Any, **__: Any) -> NoReturn:
        _only_own("reaching its pods")

    def advertise(self, *_: Any, **__: Any) -> NoReturn:
        _only_own("changing its node")

    def stop(self, *_: Any, **__: Any) -> NoReturn:
        _only_own("stopping its daemons")

    begin = restart = send = running = stop

    @cached_property
    def site(self) -> NoReturn:
        _only_own("looking into it")

    @cached_property
    def options(self) -> NoReturn:
        _only_own("choosing what it is")


def _only_own(need: str) -> NoReturn:
    pytest.skip(f"needs {need}: runs on the tests' own cluster, without SLUICE_TEST_CLUSTER")


def _stream(process: "subprocess.Popen[str]") -> IO[str]:
    assert process.stdout
    return process.stdout
