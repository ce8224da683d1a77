"""What each of several processes gets of a limit that was set for all of them together.

Pure; ``supervisor`` shares out what stands in a service, ``child`` what stands in the settings.
What is not divided here is bounded elsewhere: how much runs at a worker, by the worker's own word.
"""

from dataclasses import replace

import msgspec

from sluice_api import wire
from sluice_gateway.settings import Settings


def own_share(given: Settings) -> Settings:
    """The settings of one child: memory and connections are what all have together.

    And each is a gateway of its own among those that share tenants' limits.
    """
    count = given.processes
    limits = replace(
        given.limits,
        connections=-(-given.limits.connections // count),
        buffered_bytes=max(given.limits.buffered_bytes // count, given.limits.body_bytes),
    )
    return replace(
        given,
        cache_bytes=given.cache_bytes // count,
        repeats_bytes=given.repeats_bytes // count,
        limit_gateways=given.limit_gateways * count,
        limits=limits,
    )


def share_of(spec: wire.Service, processes: int) -> wire.Service:
    """A service as one child is told of it: its queue is a part, rounded up, of the whole queue."""
    waiting = -(-spec.limits.waiting // processes)
    if waiting == spec.limits.waiting:
        return spec
    limits = msgspec.structs.replace(spec.limits, waiting=waiting)
    return msgspec.structs.replace(spec, limits=limits)
