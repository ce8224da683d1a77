"""The gateway beside nginx and a Rust router: CPU time per request, proxied and from the cache.

One core for the subject; nginx as the backend, Redis and wrk share the other. JSON of about 400
bytes, keep-alive, 32 connections. Ours runs with everything it has (keys, tenant, limits, metrics,
request ids); API keys do not exist yet, so no authentication is on, on either side.
"""

import argparse
import base64
import contextlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import msgspec
from measure import LOAD_CORE, SUBJECT_CORE, Process, free_port, listening

from sluice_api import names, wire
from sluice_api.digests import answer_digest
from sluice_api.tasks import Task

REVISION = "0123456789"
DIGEST = answer_digest({"bench": 1})
ANSWER = json.dumps(
    {
        "object": "list",
        "model": "default/bench",
        "data": [
            {
                "index": 0,
                "object": "embedding",
                "embedding": base64.b64encode(bytes(range(168))).decode(),
                "tokens": 9,
            }
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    },
    separators=(",", ":"),
)
READY = msgspec.json.encode(
    wire.Readiness(
        phase=wire.Phase.READY,
        model="file:///bench",
        revision=REVISION,
        answer_digest=DIGEST,
        tasks=[Task.EMBEDDINGS],
        capacity=wire.Capacity(limit=100_000),
    )
).decode()
TEXT = "the quick brown fox jumps over the lazy dog and runs far away from here " * 2

SAME = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"input":"%s","model":"bench","encoding_format":"base64"}'
"""
UNIQUE = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local n = math.floor(%d)
request = function()
  n = n + 1
  return wrk.format(nil, nil, nil,
    '{"input":"' .. n .. ' %s","model":"bench","encoding_format":"base64"}')
end
"""
NO_STORE = 'wrk.headers["Cache-Control"] = "no-store"\n'


def nginx_config(folder: Path, body: str) -> str:
    return f"""
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {body}
}}
"""


@contextlib.contextmanager
def nginx(body: str, port: int, core: int) -> Iterator[Process]:
    with measure.folder() as folder:
        config = folder / "nginx.conf"
        config.write_text(nginx_config(folder, body))
        program = next(p for p in ("/usr/sbin/nginx", "nginx") if Path(p).exists() or p == "nginx")
        with Process([program, "-c", str(config), "-p", str(folder)], core) as process:
            process.wait_for(listening(port))
            yield process


@contextlib.contextmanager
def backends() -> Iterator[list[int]]:
    """Two workers that answer at once: what is measured is the way there and back."""
    ports = [free_port(), free_port()]
    headers = f"""
      add_header {names.ANSWER_DIGEST} "{DIGEST}";
      add_header {names.REVISION} "{REVISION}";
      add_header {names.CAPACITY} "100000;0;0.000";"""
    servers = "".join(
        f"""
  server {{
    listen 127.0.0.1:{port}; default_type application/json; {headers}
    location = /readyz {{ return 200 '{READY}'; }}
    location / {{ return 200 '{ANSWER}'; }}
  }}"""
        for port in ports
    )
    with nginx(servers, ports[0], LOAD_CORE):
        yield ports


@dataclass
class Peer:
    """One line of the table."""

    name: str
    start: Callable[[list[int], int], Any]
    scripts: Callable[[int], str]
    path: str = "/v1/embeddings"
    warm: bool = False
    costs: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    memory: float = 0
    failed: int = 0


def unique(seed: int) -> str:
    return UNIQUE % (seed * 100_000_000, TEXT)


def same(_: int) -> str:
    return SAME % TEXT


def unique_no_store(seed: int) -> str:
    return unique(seed) + NO_STORE


@contextlib.contextmanager
def nginx_proxy(ports: list[int], port: int) -> Iterator[Process]:
    servers = " ".join(f"server 127.0.0.1:{p};" for p in ports)
    body = f"""
  upstream workers {{ least_conn; {servers} keepalive 128; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://workers; proxy_http_version 1.1;
      proxy_set_header Connection ""; }} }}"""
    with nginx(body, port, SUBJECT_CORE) as process:
        yield process


@contextlib.contextmanager
def nginx_cache(ports: list[int], port: int) -> Iterator[Process]:
    with measure.folder() as cache:
        body = f"""
  proxy_cache_path {cache} keys_zone=answers:16m max_size=256m;
  upstream workers {{ server 127.0.0.1:{ports[0]}; keepalive 128; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://workers; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_cache answers; proxy_cache_methods POST;
      proxy_cache_key "$request_uri$request_body"; proxy_cache_valid 200 10m;
      client_body_buffer_size 64k; }} }}"""
        with nginx(body, port, SUBJECT_CORE) as process:
            yield process


@contextlib.contextmanager
def vllm_router(ports: list[int], port: int) -> Iterator[Process]:
    program = measure.peer_venv("vllm-router==0.1.17") / "vllm-router"
    urls = [f"http://127.0.0.1:{p}" for p in ports]
    command = [
        str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
        "--prometheus-port", str(free_port()), "--log-level", "error",
        "--worker-urls", *urls,
    ]  # fmt: skip
    with Process(command, SUBJECT_CORE) as process:
        process.wait_for(listening(port))
        yield process


@contextlib.contextmanager
def sluice(ports: list[int], port: int, *options: str) -> Iterator[Process]:
    with measure.folder() as folder:
        service = wire.Service(
            name="bench",
            revision=REVISION,
            answer_digest=DIGEST,
            tasks=[Task.EMBEDDINGS],
            public=True,
            endpoints=[
                wire.Endpoint(url=f"http://127.0.0.1:{p}", revision=REVISION) for p in ports
            ],
        )
        table = folder / "services.yaml"
        table.write_bytes(msgspec.json.encode(wire.ServiceTable(services=[service])))
        admin = free_port()
        command = [
            sys.executable, "-m", "sluice_gateway", "--discovery", f"static:{table}",
            "--port", str(port), "--admin-port", str(admin), *options,
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")}
        with Process(command, SUBJECT_CORE, environment) as process:
            process.wait_for(listening(port))
            process.wait_for(lambda: _answers(port))
            yield process


def _answers(port: int) -> bool:
    body = json.dumps({"input": "x", "model": "bench", "encoding_format": "base64"}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/embeddings", body)
    request.add_header("Content-Type", "application/json")
    request.add_header("Cache-Control", "no-store")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def redis() -> Iterator[str]:
    with measure.folder() as folder:
        path = folder / "redis.sock"
        command = [
            "redis-server", "--port", "0", "--unixsocket", str(path), "--save", "",
            "--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru",
        ]  # fmt: skip
        with Process(command, LOAD_CORE) as process:
            process.wait_for(path.exists)
            yield f"unix://{path}"


def peers(redis_url: str) -> list[Peer]:
    def with_redis(ports: list[int], port: int) -> Any:
        # No memory of its own, so that every hit really comes from Redis.
        return sluice(ports, port, "--redis-url", redis_url, "--cache-mib", "0")

    def full(ports: list[int], port: int) -> Any:
        return sluice(ports, port, "--redis-url", redis_url)

    return [
        Peer("nginx, proxied", nginx_proxy, unique),
        Peer("vllm-router (Rust), proxied", vllm_router, unique),
        Peer("sluice, proxied, not stored", full, unique_no_store),
        Peer("sluice, proxied, looked up and stored", full, unique),
        Peer("nginx, cache hit", nginx_cache, same, warm=True),
        Peer("sluice, hit in process", full, same, warm=True),
        Peer("sluice, hit in Redis", with_redis, same, warm=True),
    ]


def run_once(peer: Peer, ports: list[int], seconds: float, seed: int) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}{peer.path}"
    with peer.start(ports, port) as process:
        measure.wrk(url, peer.scripts(seed), connections=32, seconds=1)
        before = process.cpu_seconds()
        load = measure.wrk(url, peer.scripts(seed + 1), connections=32, seconds=seconds)
        used = process.cpu_seconds() - before
        peer.costs.append(used / load.requests * 1e6)
        peer.rates.append(load.requests / load.seconds)
        peer.p50.append(load.p50_ms)
        peer.p99.append(load.p99_ms)
        peer.failed += load.failed
        peer.memory = max(peer.memory, process.memory_mib())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--only", default="", help="measure peers whose name contains this")
    options = parser.parse_args(arguments)
    with backends() as ports, redis() as redis_url:
        chosen = [peer for peer in peers(redis_url) if options.only in peer.name]
        for number in range(options.rounds):
            for peer in chosen:
                run_once(peer, ports, options.seconds, seed=2 * number)
    reference = {
        False: next((measure.median(p.costs) for p in chosen if p.name == "nginx, proxied"), None),
        True: next((measure.median(p.costs) for p in chosen if p.name == "nginx, cache hit"), None),
    }
    rows = []
    for peer in chosen:
        cost = measure.median(peer.costs)
        base = reference[peer.warm]
        rows.append(
            [
                peer.name,
                f"{cost:.1f}",
                f"{min(peer.costs):.1f}-{max(peer.costs):.1f}",
                f"{cost / base:.2f}" if base else "-",
                f"{measure.median(peer.rates):,.0f}",
                f"{measure.median(peer.p50):.2f}",
                f"{measure.median(peer.p99):.2f}",
                f"{peer.memory:.0f}",
                peer.failed,
            ]
        )
    measure.table(
        "Gateway: one core, 32 connections, closed loop",
        ["path", "µs CPU/req", "range", "x nginx", "req/s", "p50 ms", "p99 ms", "MiB", "failed"],
        rows,
    )
    measure.save(
        "gateway",
        {
            "peers": [
                {
                    "name": peer.name,
                    "cpu_us": peer.costs,
                    "rates": peer.rates,
                    "p50_ms": peer.p50,
                    "p99_ms": peer.p99,
                    "memory_mib": peer.memory,
                    "failed": peer.failed,
                }
                for peer in chosen
            ],
            "off": ["authentication (API keys do not exist yet)", "TLS"],
        },
    )


if __name__ == "__main__":
    main()
