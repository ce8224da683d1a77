"""The subjects of the gateway benchmarks: ours, and what others put in the same place.

Each is a context manager that starts it on the subject's core, waits until it answers and yields
the :class:`measure.Process`. All stand before the same backends; all that come from the package
index have pinned versions and an environment of their own.
"""

import base64
import contextlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import measure
import msgspec
import yaml
from measure import LOAD_CORE, SUBJECT_CORE, Process, free_port, listening

from sluice_api import names, wire
from sluice_api.api_keys import make_key
from sluice_api.digests import answer_digest
from sluice_api.key_file import KeyEntry, KeyFile, Limits, TenantEntry, write_key_file
from sluice_api.rates import parse_rate
from sluice_api.tasks import Task

REVISION = "0123456789"
DIGEST = answer_digest({"bench": 1})
KEY = "sk-bench-0123456789abcdef0123456789abcdef"
VLLM_ROUTER = "vllm-router==0.1.17"
SGLANG_ROUTER = "sglang-router==0.3.2"
LITELLM = "litellm[proxy]==1.108.0"
EMBEDDINGS, CHAT = "/v1/embeddings", "/v1/chat/completions"
TEXT = "the quick brown fox jumps over the lazy dog and runs far away from here " * 2
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


def readiness(task: Task) -> str:
    ready = wire.Readiness(
        phase=wire.Phase.READY,
        model="file:///bench",
        revision=REVISION,
        answer_digest=DIGEST,
        tasks=[task],
        capacity=wire.Capacity(limit=100_000),
    )
    return msgspec.json.encode(ready).decode()


@dataclass
class Subject:
    """What is measured.

    Attributes:
        port: where it is asked.
        process: whose CPU time counts.
        headers: what every request to it carries.
    """

    port: int
    process: Process
    headers: Mapping[str, str] = field(default_factory=dict)


# Byte movers --------------------------------------------------------------------------------------


def _nginx_config(folder: Path, body: str) -> str:
    return f"""
worker_processes 1; worker_rlimit_nofile 16384; daemon off;
pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 8192; }}
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
        config.write_text(_nginx_config(folder, body))
        command = [measure.program("nginx"), "-c", str(config), "-p", str(folder)]
        with Process(command, core) as process:
            process.wait_for(listening(port))
            yield process


@contextlib.contextmanager
def backends(addresses: Sequence[str]) -> Iterator[None]:
    """Workers that answer at once: what is measured is the way there and back."""
    headers = f"""
      add_header {names.ANSWER_DIGEST} "{DIGEST}";
      add_header {names.REVISION} "{REVISION}";
      add_header {names.CAPACITY} "100000;0;0.000";"""
    listen = "".join(f"listen {address}; " for address in addresses)
    server = f"""
  server {{
    {listen} default_type application/json; {headers}
    location = /readyz {{ return 200 '{readiness(Task.EMBEDDINGS)}'; }}
    location / {{ return 200 '{ANSWER}'; }}
  }}"""
    with nginx(server, int(addresses[0].rpartition(":")[2]), LOAD_CORE):
        yield


def local_addresses(count: int) -> list[str]:
    """Addresses of as many workers on this machine, all on one port."""
    port = free_port()
    if count <= 2:
        return [f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"][:count]
    return [f"127.0.{n // 250}.{1 + n % 250}:{port}" for n in range(count)]


@contextlib.contextmanager
def direct(workers: Sequence[str]) -> Iterator[Subject]:
    """Nothing in between."""
    with Process(["sleep", "3600"], None) as nobody:
        yield Subject(int(workers[0].rpartition(":")[2]), nobody)


@contextlib.contextmanager
def nginx_proxy(workers: Sequence[str], more: str = "", outside: str = "") -> Iterator[Subject]:
    port = free_port()
    servers = " ".join(f"server {worker};" for worker in workers)
    body = f"""
  {outside}
  upstream workers {{ least_conn; {servers} keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://workers; proxy_http_version 1.1;
      proxy_set_header Connection ""; {more} }} }}"""
    with nginx(body, port, SUBJECT_CORE) as process:
        yield Subject(port, process)


def nginx_stream(workers: Sequence[str]) -> "contextlib.AbstractContextManager[Subject]":
    return nginx_proxy(workers, "proxy_buffering off;")


@contextlib.contextmanager
def nginx_cache(workers: Sequence[str]) -> Iterator[Subject]:
    with (
        measure.folder() as cache,
        nginx_proxy(
            workers,
            """proxy_cache answers; proxy_cache_methods POST; proxy_cache_valid 200 10m;
            proxy_cache_key "$request_uri$request_body"; client_body_buffer_size 64k;""",
            f"proxy_cache_path {cache} keys_zone=answers:16m max_size=256m;",
        ) as subject,
    ):
        yield subject


@contextlib.contextmanager
def haproxy(workers: Sequence[str]) -> Iterator[Subject]:
    port = free_port()
    servers = "\n".join(f"  server w{n} {worker}" for n, worker in enumerate(workers))
    text = f"""
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option http-no-delay
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  balance leastconn
  http-reuse always
{servers}
"""
    with measure.folder() as folder:
        config = folder / "haproxy.cfg"
        config.write_text(text)
        command = [measure.program("haproxy"), "-db", "-f", str(config)]
        with Process(command, SUBJECT_CORE) as process:
            process.wait_for(listening(port))
            yield Subject(port, process)


@contextlib.contextmanager
def varnish(workers: Sequence[str]) -> Iterator[Subject]:
    """GET by URL: to cache POST, Varnish needs a module that Debian does not have."""
    port = free_port()
    host, _, backend = workers[0].rpartition(":")
    with measure.folder() as folder:
        config = folder / "default.vcl"
        config.write_text(
            f'vcl 4.1; backend default {{ .host = "{host}"; .port = "{backend}"; }}\n'
            "sub vcl_backend_response { set beresp.ttl = 10m; }\n"
        )
        command = [
            measure.program("varnishd"), "-F", "-f", str(config), "-n", str(folder / "state"),
            "-a", f"127.0.0.1:{port}", "-s", "malloc,256m", "-j", "none",
            "-p", "thread_pool_min=50", "-p", "thread_pools=1",
        ]  # fmt: skip
        with Process(command, SUBJECT_CORE) as process:
            process.wait_for(listening(port))
            yield Subject(port, process)


# Routers and gateways of others -------------------------------------------------------------------


@contextlib.contextmanager
def vllm_router(workers: Sequence[str]) -> Iterator[Subject]:
    port = free_port()
    command = [
        str(measure.peer_venv(VLLM_ROUTER) / "vllm-router"),
        "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
        "--prometheus-port", str(free_port()), "--log-level", "error",
        "--worker-urls", *(f"http://{worker}" for worker in workers),
    ]  # fmt: skip
    with Process(command, SUBJECT_CORE) as process:
        process.wait_for(listening(port))
        yield Subject(port, process)


@contextlib.contextmanager
def sglang_router(workers: Sequence[str]) -> Iterator[Subject]:
    port = free_port()
    command = [
        str(measure.peer_venv(SGLANG_ROUTER) / "python"), "-m", "sglang_router.launch_router",
        "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
        "--prometheus-port", str(free_port()), "--log-level", "error",
        "--worker-urls", *(f"http://{worker}" for worker in workers),
    ]  # fmt: skip
    with Process(command, SUBJECT_CORE) as process:
        process.wait_for(listening(port))
        yield Subject(port, process)


def _litellm_config(worker: str, path: str, cache: dict[str, object] | None) -> dict[str, object]:
    parameters = {"model": "openai/bench", "api_base": f"http://{worker}/v1", "api_key": "none"}
    parameters |= {"input_cost_per_token": 1e-9, "output_cost_per_token": 1e-9}
    config: dict[str, object] = {
        "model_list": [{"model_name": "bench", "litellm_params": parameters}],
        "general_settings": {"master_key": KEY},
    }
    if cache is not None:
        kind = "aembedding" if path == EMBEDDINGS else "acompletion"
        told = {**cache, "supported_call_types": [kind, kind[1:]]}
        config["litellm_settings"] = {"cache": True, "cache_params": told}
    return config


@contextlib.contextmanager
def litellm(
    workers: Sequence[str], path: str = EMBEDDINGS, cache: dict[str, object] | None = None
) -> Iterator[Subject]:
    port = free_port()
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # Otherwise it asks the network for prices.
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "NO_DOCS": "True",
    }
    with measure.folder() as folder:
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(_litellm_config(workers[0], path, cache)))
        command = [
            str(measure.peer_venv(LITELLM) / "litellm"), "--config", str(config),
            "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1",
            "--telemetry", "False",
        ]  # fmt: skip
        with Process(command, SUBJECT_CORE, environment) as process:
            process.wait_for(_says_yes(port, "/health/liveliness"), 180)
            yield Subject(port, process, {"Authorization": f"Bearer {KEY}"})


def _says_yes(port: int, path: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return ready


# Ours ---------------------------------------------------------------------------------------------


def _one_service(workers: Sequence[str], task: Task) -> list[wire.Service]:
    return [service("bench", workers, task)]


def service(name: str, workers: Sequence[str], task: Task = Task.EMBEDDINGS) -> wire.Service:
    return wire.Service(
        name=name,
        revision=REVISION,
        answer_digest=DIGEST,
        tasks=[task],
        public=True,
        endpoints=[wire.Endpoint(url=f"http://{w}", revision=REVISION) for w in workers],
    )


@contextlib.contextmanager
def sluice(
    workers: Sequence[str],
    *options: str,
    path: str = EMBEDDINGS,
    services: Sequence[wire.Service] | None = None,
    seconds: float = 60,
    python: str = sys.executable,
) -> Iterator[Subject]:
    """With everything on that it has; ``python`` is the interpreter that runs it."""
    task = Task.EMBEDDINGS if path == EMBEDDINGS else Task.CHAT
    with measure.folder() as folder:
        table = folder / "services.yaml"
        listed = list(services or _one_service(workers, task))
        table.write_bytes(msgspec.json.encode(wire.ServiceTable(services=listed)))
        port, admin = free_port(), free_port()
        access, headers = access_options(folder)
        command = [
            python, "-m", "sluice_gateway", "--discovery", f"static:{table}",
            "--port", str(port), "--admin-port", str(admin), *access, *options,
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")}
        with Process(command, SUBJECT_CORE, environment) as process:
            process.wait_for(listening(port), seconds)
            process.wait_for(_all_ready(admin, sum(len(s.endpoints) for s in listed)), seconds)
            yield Subject(port, process, headers)


def access_options(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Keys and limits on: the options of the gateway, and what callers send.

    The limits are never reached; what is measured is asking them.
    """
    rate = parse_rate("1000000/s")
    key = make_key()
    tenant = TenantEntry(
        "bench",
        (names.DEFAULT_NAMESPACE,),
        limits=Limits(requests=rate, inputs=rate, tokens=rate),
        keys=(KeyEntry(key.id, key.sha256),),
    )
    path = folder / "keys.yaml"
    path.write_text(write_key_file(KeyFile((tenant,))))
    headers = {"Authorization": f"Bearer {key.text}"}
    return ["--auth", "keys", "--keys-file", str(path)], headers


SLUICE_OFF = ["TLS"]
"""What is not on in the runs of ours. On are: API keys, limits of the tenant's requests, inputs and
tokens, metrics, request ids, demand; of the cache what the line of a table says."""


def _all_ready(admin: int, count: int) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{admin}/internal/services", timeout=30
            ) as answer:
                told = json.load(answer)
        except (urllib.error.URLError, OSError):
            return False
        states = [e["state"] for entry in told["services"] for e in entry["endpoints"]]
        return states.count("ready") == count

    return ready


# Requests -----------------------------------------------------------------------------------------


def body(text: str = TEXT) -> str:
    return json.dumps({"input": text, "model": "bench", "encoding_format": "base64"})


def lua(subject: Subject, *lines: str) -> str:
    """The beginning of a script for wrk."""
    given = {"Content-Type": "application/json", **subject.headers}
    headers = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in given.items())
    return 'wrk.method = "POST"\n' + headers + "\n".join(lines) + "\n"


def same(subject: Subject, _seed: int) -> str:
    return lua(subject, f"wrk.body = '{body()}'")


def get(subject: Subject, _seed: int) -> str:
    return lua(subject, 'wrk.method = "GET"')


def unique(subject: Subject, seed: int) -> str:
    return lua(
        subject,
        f"local n = math.floor({seed * 100_000_000})",
        "request = function()",
        "  n = n + 1",
        "  return wrk.format(nil, nil, nil,",
        f"""    '{{"input":"' .. n .. ' {TEXT}","model":"bench","encoding_format":"base64"}}')""",
        "end",
    )


def no_store(subject: Subject, seed: int) -> str:
    return unique(subject, seed) + 'wrk.headers["Cache-Control"] = "no-store"\n'


@contextlib.contextmanager
def redis() -> Iterator[Path]:
    """A Redis on the load's core; its socket."""
    with measure.folder() as folder:
        path = folder / "redis.sock"
        command = [
            measure.program("redis-server"), "--port", "0", "--unixsocket", str(path),
            "--unixsocketperm", "777", "--save", "",
            "--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru",
        ]  # fmt: skip
        with Process(command, LOAD_CORE) as process:
            process.wait_for(path.exists)
            yield path
