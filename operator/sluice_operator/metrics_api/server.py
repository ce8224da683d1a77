"""The metrics API's server: TLS, the API server's own certificate, answers from memory.

``app`` owns one per replica. What it needs to serve – the certificate and whom to trust – arrives
later and changes, through :meth:`MetricsApi.configure`; nothing is asked of anybody in a request.
"""

import asyncio
import logging
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from sluice_api.names import METRICS_GROUP
from sluice_operator.certificates import Identity
from sluice_operator.metrics import MetricsApiInstruments
from sluice_operator.metrics_api import documents
from sluice_operator.metrics_api.front_proxy import FrontProxy
from sluice_operator.metrics_api.label_selectors import Selector, SelectorError, matches, parse
from sluice_operator.metrics_api.values import METRICS, Signals, value_of
from sluice_operator.state import Key, Object

MAX_ITEMS: Final = 1000
"""Services in one answer; more are asked for with a selector."""
MAX_BODY_BYTES: Final = 16 * 1024
HANDSHAKE_SECONDS: Final = 5.0
_OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz"})

log = logging.getLogger(__name__)

Resource = Callable[[Key], Object | None]
Keys = Callable[[], Iterable[Key]]
SignalsOf = Callable[[Key], Signals]


class Refused(Exception):
    """A request that gets no value."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class MetricsApi:
    """One listening socket, once it is known what to serve with.

    Args:
        resource: an InferenceService from the watches' cache; None for an unknown one.
        keys: all of them.
        signals: revision and demand of one.
        synced: whether the cache holds everything; before that nothing is known of any service.
    """

    def __init__(
        self,
        resource: Resource,
        keys: Keys,
        signals: SignalsOf,
        synced: Callable[[], bool],
        instruments: MetricsApiInstruments,
    ) -> None:
        self._resource = resource
        self._keys = keys
        self._signals = signals
        self._synced = synced
        self._instruments = instruments
        self._listening: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._front_proxy: FrontProxy | None = None
        self._identity: Identity | None = None

    def __repr__(self) -> str:
        state = f"serving with {self._identity!r}" if self.serving else "not serving"
        return f"<MetricsApi {state}>"

    @property
    def serving(self) -> bool:
        return self._server is not None

    async def listen(self, host: str, port: int) -> int:
        """Take the port; returns its number. Raises OSError when it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listening.bind((host, port))
        except OSError:
            listening.close()
            raise
        listening.setblocking(False)
        self._listening = listening
        self._runner = web.AppRunner(self._application(), access_log=None, keepalive_timeout=90.0)
        await self._runner.setup()
        return int(listening.getsockname()[1])

    async def configure(self, identity: Identity, front_proxy: FrontProxy) -> None:
        """Serve with this certificate and trust these callers from now on.

        Connections that are open go on as they were made. Raises ``ssl.SSLError`` for a
        certificate that TLS refuses; the one before stays.
        """
        if (identity, front_proxy) == (self._identity, self._front_proxy) and self.serving:
            return
        assert self._listening is not None
        assert self._runner is not None
        assert self._runner.server is not None
        context = _context(identity, front_proxy)
        # A context cannot forget an authority, so there is a new one behind the same queue.
        server = await asyncio.get_running_loop().create_server(
            self._runner.server,
            sock=self._listening.dup(),
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=1.0,
        )
        before, self._server = self._server, server
        self._identity, self._front_proxy = identity, front_proxy
        if before is not None:
            before.close()
        log.info("metrics API serves", extra={"expires_at": identity.expires_at.isoformat()})

    async def close(self) -> None:
        """Stop listening, let requests end, close the connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
        if self._listening is not None:
            self._listening.close()

    # Answers -------------------------------------------------------------------------------------

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        root = f"/apis/{METRICS_GROUP}"
        application.router.add_get("/apis", _fixed(documents.groups()))
        application.router.add_get(root, _fixed(documents.group()))
        for version in documents.VERSIONS:
            listed = _fixed(documents.resources(version))
            application.router.add_get(f"{root}/{version}", listed)
            application.router.add_get(
                f"{root}/{version}/namespaces/{{namespace}}/{{resource}}/{{name}}/{{metric}}",
                self._values(version),
            )
        for path, document in documents.OPENAPI.items():
            application.router.add_get(path, _fixed(document))
        for path in _OPEN_PATHS:
            application.router.add_get(path, _alive)
        return application

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        """Let the API server through, and answer whatever goes wrong as a Status."""
        started = time.perf_counter()
        try:
            if request.path not in _OPEN_PATHS:
                self._authenticate(request)
            response: web.StreamResponse = await handler(request)
        except Refused as refused:
            response = _json(documents.status(refused.code, str(refused)), refused.code)
        except web.HTTPException as error:
            response = _json(documents.status(error.status, error.reason or ""), error.status)
        except Exception:
            log.exception("metrics API failed", extra={"path": request.path})
            response = _json(documents.status(500, "internal error"), 500)
        self._instruments.answered(response.status, time.perf_counter() - started)
        return response

    def _authenticate(self, request: web.Request) -> None:
        transport, front_proxy = request.transport, self._front_proxy
        certificate = transport.get_extra_info("peercert") if transport else None
        if front_proxy is None or front_proxy.user(certificate, request.headers) is None:
            raise Refused(401, "only the API server may ask, with its front-proxy certificate")

    def _values(self, version: str) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            return self._answer(version, request)

        return answer

    def _answer(self, version: str, request: web.Request) -> web.Response:
        path = request.match_info
        metric = METRICS.get(path["metric"])
        if path["resource"] != documents.RESOURCE or metric is None:
            asked = f"{path['resource']}/{path['metric']}"
            raise Refused(404, f"there is no metric {asked}; there are {', '.join(METRICS)}")
        if not self._synced():
            raise Refused(503, "the watches have not brought everything yet")
        selector = _selector(request, "metricLabelSelector")
        found = []
        for resource in self._described(path["namespace"], path["name"], request):
            metadata = resource["metadata"]
            key = Key(metadata["namespace"], metadata["name"])
            value = value_of(metric, resource, lambda key=key: self._signals(key), selector)  # type: ignore[misc]
            if value is not None:
                found.append((resource, value))
        if not found:
            name = f"{path['namespace']}/{path['name']}"
            raise Refused(404, f"{name} has no value of {metric.name} now")
        labels = {
            term.key: next(iter(term.values))
            for term in selector
            if term.operator == "in" and len(term.values) == 1
        }
        now = datetime.now(UTC)
        return _json(documents.metric_values(version, metric, found, labels or None, now))

    def _described(self, namespace: str, name: str, request: web.Request) -> Iterable[Object]:
        if name != "*":
            resource = self._resource(Key(namespace, name))
            return [resource] if resource is not None else []
        selector = _selector(request, "labelSelector")
        several = []
        for key in self._keys():
            if key.namespace != namespace:
                continue
            resource = self._resource(key)
            labels = (resource or {"metadata": {}})["metadata"].get("labels") or {}
            if resource is not None and matches(selector, labels):
                several.append(resource)
            if len(several) > MAX_ITEMS:
                raise Refused(400, f"more than {MAX_ITEMS} services; narrow the labelSelector")
        return several


def _selector(request: web.Request, name: str) -> Selector:
    try:
        return parse(request.query.get(name, ""))
    except SelectorError as error:
        raise Refused(400, f"{name}: {error}") from None


def _fixed(document: documents.Document) -> Callable[[web.Request], Any]:
    body = msgspec.json.encode(document)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    return answer


async def _alive(_: web.Request) -> web.Response:
    return web.Response(text="ok")


def _json(document: documents.Document, code: int = 200) -> web.Response:
    # JSON whatever Accept says: the controller manager asks for protobuf first, and reads both.
    body = msgspec.json.encode(document)
    return web.Response(body=body, status=code, content_type="application/json")


def _context(identity: Identity, front_proxy: FrontProxy) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Without a certificate a probe may still ask whether the server lives.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=front_proxy.authority)
    # The ssl module reads keys from files only; the folder is on memory in a pod.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.pem"
        path.touch(mode=0o600)
        path.write_bytes(identity.chain + identity.key)
        context.load_cert_chain(path)
    return context
