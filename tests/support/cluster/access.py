"""A Kubernetes that can be asked through a kubeconfig: by kubectl, Helm and the official client.

What the tests' own cluster and one that somebody else runs have in common; see `cluster` and
`foreign`.
"""

import json
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from kubernetes import client, config

COMMAND_SECONDS = 180.0
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 120.0
"""For what takes two seconds on a quiet machine; on a busy one anything may stop for some."""


class ClusterError(Exception):
    """The cluster did not come up, or lost a part; the message says which and why."""


class Access(ABC):
    """Administrator of one cluster.

    programs: folders with kubectl and helm, looked into before those of PATH.
    """

    def __init__(self, kubeconfig: Path, programs: tuple[Path, ...] = ()) -> None:
        self.kubeconfig = kubeconfig
        self._programs = programs

    @abstractmethod
    def check(self) -> None:
        """Raises ClusterError if the cluster is not whole."""

    @abstractmethod
    def repair(self) -> None:
        """Undo what a test may have done to the cluster itself."""

    @abstractmethod
    def service_url(self, namespace: str, name: str, port: int = 80) -> str:
        """The start of an HTTP address that leads to a Service, without a slash at its end."""

    @abstractmethod
    def url(self, host: str, port: int = 80) -> str:
        """The start of an HTTP address that leads to a pod or Service by its own; see above."""

    @abstractmethod
    def load(self, *image_archives: Path) -> list[str]:
        """Put images into the node; gives the names that were new. Raises RuntimeError."""

    @property
    def environment(self) -> dict[str, str]:
        """For commands that talk to the cluster: KUBECONFIG, and its kubectl and helm first."""
        path = ":".join([*map(str, self._programs), os.environ.get("PATH", "")])
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "PATH": path}

    @cached_property
    def api(self) -> client.ApiClient:
        """The official client, as administrator. `close` closes it."""
        made: client.ApiClient = config.new_client_from_config(  # type: ignore[no-untyped-call]
            str(self.kubeconfig)
        )
        return made

    def close(self) -> None:
        """Close what this object holds; the cluster stays."""
        if "api" in self.__dict__:
            self.api.close()  # type: ignore[no-untyped-call]
            self.api.rest_client.pool_manager.clear()
            del self.__dict__["api"]

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        seconds: float = COMMAND_SECONDS,
        check: bool = True,
    ) -> "subprocess.CompletedProcess[str]":
        """Raises RuntimeError with its output if it fails and `check` is set."""
        return self._run(["kubectl", *arguments], seconds, check, stdin)

    def read(self, path: str, **query: str) -> Any:
        """What the API server has at a path, decoded: for what is looked at again and again, at a
        tenth of what another `kubectl` costs. Raises RuntimeError with its answer if it refuses.
        """
        response = self.api.call_api(
            *self.api.param_serialize(
                "GET", path, query_params=list(query.items()), auth_settings=["BearerToken"]
            )
        )
        response.read()  # type: ignore[no-untyped-call]
        if response.status != 200:
            raise RuntimeError(f"GET {path} was answered with {response.status}: {response.data!r}")
        return json.loads(response.data or b"")

    def helm(
        self, *arguments: str, seconds: float = 180.0, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Raises RuntimeError with its output if it fails and `check` is set."""
        return self._run(["helm", *arguments], seconds, check, None)

    def _run(
        self, command: list[str], seconds: float, check: bool, stdin: str | None
    ) -> "subprocess.CompletedProcess[str]":
        result = subprocess.run(
            command,
            env=self.environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if check and result.returncode:
            said = result.stdout + result.stderr
            raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{said}")
        return result

    def describe(self, namespace: str) -> str:
        """What a reader of a failed test wants to know of a namespace: its pods and events."""
        pods = ("get", "pods", "-n", namespace, "-o", "wide")
        events = ("events", "-n", namespace)
        return "\n".join(
            said.stdout + said.stderr
            for said in (self.kubectl(*each, check=False) for each in (pods, events))
        )

    def until_established(self, definition: str) -> None:
        """Until the API server serves a CustomResourceDefinition, which is named.

        `kubectl wait` fails on one whose conditions nobody has written yet.
        """
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition}"

        def established() -> bool:
            conditions = (self.read(path).get("status") or {}).get("conditions") or ()
            return ("Established", "True") in {(c["type"], c["status"]) for c in conditions}

        self.until(established, f"{definition} is established")

    def until(
        self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS
    ) -> Any:
        """Wait for a condition to give something true, and return that.

        Raises AssertionError with `what` after `seconds`, ClusterError if the cluster broke.
        """
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            if time.monotonic() > deadline:
                self.check()
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            time.sleep(POLL_SECONDS)
        return result
