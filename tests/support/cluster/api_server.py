"""The few questions that the box itself asks the API server and the health ports."""

import asyncio
import ssl
from typing import Any

import aiohttp

from .options import NODE, Site

PATIENCE = aiohttp.ClientTimeout(total=5)


class ApiServer:
    """A small client with the administrator's certificate. Nothing raises: no answer is `False`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<ApiServer {self._site.api_url}>"

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def answers(self, url: str) -> bool:
        """Whether a plain HTTP health address says 200."""
        try:
            async with (
                aiohttp.ClientSession(timeout=PATIENCE) as session,
                session.get(url) as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def is_ready(self) -> bool:
        status, _ = await self._get("/readyz")
        return status == 200

    async def has_default_account(self) -> bool:
        status, _ = await self._get("/api/v1/namespaces/default/serviceaccounts/default")
        return status == 200

    async def has_ready_node(self) -> bool:
        status, node = await self._get(f"/api/v1/nodes/{NODE}")
        if status != 200:
            return False
        conditions = node.get("status", {}).get("conditions", [])
        ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        # The taint goes a moment after the condition comes; no pod is placed before.
        return ready and not node["spec"].get("taints")

    async def create(self, item: dict[str, Any]) -> None:
        """Raises RuntimeError if the API server refuses it."""
        group, _, _ = item["apiVersion"].rpartition("/")
        root = f"/apis/{item['apiVersion']}" if group else f"/api/{item['apiVersion']}"
        plural = item["kind"].lower() + "s"
        url = f"{self._site.api_url}{root}/namespaces/{item['metadata']['namespace']}/{plural}"
        async with self._client().post(url, json=item) as answer:
            if answer.status != 201:
                raise RuntimeError(f"{item['kind']}: {await answer.text()}")

    async def _get(self, path: str) -> tuple[int, Any]:
        try:
            async with self._client().get(self._site.api_url + path) as answer:
                is_json = answer.content_type == "application/json"
                return answer.status, await answer.json() if is_json else None
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError):
            return 0, None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            folder = self._site.certificates
            context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
            context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
            connector = aiohttp.TCPConnector(ssl=context)
            self._session = aiohttp.ClientSession(connector=connector, timeout=PATIENCE)
        return self._session
