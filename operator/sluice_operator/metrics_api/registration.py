"""Keeps the metrics API reachable: the certificate, whom to trust, the API server's registration.

One task of ``app`` in every replica. All replicas look and load; the leader alone renews the
certificate and completes our APIService. A registration that belongs to somebody else is never
touched: custom metrics have one server in a cluster, and HPAs would be misled.
"""

import asyncio
import base64
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from sluice_api.names import METRICS_GROUP
from sluice_operator import certificates, kinds
from sluice_operator.api_errors import ApiError, Conflict, NotFound, NotLeader, PermissionDenied
from sluice_operator.certificates import Identity
from sluice_operator.kinds import Kind
from sluice_operator.metrics import MetricsApiInstruments
from sluice_operator.metrics_api import front_proxy
from sluice_operator.metrics_api.documents import VERSIONS
from sluice_operator.metrics_api.server import MetricsApi
from sluice_operator.state import Object

SERVICE: Final = "sluice-metrics-api"
SECRET: Final = "sluice-metrics-api-tls"  # noqa: S105  a name
LOOK_SECONDS: Final = 10.0
HURRY_SECONDS: Final = 0.5
"""While it does not serve, or is not available, yet."""
HURRY_FOR_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 60.0
"""How long our own registration may be unavailable before services are scaled without HPAs."""
MAKER_SECONDS: Final = 10.0
"""A leader that has made no certificate after so long does not serve this API."""

log = logging.getLogger(__name__)


class Cluster(Protocol):
    """What is needed of :class:`sluice_operator.cluster.Cluster`."""

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any]: ...
    async def create(self, kind: Kind, wanted: Mapping[str, Any]) -> dict[str, Any]: ...
    async def merge(
        self, kind: Kind, namespace: str | None, name: str, change: Mapping[str, Any]
    ) -> dict[str, Any]: ...


class Standing(NamedTuple):
    """Whether HPAs can read our metric.

    Attributes:
        available: what ``Platform.metrics_api`` should be.
        note: why not, for people; empty when it is.
    """

    available: bool
    note: str = ""


class Registration:
    """What is known of the registration, and the work to keep it.

    Args:
        namespace: where the operator, its Service and its Secret are.
        leading: whether this replica may write.
        changed: called when :attr:`standing` has changed.
    """

    def __init__(
        self,
        cluster: Cluster,
        server: MetricsApi,
        instruments: MetricsApiInstruments,
        *,
        namespace: str,
        leading: Callable[[], bool],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.standing = Standing(True)  # Nothing is torn down before anything is known.
        self._cluster = cluster
        self.server = server
        self._instruments = instruments
        self._namespace = namespace
        self._leading = leading
        self._changed = changed
        self._clock = clock
        self._host_names = certificates.host_names(SERVICE, namespace)
        self._identity: Identity | None = None
        self._missing_since: float | None = None  # a certificate that somebody has made
        self._unavailable_since: float | None = None
        self._hurry_until = clock() + HURRY_FOR_SECONDS
        self._trouble = ""

    def __repr__(self) -> str:
        return f"<Registration {self.standing} {self._identity!r}>"

    def problem(self) -> str:
        """Why this replica should get no requests; empty when it serves, or nobody would ask."""
        if not self.standing.available or self.server.serving or self._is_in_its_own_way():
            return ""
        return f"metrics API not serving: {self._trouble or 'no certificate yet'}"

    def _is_in_its_own_way(self) -> bool:
        """Whether another one leads that makes no certificate, and ends once this one is ready.

        As in the upgrade that switches this API on.
        """
        since = self._missing_since
        long = since is not None and self._clock() - since >= MAKER_SECONDS
        return long and not self._leading()

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            settled = await self.look()
            hurry = not settled and self._clock() < self._hurry_until
            await asyncio.sleep(HURRY_SECONDS if hurry else LOOK_SECONDS)

    async def look(self) -> bool:
        """One round. True when everything is as it should be, or nothing of ours can be done."""
        why = ""
        try:
            why = await self._try_identity()
            settled = await self._keep_registered(why)
        except NotLeader:
            return False
        except front_proxy.NotConfigured as error:
            self._stand(Standing(False, str(error)))
            return True
        except ApiError as error:
            self._note(why or str(error))
            return False
        self._note(why)
        return settled and self.server.serving

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("metrics API not looked after", extra={"why": trouble})
        self._trouble = trouble

    # The certificate -----------------------------------------------------------------------------

    async def _try_identity(self) -> str:
        """Why it cannot be looked after: others may serve, or nobody, and then without HPAs."""
        try:
            await self._keep_identity()
        except PermissionDenied as error:
            return f"{error} (a Secret or a RoleBinding of the chart is missing; helm upgrade)"
        except (ApiError, ssl.SSLError) as error:
            return str(error)
        return ""

    async def _keep_identity(self) -> None:
        now = datetime.now(UTC)
        secret = await self._secret()
        identity = certificates.read(secret) if secret else None
        if certificates.due(identity, self._host_names, now) and self._leading():
            identity = await self._renew(secret, identity, now)
        if identity is None:
            if self._missing_since is None:
                self._missing_since = self._clock()
            return
        self._missing_since = None
        config = await self._cluster.get(
            kinds.CONFIG_MAP, front_proxy.CONFIG_NAMESPACE, front_proxy.CONFIG_NAME
        )
        await self.server.configure(identity, front_proxy.read(config))
        self._identity = identity
        self._instruments.expires_at.set(identity.expires_at.timestamp())

    async def _secret(self) -> dict[str, Any] | None:
        try:
            return await self._cluster.get(kinds.SECRET, self._namespace, SECRET)
        except NotFound:
            return None

    async def _renew(
        self, secret: Object | None, before: Identity | None, now: datetime
    ) -> Identity | None:
        """Trust the new authority first, serve with what it signed second."""
        identity = certificates.make(self._host_names, now, before)
        for version in VERSIONS:
            registered = await self._registered(version)
            if registered is not None and self._is_ours(registered) and before is not None:
                await self._put_bundle(registered, identity)
        data = certificates.secret_data(identity)
        try:
            if secret is None:
                metadata = {"namespace": self._namespace, "name": SECRET}
                document = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
                await self._cluster.create(kinds.SECRET, document | {"data": data})
            else:
                version = secret["metadata"]["resourceVersion"]
                change = {"metadata": {"resourceVersion": version}, "data": data}
                await self._cluster.merge(kinds.SECRET, self._namespace, SECRET, change)
        except Conflict:
            return None  # Another leader was quicker; its certificate is read next time.
        log.info(
            "certificate made",
            extra={"secret": SECRET, "expires_at": identity.expires_at.isoformat()},
        )
        return identity

    # The registration ----------------------------------------------------------------------------

    async def _keep_registered(self, trouble: str) -> bool:
        registered = [await self._registered(version) for version in VERSIONS]
        present = [entry for entry in registered if entry is not None]
        standing = self._judge(present, trouble)
        for entry in present:
            if self._is_ours(entry) and self._identity is not None and self._leading():
                await self._put_bundle(entry, self._identity)
        self._stand(standing)
        available = self._unavailable_since is None
        self._instruments.available.set(available and standing.available)
        foreign = any(not self._is_ours(entry) for entry in present)
        return foreign or available

    def _stand(self, standing: Standing) -> None:
        if standing == self.standing:
            return
        self.standing = standing
        told = {"available": standing.available, "note": standing.note}
        level = logging.INFO if standing.available else logging.WARNING
        log.log(level, "metrics API standing changed", extra=told)
        self._changed()

    async def _registered(self, version: str) -> dict[str, Any] | None:
        try:
            return await self._cluster.get(kinds.API_SERVICE, None, f"{version}.{METRICS_GROUP}")
        except NotFound:
            return None

    def _judge(self, present: list[dict[str, Any]], trouble: str) -> Standing:
        foreign = next((entry for entry in present if not self._is_ours(entry)), None)
        if foreign is not None:
            self._unavailable_since = None
            owner = foreign["spec"].get("service") or {}
            name = f"{owner.get('namespace')}/{owner.get('name')}" if owner else "the API server"
            which = f"{name} (APIService {foreign['metadata']['name']})"
            told = f"{METRICS_GROUP} is served by {which}, so no HPA can read ours"
            if any(self._is_ours(entry) for entry in present):
                # HPAs ask the version that the group prefers, and that may be ours.
                told += "; the other's HPAs may ask Sluice: helm upgrade, metricsApi.enabled=false"
            return Standing(False, told)
        if not present:
            self._unavailable_since = None
            return Standing(False, f"{METRICS_GROUP} is not registered (metricsApi.enabled is off)")
        why = next((why for entry in present if (why := _unavailable(entry))), "")
        if not why:
            self._unavailable_since = None
            return Standing(True)
        if self._unavailable_since is None:
            self._unavailable_since = self._clock()
            self._hurry_until = self._clock() + HURRY_FOR_SECONDS
        if self._clock() - self._unavailable_since < GRACE_SECONDS:
            return self.standing
        return Standing(False, f"the API server cannot reach our metrics: {trouble or why}")

    def _is_ours(self, registered: Object) -> bool:
        service = registered["spec"].get("service") or {}
        return service.get("namespace") == self._namespace and service.get("name") == SERVICE

    async def _put_bundle(self, registered: Object, identity: Identity) -> None:
        """Have the API server trust our certificate. Raises Conflict when it changed meanwhile."""
        bundle = base64.b64encode(identity.bundle).decode()
        spec = registered["spec"]
        if spec.get("caBundle") == bundle and not spec.get("insecureSkipTLSVerify"):
            return
        metadata = registered["metadata"]
        change = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "spec": {"caBundle": bundle, "insecureSkipTLSVerify": None},
        }
        await self._cluster.merge(kinds.API_SERVICE, None, metadata["name"], change)
        log.info("registration completed", extra={"apiservice": metadata["name"]})


def _unavailable(registered: Object) -> str:
    """Why the API server sends nothing here; empty when it does."""
    conditions = (registered.get("status") or {}).get("conditions") or ()
    for condition in conditions:
        if condition.get("type") == "Available":
            if condition.get("status") == "True":
                return ""
            return str(condition.get("message") or condition.get("reason") or "not available")
    return "not looked at yet"
