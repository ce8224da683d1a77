"""Ask a loaded model directly, through the real codecs and without a server."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from sluice_api.call import Call, Codec
from sluice_api.routes import POST_ROUTES
from sluice_worker.loaded import LoadedModel


def ask(model: LoadedModel, route: str, body: dict[str, Any]) -> Any:
    """The answer to ``body`` at a POST route, parsed. Raises ApiError as the worker would."""
    codec = POST_ROUTES[route]
    call = parse(codec, body)
    assert call.task is not None
    prepared = model.tasks[call.task].prepare(call)
    arrays = model.engine.run(prepared.units) if prepared.units else []
    return json.loads(codec.render(call, "model", prepared.finish(arrays)))


def asking(model: LoadedModel) -> Callable[[str, dict[str, Any]], Any]:
    """:func:`ask` of one model, to be handed on."""
    return partial(ask, model)


def parse(codec: Codec, body: dict[str, Any]) -> Call:
    return codec.parse(json.dumps(body).encode())
