"""Requests to be precomputed that come to nothing, and why.

``service_files`` refuses them before anything runs; the operator, which must take what the API
server took, tells of them in an Event. No rule of the CRD: the API server counts comparing each
entry as too dear.
"""

from collections.abc import Collection, Iterator

import msgspec

from sluice_api.call import Call
from sluice_api.errors import ApiError
from sluice_api.inference_service import InferenceService
from sluice_api.routes import CANONICAL_ROUTES
from sluice_api.spec_errors import shown
from sluice_api.tasks import Determinism, Task, one_model_does


def refused(service: InferenceService, offered: Collection[Task] = ()) -> Iterator[tuple[str, str]]:
    """The field of each entry at fault and what is wrong: its route would refuse it, the model does
    not do it, or the answer is not kept.

    Args:
        offered: what the model does, once that is known.
    """
    for index, entry in enumerate(service.spec.cache.precompute):
        field, task = f"spec.cache.precompute[{index}]", Task(entry["task"])
        if message := _not_of_the_model(service, task, offered):
            yield f"{field}.task", message
            continue
        try:
            call = CANONICAL_ROUTES[task].codec.parse(msgspec.json.encode(entry["body"]))
        except ApiError as error:
            at = "" if error.param is None else f".{error.param}"
            yield f"{field}.body{at}", error.message.removeprefix(f"{error.param}: ")
            continue
        if call.model is not None:
            yield (
                f"{field}.body.model",
                f"got {shown(call.model)}, allowed none, because this service alone is asked."
                " Leave it out.",
            )
            continue
        if message := _not_kept(call, service.spec.cache.generation):
            yield f"{field}.body", message


def _not_of_the_model(service: InferenceService, asked: Task, offered: Collection[Task]) -> str:
    if offered:
        if asked in offered:
            return ""
        does = f"the model, which does {', '.join(offered)}"
    else:
        served = service.spec.model.task
        if served == "auto" or service.spec.engine.image:
            return ""  # Only the model itself can tell.
        together = one_model_does(Task(served))
        if asked in together:
            return ""
        does = f"spec.model.task: {served}, whose models do {', '.join(together)} at most"
    return (
        f"got {asked} beside {does}. Ask for one of these, remove the entry, or put it into a"
        f" service whose model does {asked}."
    )


def _not_kept(call: Call, generation: str) -> str:
    """Why the answer to ``call`` is not kept; empty if it is, as far as the request tells."""
    if call.determinism is Determinism.GENERATION and generation == "never":
        return (
            "got a text to be written beside spec.cache.generation: never, allowed only where it is"
            " kept. Set spec.cache.generation: deterministic, or remove the entry."
        )
    if call.determinism is Determinism.SAMPLED and generation != "sampled":
        return (
            f"got a text to be drawn by chance beside spec.cache.generation: {generation}, allowed"
            " only with sampled. Set temperature: 0, or spec.cache.generation: sampled."
        )
    return ""
