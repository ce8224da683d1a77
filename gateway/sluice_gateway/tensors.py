"""Requests of the Open Inference Protocol whose tensors are bytes: JSON to everything behind.

``dispatch`` translates such a request first; its answer is translated back on its way out. How the
bytes are laid out stands in ``sluice_api.shapes.v2_binary``.
"""

from typing import Final

from sluice_api import names
from sluice_api.shapes import v2_binary
from sluice_gateway.request import Answer, Caller, Request

BYTES: Final = b"application/octet-stream"
_SIGN: Final = b'"binary_data'


def spoken(request: Request) -> bool:
    """Whether the request, of a route with tensors, has some as bytes or asks for some."""
    return request.head.json_bytes is not None or _SIGN in request.body


def as_json(request: Request) -> Request:
    """The same request in JSON. Raises ApiError."""
    body, wanted = v2_binary.read(request.body, request.head.json_bytes)
    caller = _Translated(request.caller, wanted) if wanted.any() else request.caller
    found = Request(
        request.head, body, caller, request.id, request.received, counted=request.counted
    )
    found.tenant, found.limit_lines = request.tenant, request.limit_lines
    return found


class _Translated:
    """A caller who wants outputs as bytes."""

    def __init__(self, caller: Caller, wanted: v2_binary.Wanted) -> None:
        self._caller = caller
        self._wanted = wanted

    def answer(self, answer: Answer) -> None:
        if answer.status == 200:
            body, json_bytes = v2_binary.write(answer.body, self._wanted)
            if json_bytes is not None:
                line = f"{names.INFERENCE_JSON_BYTES}: {json_bytes}\r\n".encode()
                answer = Answer(200, BYTES, answer.headers + line, body)
        self._caller.answer(answer)

    # Tensors do not come in streams. --------------------------------------------------------------

    def begin(self, answer: Answer) -> bool:
        return self._caller.begin(answer)

    def send(self, data: bytes) -> bool:
        return self._caller.send(data)

    def end(self) -> None:
        self._caller.end()

    def break_off(self, data: bytes) -> None:
        self._caller.break_off(data)
