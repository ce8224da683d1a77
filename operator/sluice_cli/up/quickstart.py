"""The ``curl`` lines printed once the first answer can be given; they are meant to be pasted."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from sluice_api.tasks import Task

_TICKET = "I was charged twice this month and want my money back."
_LABELS = {
    "billing": "a question about an invoice, a charge or a refund",
    "delivery": "a parcel that is late, lost or damaged",
    "technical": "a device or an app that does not work",
}


def curl_lines(url: str, model: str, tasks: Sequence[Task]) -> list[str]:
    """Lines that work for a service: each of its tasks, and the last one again from the cache."""
    lines = []
    if Task.EMBEDDINGS in tasks:
        lines.append(
            _curl(f"{url}/v1/embeddings", {"model": model, "input": "Where is my parcel?"})
        )
    if Task.ZERO_SHOT in tasks:
        body = {"model": model, "input": _TICKET, "parameters": {"labels": _LABELS}}
        lines.append(_curl(f"{url}/v1/classify", body))
    elif Task.CLASSIFICATION in tasks:
        lines.append(_curl(f"{url}/v1/classify", {"model": model, "input": _TICKET}))
    if lines:
        # With its headers: Cache-Status tells where the answer came from.
        lines.append(lines[-1].replace("curl -s ", "curl -si ", 1))
    return lines


def _curl(url: str, body: dict[str, Any]) -> str:
    text = shlex.quote(json.dumps(body))
    return f"curl -s {url} -H 'Content-Type: application/json' -d {text}"
