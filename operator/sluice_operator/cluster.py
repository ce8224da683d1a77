"""The API server, and the only module that knows a Kubernetes client.

Every call has a deadline, is counted, and fails only as an :class:`~.api_errors.ApiError`. What
changes the cluster goes through the fence: without a valid lease it raises ``NotLeader`` and sends
nothing. The generated classes of the client are not used: they cost 140 MB of memory.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import aiohttp
import msgspec
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
)

from sluice_api import names
from sluice_api.wording import sentence
from sluice_operator import kinds
from sluice_operator.api_errors import Conflict, Foreign, NotFound, Unavailable, error_of
from sluice_operator.instruments import Instruments
from sluice_operator.kinds import Kind
from sluice_operator.ownership import is_orphan, taken_over
from sluice_operator.pace import Pace
from sluice_operator.state import Object
from sluice_operator.steps import Apply, Delete, Rank, Scale, Step

READ_SECONDS: Final = 10.0
WRITE_SECONDS: Final = 1.9
"""Less than the lease outlives the renewing of it: a write cannot arrive after another's first."""
CONNECT_SECONDS: Final = 5.0
LIST_CHUNK: Final = 500

_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

Query = Sequence[tuple[str, str]]


class Cluster:
    """Calls to the API server. Made by :func:`connect`; closed by the one who asked for it."""

    def __init__(self, client: ApiClient, instruments: Instruments, pace: Pace) -> None:
        self._client = client
        self._instruments = instruments
        self._pace = pace
        self._fence: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Cluster {self._client.configuration.host}>"

    def guard(self, fence: Callable[[], None]) -> None:
        """Ask ``fence`` before every write but those of the lease; it raises ``NotLeader``."""
        self._fence = fence

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    def session(self, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
        """Another way to the same server, for kopf; it shows a fresh token with each request."""
        given = self._client.configuration
        connector = aiohttp.TCPConnector(limit=0, ssl=self._client.rest_client.ssl_context)
        return aiohttp.ClientSession(
            connector=connector,
            middlewares=(*middlewares, self._authorise),
            proxy=given.proxy,
            trust_env=False,
        )

    async def _authorise(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # Tokens of pods are rotated; the client reads the file again when it is due.
        token = await self._client.configuration.get_api_key_with_prefix("BearerToken")
        if token:
            request.headers["Authorization"] = token
        return await send(request)

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self._client.configuration.host)

    # Reading -------------------------------------------------------------------------------------

    async def get(
        self, kind: Kind, namespace: str | None, name: str, *, cached: bool = False
    ) -> dict[str, Any]:
        """One object. Raises NotFound.

        Args:
            cached: as the API server's own watch has it, some moments behind at worst; otherwise it
                asks etcd.
        """
        query = [("resourceVersion", "0")] if cached else []
        return await self._call("get", kind, kind.path(namespace, name), query=query)

    async def list_page(
        self, kind: Kind, namespace: str | None = None, selectors: Query = (), limit: int = 1
    ) -> list[dict[str, Any]]:
        """At most ``limit`` objects; to see whether one may, or whether there are any."""
        query = [*selectors, ("limit", str(limit))]
        answer = await self._call("list", kind, kind.path(namespace), query=query)
        return list(answer.get("items") or ())

    async def list_metadata(
        self, kind: Kind, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[dict[str, Any]]:
        """The metadata of every matching object of the whole cluster, page by page.

        Raises ApiError; a list that grew too old on the way (410) is Unavailable.
        """
        query = [("labelSelector", label_selector)] if label_selector else []
        query += [("fieldSelector", field_selector)] if field_selector else []
        async for item in self._list(kind, kind.path(), query, accept=_METADATA_ONLY):
            yield item["metadata"]

    async def _list(
        self, kind: Kind, path: str, query: Query, accept: str = "application/json"
    ) -> AsyncIterator[dict[str, Any]]:
        more = ""
        while True:
            page = [*query, ("limit", str(LIST_CHUNK)), *([("continue", more)] if more else [])]
            answer = await self._call("list", kind, path, query=page, accept=accept)
            for item in answer.get("items") or ():
                yield item
            more = answer.get("metadata", {}).get("continue", "")
            if not more:
                return

    async def server_version(self) -> tuple[int, int]:
        """Major and minor version of Kubernetes."""
        answer = await self._request("get", "version", "GET", "/version")
        minor = "".join(filter(str.isdigit, str(answer.get("minor", "0"))))
        return int(answer.get("major", 0)), int(minor or 0)

    async def pod_warnings(self, namespace: str, uid: str) -> list[tuple[str, str]]:
        """Reason and message of the newest warning Events of a pod, newest first."""
        selector = f"involvedObject.uid={uid},type=Warning"
        query = [("fieldSelector", selector), ("limit", "50")]
        answer = await self._call("list", kinds.EVENT, kinds.EVENT.path(namespace), query=query)
        newest = sorted(answer.get("items") or (), key=_last_seen, reverse=True)[:5]
        return [(str(event.get("reason", "")), str(event.get("message", ""))) for event in newest]

    async def refused_pods(self, namespace: str, deployment: str) -> tuple[str, str] | None:
        """ReplicaSet and words of the newest Event of a Deployment's pod that was not made."""
        selector = "involvedObject.kind=ReplicaSet,reason=FailedCreate,type=Warning"
        found = []
        async for event in self._list(
            kinds.EVENT, kinds.EVENT.path(namespace), [("fieldSelector", selector)]
        ):
            name = str(event["involvedObject"].get("name", ""))
            if name.rpartition("-")[0] == deployment:
                found.append((_last_seen(event), name, str(event.get("message", ""))))
        return max(found)[1:] if found else None

    # Writing -------------------------------------------------------------------------------------

    async def carry_out(self, step: Step) -> dict[str, Any] | None:
        """Do one step of a plan; an object or scale as it is now. Raises ApiError or NotLeader.

        What a step wants to be gone may be gone already: that is no error.
        """
        match step:
            case Apply():
                if step.new:
                    await self._check_ours(step.object)
                if step.take_over:
                    await self._take_over(step.object)
                return await self.apply(step.object, step.manager)
            case Scale():
                return await self.scale(step)
            case Delete():
                await self.delete(step)
            case Rank():
                await self.rank(step)
        return None

    async def apply(
        self, wanted: Object, manager: str = names.FIELD_MANAGER, subresource: str = ""
    ) -> dict[str, Any]:
        """Server-side apply by force. Returns the object as it is now."""
        kind = kinds.kind_of(wanted["apiVersion"], wanted["kind"])
        metadata = wanted["metadata"]
        return await self._call(
            "patch",
            kind,
            kind.path(metadata.get("namespace"), metadata["name"], subresource),
            subresource=subresource,
            query=[("fieldManager", manager), ("force", "true")],
            body=wanted,
            content_type=_APPLY,
        )

    async def _check_ours(self, wanted: Object) -> None:
        """Raise Foreign if there is an object of that name that is not our service's."""
        kind, metadata = kinds.kind_of(wanted["apiVersion"], wanted["kind"]), wanted["metadata"]
        try:
            # Who makes one between this look and the write is overwritten in any case.
            there = await self.get(kind, metadata["namespace"], metadata["name"], cached=True)
        except NotFound:
            return
        owner = metadata["ownerReferences"][0]["uid"]
        if not is_orphan(there) and not any(
            reference.get("controller") and reference.get("uid") == owner
            for reference in there["metadata"].get("ownerReferences", ())
        ):
            message = f"{kind.name} {metadata['name']} exists already and is not Sluice's"
            raise Foreign("patch", kind.plural, message)

    async def _take_over(self, wanted: Object) -> None:
        """Make what others have set in an object's ``spec`` ours, for the next apply to drop it.

        If that one never comes, the digest that is missing here asks for it. Raises Conflict when
        the object has changed meanwhile.
        """
        kind, metadata = kinds.kind_of(wanted["apiVersion"], wanted["kind"]), wanted["metadata"]
        there = await self.get(kind, metadata["namespace"], metadata["name"])
        change = {
            "resourceVersion": there["metadata"]["resourceVersion"],
            "annotations": {names.RENDERED: ""},
            "managedFields": taken_over(there),
        }
        await self.merge(kind, metadata["namespace"], metadata["name"], {"metadata": change})

    async def apply_status(self, resource: Object, status: Mapping[str, Any]) -> dict[str, Any]:
        """Write the status of exactly this InferenceService, not of a namesake made since."""
        metadata = {key: resource["metadata"][key] for key in ("namespace", "name", "uid")}
        wanted = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": metadata,
            "status": status,
        }
        return await self.apply(wanted, subresource="status")

    async def scale(self, step: Scale) -> dict[str, Any]:
        """Set and own ``spec.replicas``, through the scale subresource: it can make no object.

        Returns the Scale as it is now; its metadata are the Deployment's.
        """
        wanted = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"namespace": step.namespace, "name": step.deployment},
            "spec": {"replicas": step.replicas},
        }
        return await self._call(
            "patch",
            kinds.DEPLOYMENT,
            kinds.DEPLOYMENT.path(step.namespace, step.deployment, "scale"),
            subresource="scale",
            query=[("fieldManager", names.SCALER_FIELD_MANAGER), ("force", "true")],
            body=wanted,
            content_type=_APPLY,
        )

    async def delete(self, step: Delete) -> None:
        kind = kinds.kind_of(step.api_version, step.kind)
        body = {"propagationPolicy": "Background", "preconditions": {"uid": step.uid}}
        try:
            await self._call("delete", kind, kind.path(step.namespace, step.name), body=body)
        except (NotFound, Conflict):
            pass  # it is gone, or somebody made another one of that name: not ours to delete

    async def rank(self, step: Rank) -> None:
        annotations = {names.DELETION_COST: str(step.cost)}
        try:
            await self.merge(
                kinds.POD,
                step.namespace,
                step.pod,
                {"metadata": {"annotations": annotations}},
                manager=names.SCALER_FIELD_MANAGER,
            )
        except NotFound:
            pass  # ended already

    async def merge(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        change: Mapping[str, Any],
        manager: str = names.FIELD_MANAGER,
    ) -> dict[str, Any]:
        """A JSON merge patch. With ``metadata.resourceVersion`` in it, only onto that version."""
        path = kind.path(namespace, name)
        query = [("fieldManager", manager)]
        return await self._call("patch", kind, path, query=query, body=change, content_type=_MERGE)

    async def create(
        self, kind: Kind, wanted: Mapping[str, Any], *, fenced: bool = True
    ) -> dict[str, Any]:
        """Make an object. Raises Conflict when there is one of its name."""
        path = kind.path(wanted["metadata"].get("namespace"))
        return await self._call("create", kind, path, body=wanted, fenced=fenced)

    async def replace(
        self, kind: Kind, wanted: Mapping[str, Any], *, fenced: bool = True
    ) -> dict[str, Any]:
        """Put an object in place of the version it was made from; raises Conflict otherwise."""
        metadata = wanted["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"])
        return await self._call("update", kind, path, body=wanted, fenced=fenced)

    # The call itself -----------------------------------------------------------------------------

    async def _call(
        self,
        verb: str,
        kind: Kind,
        path: str,
        *,
        subresource: str = "",
        query: Query = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        fenced: bool = True,
    ) -> dict[str, Any]:
        resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
        method = _METHODS[verb]
        if method != "GET" and fenced:
            await self._pace.take()
            self._fence()
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        return await self._request(verb, resource, method, path, query, headers, body)

    async def _request(
        self,
        verb: str,
        resource: str,
        method: str,
        path: str,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        seconds = READ_SECONDS if method == "GET" else WRITE_SECONDS
        started, code = time.perf_counter(), "none"
        try:
            prepared = await self._client.param_serialize(
                method,
                path,
                query_params=list(query),
                header_params=dict(headers or {}),
                body=body,
                auth_settings=["BearerToken"],
            )
            async with asyncio.timeout(seconds):
                response = await self._client.call_api(
                    *prepared, _request_timeout=aiohttp.ClientTimeout(seconds)
                )
                content: bytes = await response.read()  # type: ignore[no-untyped-call]
            code = str(response.status)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            said = str(error) or f"no answer within {seconds:g} s"
            raise Unavailable(verb, resource, said) from error
        finally:
            elapsed = time.perf_counter() - started
            self._instruments.api_call(verb, resource, code, elapsed)
        if response.status < 300:
            return msgspec.json.decode(content, type=dict[str, Any]) if content else {}
        raise error_of(
            verb,
            resource,
            response.status,
            _message(content) or f"HTTP status {response.status}",
            response.headers.get("Retry-After", ""),
        )


_METHODS: Final = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


def _message(content: bytes) -> str:
    """What a Status object says; empty when the content is none."""
    try:
        return str(msgspec.json.decode(content, type=dict[str, Any]).get("message", ""))
    except msgspec.MsgspecError:
        return ""


def _last_seen(event: Object) -> str:
    """When an Event happened last; RFC 3339 sorts as text."""
    return str(
        event.get("lastTimestamp")
        or (event.get("series") or {}).get("lastObservedTime")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp", "")
    )


_MISSHAPEN: Final = (yaml.YAMLError, TypeError, ValueError, LookupError, AttributeError)
"""What the client's reader of kubeconfigs trips over in a file of another shape."""


async def connect(instruments: Instruments, pace: Pace) -> Cluster:
    """The cluster this process runs in, or the one ``KUBECONFIG`` points to.

    Raises ValueError when there is neither.
    """
    configuration = Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError, *_MISSHAPEN) as error:
        file = os.environ.get("KUBECONFIG", "~/.kube/config")
        what = f"{file} is no kubeconfig: " if isinstance(error, _MISSHAPEN) else ""
        why = sentence(" ".join(str(error).split()))
        raise ValueError(
            f"no way to an API server: {what}{why} Run in a pod, or set KUBECONFIG."
        ) from None
    configuration.connection_pool_maxsize = 32
    # An HTTP proxy of the environment is for the world outside, not for the API server.
    configuration.client_session_kwargs = {"trust_env": False}
    client = ApiClient(configuration)
    client.user_agent = "sluice-operator"
    return Cluster(client, instruments, pace)
