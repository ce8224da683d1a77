"""How the operator is: ``/livez`` and ``/readyz`` for the kubelet, ``/metrics`` for Prometheus.

``/internal/decisions`` explains the last scaling decisions. Plain HTTP on the admin port, reachable
by whom the NetworkPolicy lets in; nothing here changes anything. Run by ``app``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from sluice_api.exposition import CONTENT_TYPE, expose

BODY_BYTES: Final = 4096

Check = Callable[[], str]
"""What is wrong, in a few words; empty when nothing is."""


class Health:
    """The HTTP server of the admin port.

    Args:
        live: when one of these fails, only a new process helps.
        ready: when one of these fails, this replica should get no requests.
        explain: the last scaling decisions, ready for JSON.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        live: Sequence[Check],
        ready: Sequence[Check],
        explain: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._registry = registry
        self._live = live
        self._ready = ready
        self._explain = explain
        self._runner: web.AppRunner | None = None
        self.port = 0

    def __repr__(self) -> str:
        return f"<Health port {self.port}>"

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError when the port is taken."""
        app = web.Application(client_max_size=BODY_BYTES)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/internal/decisions", self._decisions)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(self._live)

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer((*self._live, *self._ready))

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=expose(self._registry), headers={"Content-Type": CONTENT_TYPE})

    async def _decisions(self, _: web.Request) -> web.Response:
        body = msgspec.json.encode(self._explain())
        return web.Response(body=body, content_type="application/json")


def _answer(checks: Sequence[Check]) -> web.Response:
    problems = [problem for check in checks if (problem := check())]
    return web.Response(status=503 if problems else 200, text="\n".join(problems) or "ok")
