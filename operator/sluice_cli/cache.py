"""What ``sluice cache`` asks of a gateway, over its admin port."""

import http.client
import json
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from sluice_api import names
from sluice_api.wording import sentence

ADMIN_URL: Final = f"http://127.0.0.1:{names.ADMIN_PORT}"
SECONDS: Final = 10.0
_ROUTE: Final = "/internal/cache/invalidate"


class CacheError(Exception):
    """The gateway did not do it; the argument says why and what to do."""


def invalidate(admin_url: str, what: dict[str, str], token: str | None) -> bool:
    """Have no answer of ``what`` (service, namespace, tenant) given any more.

    Returns whether the gateway knows the service; there may have been one of that name.

    Args:
        token: of a ServiceAccount that may; in a cluster only.

    Raises:
        CacheError: it was refused, or nobody could be asked.
    """
    headers = {"content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    try:
        connection = _connect(admin_url)
        connection.request("POST", _ROUTE, json.dumps(what), headers)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CacheError(
            f"{admin_url}: {sentence(str(error))}"
            f" Needs the admin port of a gateway that runs, such as {ADMIN_URL}."
        ) from None
    if answer.status != 200:
        raise CacheError(_told(body) or f"{admin_url} answered {answer.status}.")
    return _says(body, "known") is not False


def _connect(url: str) -> http.client.HTTPConnection:
    split = urlsplit(url)
    if split.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(split.netloc, timeout=SECONDS, context=context)
    if split.scheme != "http":
        raise ValueError("not an http:// or https:// address")
    return http.client.HTTPConnection(split.netloc, timeout=SECONDS)


def _told(body: bytes) -> str:
    """The gateway's own words; empty where there are none."""
    return str(_says(body, "detail") or "")


def _says(body: bytes, member: str) -> Any:
    try:
        return json.loads(body)[member]
    except (ValueError, KeyError, TypeError):
        return None
