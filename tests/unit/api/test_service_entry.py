"""The gateway's line of a service, from its spec and from what the operator wrote."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from sluice_api import wire
from sluice_api.inference_service import Spec, canary_of, revision_of
from sluice_api.service_entry import (
    FATAL_REASONS,
    PASSING_REASONS,
    entry_from_status,
    service_entry,
)
from sluice_api.service_status import REASONS
from sluice_api.tasks import Task
from tests.support.resources import service


def test_the_resource_and_the_wire_have_the_same_defaults() -> None:
    entry = service_entry(service())
    assert entry.cache == wire.CacheRules()
    assert entry.limits == wire.LimitRules()
    assert entry == wire.Service(name="minilm", revision=revision_of(service()))


_LARGEST: dict[tuple[str, ...], str] = {
    ("limits", "waiting"): "limits.maxWaiting",
    ("limits", "timeoutSeconds"): "limits.timeout",
    ("limits", "startTimeoutSeconds"): "limits.startTimeout",
    ("limits", "queueTimeoutSeconds"): "limits.queueTimeout",
    ("limits", "firstByteTimeoutSeconds"): "limits.firstByteTimeout",
    ("limits", "tokenTimeoutSeconds"): "limits.tokenTimeout",
    ("limits", "streamTimeoutSeconds"): "limits.streamTimeout",
    ("limits", "hedge", "afterSeconds"): "limits.hedge.after",
    ("cache", "ttlSeconds"): "cache.ttl",
    ("cache", "staleWhileRevalidateSeconds"): "cache.staleWhileRevalidate",
    ("cache", "staleIfErrorSeconds"): "cache.staleIfError",
}
"""Members of the wire by the field of the spec that they come from."""


@pytest.mark.parametrize(("member", "field"), _LARGEST.items(), ids=_LARGEST.values())
def test_the_resource_and_the_wire_allow_as_much(member: tuple[str, ...], field: str) -> None:
    kind = _kind(field)
    spec: Any = kind.maximum
    for step in reversed(field.split(".")):
        spec = {step: spec}
    line = msgspec.to_builtins(service_entry(service(**spec)))
    *before, last = member
    holder = line
    for step in before:
        holder = holder[step]
    assert holder[last] == kind.parse(kind.maximum)
    assert msgspec.convert(line, wire.Service)
    holder[last] = holder[last] * 2 if isinstance(holder[last], int) else holder[last] + 0.001
    with pytest.raises(msgspec.ValidationError, match=rf"{'.'.join(member)}`$"):
        msgspec.convert(line, wire.Service)


def test_every_number_of_the_wire_is_compared() -> None:
    numbers = {
        (part, *below)
        for part, kind in (("limits", wire.LimitRules), ("cache", wire.CacheRules))
        for below in _numbers(kind)
    }
    assert numbers == set(_LARGEST)


def _numbers(kind: type[msgspec.Struct]) -> Iterator[tuple[str, ...]]:
    for member in msgspec.structs.fields(kind):
        told = str(member.type)
        if "HedgeRules" in told:
            yield from ((member.encode_name, *below) for below in _numbers(wire.HedgeRules))
        elif "int" in told or "float" in told:
            yield (member.encode_name,)


def _kind(path: str) -> Any:
    """The kind of the spec's field at ``path``."""
    section: Any = Spec
    for step in path.split("."):
        section = next(field.content for field in section.fields() if field.name == step)
    return section


def test_a_hedge_without_a_time_learns_it() -> None:
    assert service_entry(service(limits={"hedge": {}})).limits.hedge == wire.HedgeRules()


def test_a_cache_may_be_off() -> None:
    assert service_entry(service(cache={"enabled": False})).cache.enabled is False


def test_the_gateway_gets_everything() -> None:
    changed = service(
        metadata__namespace="search",
        cache={
            "ttl": "1h",
            "sharing": "service",
            "generation": "never",
            "precompute": [{"task": "chat", "body": {"messages": []}}],
        },
        limits={
            "maxWaiting": 5,
            "timeout": "2s",
            "startTimeout": "3s",
            "queueTimeout": "4s",
            "firstByteTimeout": "5s",
            "tokenTimeout": "6s",
            "streamTimeout": "7s",
            "hedge": {"after": "80ms"},
        },
        access={"tenants": ["a"]},
        entitiesFrom="shared/ner",
    )
    endpoint = wire.Endpoint(url="http://127.0.0.1:1", revision="r")
    entry = service_entry(
        changed, answer_digest="sha256:1", tasks=[Task.EMBEDDINGS], endpoints=[endpoint]
    )
    assert entry == wire.Service(
        name="minilm",
        namespace="search",
        revision=revision_of(changed),
        answer_digest="sha256:1",
        tasks=[Task.EMBEDDINGS],
        public=False,
        tenants=["a"],
        entities_from="shared/ner",
        cache=wire.CacheRules(ttl_seconds=3600.0, sharing="service", generation="never"),
        limits=wire.LimitRules(
            waiting=5,
            timeout_seconds=2.0,
            start_timeout_seconds=3.0,
            queue_timeout_seconds=4.0,
            first_byte_timeout_seconds=5.0,
            token_timeout_seconds=6.0,
            stream_timeout_seconds=7.0,
            hedge=wire.HedgeRules(after_seconds=0.08),
        ),
        endpoints=[endpoint],
        precompute=[wire.Precomputed(task=Task.CHAT, body={"messages": []})],
    )


def test_before_the_first_write_the_spec_tells_the_revision() -> None:
    assert entry_from_status(service(), {}) == service_entry(service())


def test_the_status_tells_which_revision_answers_and_what_it_loaded() -> None:
    status = {
        "revision": "old",
        "revisions": [
            {"name": "old", "role": "stable", "answerDigest": "sha256:1", "tasks": ["embeddings"]},
            {"name": "new", "role": "next", "answerDigest": "sha256:2", "tasks": ["zero-shot"]},
        ],
    }
    entry = entry_from_status(service(), status)
    assert (entry.revision, entry.answer_digest, entry.tasks, entry.canary) == (
        *("old", "sha256:1", [Task.EMBEDDINGS], None),
    )


def test_a_task_of_a_newer_version_is_left_aside() -> None:
    revision = {"name": revision_of(service()), "tasks": ["telepathy", "embeddings"]}
    entry = entry_from_status(service(), {"revisions": [revision]})
    assert entry.tasks == [Task.EMBEDDINGS]


def test_a_canary_is_told_once_it_exists() -> None:
    trial = service(rollout__canary={"model": {"uri": "hf://a/b"}, "weight": 25})
    changed = canary_of(trial)
    assert changed is not None
    assert entry_from_status(trial, {}).canary is None
    there = {"name": revision_of(changed), "role": "canary", "answerDigest": "sha256:3"}
    entry = entry_from_status(trial, {"revision": revision_of(trial), "revisions": [there]})
    assert entry.canary == wire.Canary(
        revision=revision_of(changed), weight=25, answer_digest="sha256:3"
    )
    assert entry_from_status(service(), {"revisions": [there]}).canary is None


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ({"status": "False", "reason": "ModelNotFound"}, "does not exist (ModelNotFound)"),
        ({"status": "False", "reason": "QuotaExceeded"}, "no quota left"),
        # A node may be on its way: callers wait as long as for a start.
        ({"status": "False", "reason": "Unschedulable"}, ""),
        ({"status": "False", "reason": "Starting"}, ""),
        ({"status": "True", "reason": "Asleep"}, ""),
        ({"status": "True", "reason": "ModelNotFound"}, ""),
    ],
)
def test_callers_are_told_what_waiting_would_not_mend(condition: Any, told: str) -> None:
    status = {"conditions": [{"type": "Ready", "message": "pod secret-pod-1", **condition}]}
    failure = entry_from_status(service(), status).failure
    assert (failure is not None) is bool(told)
    if failure is not None:
        assert told in failure.message
        assert "secret-pod" not in failure.message


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ({"status": "False", "reason": "Unschedulable"}, "no machine has room"),
        ({"status": "False", "reason": "NodeLost"}, "(NodeLost)"),
        ({"status": "False", "reason": "ModelNotFound"}, ""),
        ({"status": "True", "reason": "Starting"}, ""),
    ],
)
def test_callers_are_told_what_holds_a_start_up(condition: Any, told: str) -> None:
    status = {"conditions": [{"type": "Ready", "message": "pod secret-pod-1", **condition}]}
    delay = entry_from_status(service(), status).delay
    assert (delay is not None) is bool(told)
    if delay is not None:
        assert told in delay.message and delay.reason == condition["reason"]
        assert "secret-pod" not in delay.message


@pytest.mark.parametrize(
    ("scaling", "paused", "condition", "told"),
    [
        ({"mode": "off", "minReplicas": 0}, False, {"status": "True", "reason": "Asleep"}, "off"),
        ({"mode": "off", "minReplicas": 1}, False, {"status": "False", "reason": "Starting"}, ""),
        ({"mode": "signal", "minReplicas": 0}, False, {"status": "True", "reason": "Asleep"}, ""),
        ({"minReplicas": 0}, False, {"status": "True", "reason": "Asleep"}, ""),
        ({}, True, {"status": "True", "reason": "Paused"}, "paused"),
        ({}, True, {"status": "False", "reason": "Paused"}, ""),
    ],
)
def test_callers_are_told_that_no_request_wakes_it(
    scaling: Any, paused: bool, condition: Any, told: str
) -> None:
    status = {"conditions": [{"type": "Ready", **condition}]}
    dormancy = entry_from_status(service(scaling=scaling, paused=paused), status).dormancy
    assert (dormancy is not None) is bool(told)
    if dormancy is not None:
        assert told in dormancy.message and dormancy.reason in dormancy.message


def test_what_callers_are_told_has_a_known_reason() -> None:
    assert FATAL_REASONS.keys() | PASSING_REASONS.keys() <= set(REASONS)
    assert not FATAL_REASONS.keys() & PASSING_REASONS.keys()
