"""Ask a server and read its answer in JSON, error answers too."""

import json
import urllib.error
import urllib.request
from typing import Any


class Reply(dict[str, Any]):
    """A JSON answer with its status and headers; header names in lower case."""

    status: int
    headers: dict[str, str]


def get(url: str, **headers: str) -> Reply:
    """Ask ``url``; ``headers`` with underscores for dashes."""
    return _ask(urllib.request.Request(url, headers=_named(headers)))


def post(url: str, body: Any, **headers: str) -> Reply:
    """Send ``body`` as JSON to ``url``; ``headers`` with underscores for dashes."""
    told = {"content-type": "application/json", **_named(headers)}
    return _ask(urllib.request.Request(url, data=json.dumps(body).encode(), headers=told))


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def _ask(request: urllib.request.Request) -> Reply:
    try:
        response = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        reply = Reply(json.load(response))
        reply.status = response.status
        reply.headers = {name.lower(): value for name, value in response.headers.items()}
    return reply
