"""A real gateway process in front of a table that the test writes, and a small HTTP client.

The client is written on a bare socket on purpose: it sends exactly the bytes a test gives it, and
shows exactly what comes back.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from sluice_api import wire

ROOT = Path(__file__).parents[2]


class Reply(NamedTuple):
    """One HTTP answer. Header names in lower case; a repeated one is joined with a comma."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, *, head_only: bool = False, timeout: float = 60.0) -> Reply:
        async with asyncio.timeout(timeout):
            status, headers = await self._head()
            while status == 100:
                status, headers = await self._head()
            body = b""
            if head_only:
                pass
            elif headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readline(), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readline()
                await self.reader.readline()
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(status, headers, body)

    async def _head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(": ")
            name = name.lower()  # A proxy on the way may spell it otherwise.
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return int(lines[0].split(" ")[1]), headers

    async def closed(self, timeout: float = 60.0) -> bool:
        """Whether the other side closes without sending anything more."""
        async with asyncio.timeout(timeout):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    async def post(self, path: str, body: Any, **headers: str) -> Reply:
        self.send(request(path, body, **headers))
        return await self.reply()

    async def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.send(f"{method} {path} HTTP/1.1\r\nhost: t\r\n{lines}\r\n".encode())
        return await self.reply(head_only=method == "HEAD")


def request(path: str, body: Any, **headers: str) -> bytes:
    """A POST as bytes; ``headers`` with underscores for dashes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n{lines}\r\n"
    ).encode() + content


def service(name: str, urls: Iterable[str], **fields: Any) -> wire.Service:
    """A public service at revision ``r1``."""
    fields = {"revision": "r1", "public": True} | fields
    endpoints = [wire.Endpoint(url=url, revision=fields["revision"]) for url in urls]
    return wire.Service(name=name, endpoints=endpoints, **fields)


class GatewayProcess:
    """``python -m sluice_gateway`` on free ports. Use as a context manager."""

    def __init__(self, folder: Path, services: list[wire.Service], *options: str) -> None:
        self.folder = folder
        self.options = options
        self.table = folder / "services.json"
        self.port = 0
        self.admin_port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.admin_headers: dict[str, str] = {}
        self.write(services)

    def write(self, services: list[wire.Service]) -> None:
        """Replace the service table."""
        draft = self.folder / "services.new"
        draft.write_bytes(msgspec.json.encode(wire.ServiceTable(services=services)))
        draft.replace(self.table)

    def discovery(self) -> list[str]:
        """The arguments that say where the services are."""
        return ["--discovery", f"static:{self.table}"]

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def __enter__(self) -> "GatewayProcess":
        with (self.folder / "gateway.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "sluice_gateway",
                    *self.discovery(), "--port", "0", "--admin-port", "0", *self.options,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")},
            )  # fmt: skip
        assert self.process.stdout is not None
        watchdog = threading.Timer(90, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline().decode()
        watchdog.cancel()
        if not line.startswith("serving http://"):
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{line!r}\n{self.log[:4000]}")
        self.port = int(line.strip().rpartition(":")[2])
        listening = {
            connection.laddr.port
            for connection in psutil.Process(self.process.pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        (self.admin_port,) = listening - {self.port}
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def terminate(self, timeout: float = 90.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    async def client(self) -> Client:
        return await Client.open(self.port)

    async def post(self, path: str, body: Any, **headers: str) -> Reply:
        """One request on a connection of its own."""
        async with await Client.open(self.port) as client:
            return await client.post(path, body, **headers)

    async def get(self, path: str, *, admin: bool = False, method: str = "GET") -> Reply:
        async with await Client.open(self.admin_port if admin else self.port) as client:
            return await client.get(path, method, **(self.admin_headers if admin else {}))

    async def services(self) -> dict[str, Any]:
        """What the gateway thinks of each service, by name."""
        told = (await self.get("/internal/services", admin=True)).json()
        return {entry["name"]: entry for entry in told["services"]}

    async def follow(self, services: list[wire.Service], *, ready: bool = True) -> None:
        """Replace the table, and wait until the gateway lives by it."""
        before = await self._tables()
        self.write(services)
        deadline = time.monotonic() + 60
        while await self._tables() == before:
            assert time.monotonic() < deadline, self.log[-4000:]
            await asyncio.sleep(0.01)
        for each in services if ready else []:
            await self.ready(each.name, len(each.endpoints))

    async def _tables(self) -> str:
        told: str = (await self.get("/internal/services", admin=True)).json()["parts"][
            "StaticDiscovery"
        ]
        return told

    async def ready(self, name: str, count: int = 1, seconds: float = 60.0) -> None:
        """Wait until exactly ``count`` workers of the service are ready."""
        deadline = time.monotonic() + seconds
        while True:
            found = (await self.services()).get(name, {"endpoints": []})["endpoints"]
            if sum(endpoint["state"] == "ready" for endpoint in found) == count:
                return
            assert time.monotonic() < deadline, f"{name}: {found}\n{self.log}"
            await asyncio.sleep(0.02)

    async def demand(self, records: list[wire.Demand]) -> None:
        """Read the demand stream into ``records`` until cancelled."""
        async with await Client.open(self.admin_port) as client:
            lines = "".join(f"{name}: {value}\r\n" for name, value in self.admin_headers.items())
            client.send(f"GET /internal/demand HTTP/1.1\r\nhost: t\r\n{lines}\r\n".encode())
            await client.reader.readuntil(b"\r\n\r\n")
            while size := int(await client.reader.readline(), 16):
                for line in (await client.reader.readexactly(size)).splitlines():
                    records.append(msgspec.json.decode(line, type=wire.Demand))
                await client.reader.readline()

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` that carry ``labels``."""
        page = (await self.get("/metrics", admin=True)).body.decode()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.startswith((name + "{", name + " ")) and all(w in line for w in wanted)
        )
