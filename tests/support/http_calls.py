"""POST a JSON body to a server and read its answer, error answers too."""

import json
import urllib.error
import urllib.request
from typing import Any


class Reply(dict[str, Any]):
    """A JSON answer with its status and headers; header names in lower case."""

    status: int
    headers: dict[str, str]


def post(url: str, body: Any, **headers: str) -> Reply:
    """Ask ``url``; ``headers`` with underscores for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", **named},
    )
    try:
        response = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        reply = Reply(json.load(response))
        reply.status = response.status
        reply.headers = {name.lower(): value for name, value in response.headers.items()}
    return reply
