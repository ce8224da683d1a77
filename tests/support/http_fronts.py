"""Real proxies in front of one gateway, which keep few connections to it and share them."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.redis_server import free_port

SECONDS = 60.0
"""For a proxy to listen, on a machine that does other things too."""


def _haproxy(folder: Path, port: int, gateway: int) -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(f"""
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 3s
  timeout http-request 3s
  timeout http-keep-alive 300ms
  timeout server 30s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  http-reuse always
  server g 127.0.0.1:{gateway}
""")
    return ["-db", "-f", str(config)]


def _nginx(folder: Path, port: int, gateway: int) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(f"""
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_timeout 300ms;
  client_header_timeout 3s; client_body_timeout 3s; lingering_close off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream gateway {{ server 127.0.0.1:{gateway}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;
    location / {{ proxy_pass http://gateway; }}
  }}
}}
""")
    return ["-c", str(config), "-p", str(folder)]


FRONTS = {"haproxy": _haproxy, "nginx": _nginx}


@contextmanager
def running_front(name: str, folder: Path, gateway: int) -> Iterator[int]:
    """Yields the port of one of :data:`FRONTS`, before the gateway at port ``gateway``."""
    program = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip(f"needs {name}: apt-get install {name}; `make test` does where it can")
    port = free_port()
    command = [program, *FRONTS[name](folder, port, gateway)]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(process, port, folder / f"{name}.log")
        yield port
    finally:
        process.terminate()
        process.wait(SECONDS)


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r}: {log.read_text()}") from None
            time.sleep(0.02)
