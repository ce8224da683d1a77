"""Whether there is a cluster to work on: asked before the watches begin.

kopf finds out which kinds there are once, at its start, and tries a list that is forbidden for a
minute before it gives up. So we wait here, and say what is missing: the API server, the CRD, or a
right. Called by ``app``.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

from sluice_operator.api_errors import ApiError, NotFound, PermissionDenied
from sluice_operator.kinds import INFERENCE_SERVICE, Kind, Watched

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0
REPEAT_SECONDS: Final = 60.0
"""How often the same problem is said again."""


class Api(Protocol):
    """What is needed of the cluster."""

    async def server_version(self) -> tuple[int, int]: ...
    async def list_page(
        self,
        kind: Kind,
        namespace: str | None = None,
        selectors: Sequence[tuple[str, str]] = (),
        limit: int = 1,
    ) -> list[dict[str, Any]]: ...


class Preflight:
    """Waits until everything that is to be watched can be listed."""

    def __init__(self, api: Api, watched: Sequence[Watched]) -> None:
        self._api = api
        self._watched = watched
        self.problem = "not begun"

    def __repr__(self) -> str:
        return f"<Preflight {self.problem or 'passed'}>"

    async def passed(self) -> tuple[int, int]:
        """Return when all is well: with the version of Kubernetes."""
        loop = asyncio.get_running_loop()
        said, said_at = "", 0.0
        while True:
            self.problem, version = await self._look()
            if not self.problem:
                return version
            if self.problem != said or loop.time() - said_at >= REPEAT_SECONDS:
                log.warning("waiting for the cluster", extra={"problem": self.problem})
                said, said_at = self.problem, loop.time()
            await asyncio.sleep(RETRY_SECONDS)

    async def _look(self) -> tuple[str, tuple[int, int]]:
        try:
            version = await self._api.server_version()
        except ApiError as error:
            return str(error), (0, 0)
        problems = []
        for each in self._watched:
            try:
                await self._api.list_page(each.kind)
            except NotFound:
                crd = "; install the CRD" if each.kind == INFERENCE_SERVICE else ""
                problems.append(f"{each.kind.plural}: unknown to the API server{crd}")
            except PermissionDenied as error:
                problems.append(f"may not list {each.kind.plural}: {error.message}")
            except ApiError as error:
                problems.append(str(error))
        return "; ".join(problems), version
