"""Entities that another service finds before a relation service is asked.

A request for relations may leave the entities to a service of token classification, which it or the
relation service names. ``dispatch`` asks that service first, as the caller itself would ask it:
with the caller's rights, deadline and ``Cache-Control``, through the cache, waking it if need be.
What it finds is put into the inputs, and from there on the request is like any other that gives its
entities: its key holds what was found, however it was found.
"""

from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from sluice_api.call import Call, place
from sluice_api.errors import ApiError
from sluice_api.routes import CANONICAL_ROUTES
from sluice_api.shapes import relations, tokens
from sluice_api.tasks import Task
from sluice_gateway.head import Route
from sluice_gateway.request import Answer, Caller, Request
from sluice_gateway.service import Service
from sluice_gateway.worker_errors import at_caller

_ROUTE: Final = Route(*CANONICAL_ROUTES[Task.TOKEN_CLASSIFICATION])

_WHOLE_WORDS: Final = {"aggregation": "first"}
"""Half a word is no entity to classify."""


class Finder(NamedTuple):
    """Who is to find entities, and of what.

    Attributes:
        name: the service, as the caller would have to write it.
        param: the field of the request that names it; None where the relation service does.
        indexes: the inputs that lack entities.
    """

    name: str
    param: str | None
    indexes: list[int]


def finder_for(call: Call, service: Service) -> Finder | None:
    """Whom to ask before ``service`` can answer ``call``; None when that is asked as it is."""
    name, param = call.entities_from, "parameters.entities_from"
    if name is not None:
        return Finder(name, param, relations.without_entities(call))
    name = service.spec.entities_from
    if not name:
        return None
    if "/" not in name:  # In the namespace of who wrote it, not of who calls.
        name = f"{service.namespace}/{name}"
    indexes = relations.without_entities(call)
    return Finder(name, None, indexes) if indexes else None


def question(request: Request, call: Call, finder: Finder, caller: Caller) -> Request:
    """The request that has the entities found; its answer comes to ``caller``."""
    texts = [relations.text_of(call.inputs[index]) for index in finder.indexes]
    asked = Request(
        replace(request.head, path=_ROUTE.path, route=_ROUTE, model=None),
        msgspec.json.encode({"model": finder.name, "input": texts, "parameters": _WHOLE_WORDS}),
        caller,
        request.id,
        request.received,
        background=request.background,
    )
    asked.tenant = request.tenant
    return asked


def found_in(answer: Answer, call: Call, finder: Finder) -> list[list[tokens.Entity]]:
    """What ``answer`` says about each input. Raises ApiError in the terms of who asked ``call``."""
    if answer.error is not None:
        raise _at_caller(answer.error, call, finder)
    asked = replace(call, codec=_ROUTE.codec, inputs=[""] * len(finder.indexes))
    try:
        items = _ROUTE.codec.extract(asked, answer.body)
        return [tokens.read_item(item.json).entities for item in items]
    except ValueError:
        raise ApiError(
            "upstream_failed", f"{finder.name!r} did not answer with entities.", param=finder.param
        ) from None


def completed(call: Call, finder: Finder, found: list[list[tokens.Entity]]) -> Call:
    """``call`` as if its caller had given what was ``found``. Raises ApiError."""
    for index, entities in zip(finder.indexes, found, strict=True):
        if len(entities) > relations.MAX_FOUND:
            where = place(call, index)
            raise ApiError(
                "too_many_inputs",
                f"{where}: {finder.name!r} found {len(entities)} entities in it, at most "
                f"{relations.MAX_FOUND} are taken, because every pair is judged. Divide the text, "
                "or give the entities and the pairs that matter.",
                param=where,
            )
    given = dict(zip(finder.indexes, found, strict=True))
    return replace(call, inputs=relations.with_entities(call, given), entities_from=None)


def refused(call: Call, finder: Finder, error: ApiError) -> ApiError:
    """``error`` about the completed ``call``, to who never wrote the entities that it names."""
    # The worker was asked with a list, whatever the caller wrote.
    error = at_caller(error, call, [*range(len(call.inputs))])
    for index in finder.indexes:
        where = f"{place(call, index)}.entities"
        if error.param == where:
            named_by = finder.param or "spec.entitiesFrom of the service"
            message = f"{named_by}: {error.message.removeprefix(f'{where}: ')}"
            return ApiError(error.code, message, param=finder.param, retry_after=error.retry_after)
    return error


def _at_caller(error: ApiError, call: Call, finder: Finder) -> ApiError:
    """``error`` about the first request, to who sent the second."""
    told = at_caller(error, call, finder.indexes)
    if told.param is not None and told.param.startswith(call.codec.field):
        message = f"{told.message} So says {finder.name!r}, which is to find the entities."
        return ApiError(told.code, message, param=told.param, retry_after=told.retry_after)
    named_by = finder.param or "The service has its entities found elsewhere"
    message = f"{named_by}: {finder.name!r} did not find them. {error.message}"
    return ApiError(error.code, message, param=finder.param, retry_after=error.retry_after)
