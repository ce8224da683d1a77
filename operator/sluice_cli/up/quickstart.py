"""What is printed once answers can be given: the ready line, and ``curl`` lines to paste.

``control.py`` calls :meth:`Quickstart.turn` each turn, once the gateway is ready.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from sluice_api.fields import AUTO
from sluice_api.tasks import Task
from sluice_cli.up.service import LocalService

_TICKET = "I was charged twice this month and want my money back."
_LABELS = {
    "billing": "a question about an invoice, a charge or a refund",
    "delivery": "a parcel that is late, lost or damaged",
    "technical": "a device or an app that does not work",
}
_TEXT = "Maria Lopez moved from New Haven to Bern in May."
_LETTER = (
    "the weather was fine and many people were in the streets . anna went to the market in the "
    "morning . a band played songs that everybody could sing . there one could see apples and pay "
    "for them ."
)
_EXAMPLES: dict[Task, tuple[str, dict[str, Any]]] = {
    Task.EMBEDDINGS: ("/v1/embeddings", {"input": "Where is my parcel?"}),
    Task.CLASSIFICATION: ("/v1/classify", {"input": _TICKET}),
    Task.ZERO_SHOT: ("/v1/classify", {"input": _TICKET, "parameters": {"labels": _LABELS}}),
    Task.TOKEN_CLASSIFICATION: ("/v1/tokens/classify", {"input": _TEXT}),
    Task.QUESTION_ANSWERING: (
        "/v1/answer",
        {"input": {"question": "Who moved to Bern?", "context": _TEXT}},
    ),
    Task.RELATION_EXTRACTION: (
        "/v1/relations",
        {
            "input": {
                "text": "anna berg founded acme .",
                "entities": [
                    {"start": 0, "end": 9, "label": "PER"},
                    {"start": 18, "end": 22, "label": "ORG"},
                ],
            }
        },
    ),
    Task.FILL_MASK: ("/v1/fill-mask", {"input": "the capital of peru is [MASK] ."}),
    Task.RERANK: ("/v1/rerank", {"query": "refunds", "documents": [_TICKET, _TEXT]}),
    Task.SUMMARIZATION: ("/v1/summarize", {"input": _LETTER}),
    Task.TRANSLATION: (
        "/v1/translate",
        {"input": "the dog sees the house .", "parameters": {"target": "bo"}},
    ),
    Task.TEXT_GENERATION: (
        "/v1/completions",
        {"prompt": "The owl lives", "temperature": 0, "max_tokens": 32},
    ),
    Task.CHAT: (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Where does the owl live?"}],
            "temperature": 0,
            "max_tokens": 64,
        },
    ),
}
"""Route and body of each task, as the models of ``manifests/examples`` take them; where another
model spells masks or languages otherwise, its error says how. Nothing is drawn by chance: the
answer is kept."""


_CONTENT = "-H 'Content-Type: application/json'"
_WITH_KEY = f'-H "Authorization: Bearer $SLUICE_API_KEY" {_CONTENT}'


class Quickstart:
    """Says once that the first answer can be given, and how each service is asked.

    Args:
        url: of the gateway.
        say: prints a line for people and for scripts.
        with_keys: callers need one, and whoever has it sees what its tenant may call.
    """

    def __init__(self, url: str, say: Callable[[str], None], *, with_keys: bool = False) -> None:
        self._url = url
        self._with_keys = with_keys
        self._say = say
        self._announced = False
        self._hinted: set[str] = set()
        self._introduced: set[str] = set()

    def __repr__(self) -> str:
        return f"<Quickstart announced={self._announced} {sorted(self._introduced)}>"

    def turn(self, services: Sequence[LocalService]) -> None:
        """Print what has become true since the last turn."""
        if not self._announced:
            if not any(s.answers for s in services) and not all(s.settled for s in services):
                return
            self._announced = True
            self._say(f"ready {self._url}")
        for service in services:
            callable_here = self._with_keys or service.spec.spec.access.public
            if callable_here and (service.answers or service.settled):
                self._introduce(service)

    def _introduce(self, service: LocalService) -> None:
        if service.key in self._introduced:
            return
        if tasks := _tasks(service):
            self._introduced.add(service.key)
            # With its namespace every tenant means the same.
            model = service.key if self._with_keys else service.label
            finds = bool(service.spec.spec.entities_from)
            for line in curl_lines(self._url, model, tasks, finds_entities=finds):
                self._say(line.replace(_CONTENT, _WITH_KEY) if self._with_keys else line)
        elif service.settled and service.key not in self._hinted:
            self._hinted.add(service.key)
            self._say(
                f"# {service.label} starts with its first request: POST {self._url}/v1/embeddings"
                f' or /v1/classify with "model": "{service.label}"'
            )


def _tasks(service: LocalService) -> list[Task]:
    """What its workers told, else what its file says; empty while neither does."""
    written = service.spec.spec.model.task
    return service.tasks or ([] if written == AUTO else [Task(written)])


def curl_lines(
    url: str, model: str, tasks: Sequence[Task], *, finds_entities: bool = False
) -> list[str]:
    """A line for each task, and the last one again from the cache.

    A model that is made for another task has none for its raw labels (classification).

    Args:
        finds_entities: another service does, for relations between them.
    """
    lines = []
    for place, task in enumerate(tasks):
        if place == 0 or task is not Task.CLASSIFICATION:
            path, body = _EXAMPLES[task]
            if task is Task.RELATION_EXTRACTION and finds_entities:
                body = {"input": "Nina comes from New Haven ."}
            elif [*tasks] == [
                Task.RELATION_EXTRACTION
            ]:  # It writes them, and finds entities itself.
                body = {"input": "Lena Fox works for Acme today ."}
            lines.append(_curl(url + path, {"model": model, **body}))
    if lines:
        # With its headers: Cache-Status tells where the answer came from.
        lines.append(lines[-1].replace("curl -s ", "curl -si ", 1))
    return lines


def _curl(url: str, body: dict[str, Any]) -> str:
    text = shlex.quote(json.dumps(body))
    return f"curl -s {url} {_CONTENT} -d {text}"
