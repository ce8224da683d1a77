"""Enforces NetworkPolicies inside the box, which starts it with the path of a kubeconfig.

It keeps a mirror of policies, pods and namespaces by list and watch, and replaces the filter table
in one step when its text changes. A pod that is itself new is isolated as soon as its address is
published, not before. It ends with a failure if the kernel refuses a table: that fails the tests.
"""

import asyncio
import json
import logging
import ssl
import sys
from base64 import b64decode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from .network_policy import render

POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
PODS = "/api/v1/pods"
NAMESPACES = "/api/v1/namespaces"
RELIST_SECONDS = 0.2
GATHER_SECONDS = 0.02
WATCH_SECONDS = 300
MAX_EVENT_BYTES = 8 * 1024 * 1024

log = logging.getLogger("network-policy")


class Mirror:
    """The objects of one kind, by uid. `complete` once there was a list."""

    def __init__(self, path: str, changed: asyncio.Event) -> None:
        self.path = path
        self.items: dict[str, dict[str, Any]] = {}
        self.complete = False
        self._changed = changed

    def __repr__(self) -> str:
        return f"<Mirror of {self.path}: {len(self.items)}>"

    async def follow(self, session: aiohttp.ClientSession) -> None:
        """Keep up for ever; a list follows whatever breaks the watch."""
        while True:
            try:
                version = await self._list(session)
                await self._watch(session, version)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.warning("list and watch begin again path=%s error=%r", self.path, error)
                await asyncio.sleep(RELIST_SECONDS)

    async def _list(self, session: aiohttp.ClientSession) -> str:
        async with session.get(self.path) as answer:
            answer.raise_for_status()
            content = await answer.json()
        self.items = {item["metadata"]["uid"]: item for item in content["items"]}
        self.complete = True
        self._changed.set()
        version: str = content["metadata"]["resourceVersion"]
        return version

    async def _watch(self, session: aiohttp.ClientSession, version: str) -> None:
        query = {
            "watch": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with session.get(self.path, params=query) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return  # the version is too old; list again
                uid = event["object"]["metadata"]["uid"]
                if event["type"] == "DELETED":
                    self.items.pop(uid, None)
                else:
                    self.items[uid] = event["object"]
                self._changed.set()


async def enforce(session: aiohttp.ClientSession) -> None:
    """Follow the cluster and keep the table right, for ever. Raises RuntimeError if it cannot."""
    changed = asyncio.Event()
    policies, pods, namespaces = (Mirror(path, changed) for path in (POLICIES, PODS, NAMESPACES))
    mirrors = (policies, pods, namespaces)
    async with asyncio.TaskGroup() as tasks:
        for mirror in mirrors:
            tasks.create_task(mirror.follow(session), name=f"follow {mirror.path}")
        current = ""
        while True:
            await changed.wait()
            await asyncio.sleep(GATHER_SECONDS)  # what comes together is applied together
            changed.clear()
            if not all(mirror.complete for mirror in mirrors):
                continue
            table = render(*(mirror.items.values() for mirror in mirrors))
            if table != current:
                await _apply(table)
                current = table


async def _apply(table: str) -> None:
    restore = await asyncio.create_subprocess_exec(
        "iptables-restore",
        "--wait",
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await restore.communicate(table.encode())
    if restore.returncode:
        raise RuntimeError(f"iptables-restore: {said.decode()}\n{table}")
    log.info("rules replaced drops=%d", table.count("-j DROP"))


def _tls(user: dict[str, str], authority: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=b64decode(authority).decode())
    with TemporaryDirectory() as folder:  # the ssl module reads certificates from files only
        certificate, key = Path(folder) / "crt", Path(folder) / "key"
        certificate.write_bytes(b64decode(user["client-certificate-data"]))
        key.write_bytes(b64decode(user["client-key-data"]))
        context.load_cert_chain(certificate, key)
    return context


async def _run(kubeconfig: str) -> None:
    content = json.loads(kubeconfig)
    cluster = content["clusters"][0]["cluster"]
    context = _tls(content["users"][0]["user"], cluster["certificate-authority-data"])
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=WATCH_SECONDS + 10)
    session = aiohttp.ClientSession(
        cluster["server"],
        connector=aiohttp.TCPConnector(ssl=context),
        timeout=timeout,
        read_bufsize=MAX_EVENT_BYTES,  # also the longest line it reads
    )
    async with session:
        await enforce(session)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(_run(Path(sys.argv[1]).read_text()))
