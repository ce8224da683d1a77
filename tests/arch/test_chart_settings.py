"""The chart forgets no setting of the gateway: each has a value, or a reason to have none."""

import re
from typing import Any

import pytest

from sluice_api.rates import parse_rate
from sluice_api.settings import MEBIBYTE
from sluice_gateway import settings
from tests.support import chart

VALUES: dict[str, tuple[str, Any, Any]] = {
    "zone": ("gateway.zone", "eu-1a", "eu-1a"),
    "access_log": ("gateway.accessLog", True, True),
    "log_level": ("gateway.logLevel", "debug", "debug"),
    "cache_bytes": ("gateway.cacheMiB", 7, 7 * MEBIBYTE),
    "redis_timeout": ("redis.timeout", "1s", 1.0),
    "unheard_seconds": ("gateway.cacheUnheardFor", "0s", 0.0),
    "body_bytes": ("gateway.maxBodyMiB", 7, 7 * MEBIBYTE),
    "buffered_bytes": ("gateway.maxReceivingMiB", 1_000_000, 1_000_000 * MEBIBYTE),
    "connections": ("gateway.maxConnections", 1_000_000, 1_000_000),
    "head_seconds": ("gateway.timeouts.head", "500ms", 0.5),
    "body_seconds": ("gateway.timeouts.body", "1m30s", 90.0),
    "keep_alive_seconds": ("gateway.timeouts.keepAlive", "7s", 7.0),
    "write_seconds": ("gateway.timeouts.write", "7s", 7.0),
    "connect_timeout": ("gateway.timeouts.connect", "7s", 7.0),
    "cors_origins": ("gateway.cors.origins", ["app://a", "https://b"], ("app://a", "https://b")),
    "cors_credentials": ("gateway.cors.credentials", True, True),
    "repeats_seconds": ("gateway.idempotency.ttl", "1h", 3600.0),
    "repeats_bytes": ("gateway.idempotency.miB", 0, 0),
    "slow_start": ("gateway.slowStart", "0s", 0.0),
    "drain_delay": ("gateway.drainDelay", "7s", 7.0),
    "drain_grace": ("gateway.drainGrace", "7m", 420.0),
    "limit_gateways": ("gateway.replicas", 7, 7),
    "auth": ("auth.mode", "keys", "keys"),
    "requests": ("auth.limits.requests", "7/s", parse_rate("7/s")),
    "inputs": ("auth.limits.inputs", "8/s", parse_rate("8/s")),
    "tokens": ("auth.limits.tokens", "9/s", parse_rate("9/s")),
}
"""By setting: where the chart has it, a value that is not its default, what the gateway reads."""

NO_VALUE = {
    "discovery": "in a cluster it is the cluster",
    "namespaces": "the operator looks after all of them, and a model nobody serves is of no use",
    "api_host": "Kubernetes tells every pod",
    "api_port": "Kubernetes tells every pod",
    "service_account": "where Kubernetes mounts it",
    "host": "a pod serves on all its addresses",
    "admin_host": "a pod serves on all its addresses",
    "port": "Services, probes and policies of the chart know it",
    "admin_port": "Services, probes and policies of the chart know it",
    "fd": "for a supervisor on a bare machine",
    "admin_fd": "for a supervisor on a bare machine",
    "processes": "a pod is one process; more are gateway.replicas",
    "allow_anonymous_network": "follows from auth.mode; auth.publicAccess is the chart's own check",
    "keys_file": "where the chart mounts auth.existingSecret",
    "demand_readers": "the chart's own operator",
    "redis_url": "in a Secret: redis.url, redis.existingSecret",
    "cache_secret": "where the chart mounts cache.existingSecret",
}


def test_every_setting_has_a_value_or_a_reason() -> None:
    known = [option.field for option in settings.OPTIONS]
    assert sorted(known) == sorted([*VALUES, *NO_VALUE])


def read(values: dict[str, Any]) -> dict[str, Any]:
    """What the gateway of a release reads, by setting."""
    rendered = chart.render(values)
    (deployment,) = (
        found
        for found in rendered
        if (found["kind"], found["metadata"]["name"]) == ("Deployment", "sluice-gateway")
    )
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    told = {each["name"]: each["value"] for each in variables if "value" in each}
    return {
        option.field: option.read(told[option.variable])
        for option in settings.OPTIONS
        if option.variable in told
    }


def test_the_values_are_what_the_gateway_reads() -> None:
    values: dict[str, Any] = {"auth": {"existingSecret": "mine"}}
    for path, given, _ in VALUES.values():
        *sections, last = path.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = given
    found = read(values)
    assert {field: found[field] for field in VALUES} == {
        field: expected for field, (_, _, expected) in VALUES.items()
    }


def test_defaults_are_the_gateways_own() -> None:
    told = read({})
    other = {"drain_delay", "auth", "limit_gateways", *NO_VALUE}  # A pod's differ.
    defaults = {o.field: o.read(o.default) for o in settings.OPTIONS if o.default is not None}
    assert {field: told[field] for field in told.keys() - other} == {
        field: defaults[field] for field in told.keys() - other
    }


@pytest.mark.parametrize(
    ("cors", "message"),
    [
        ({"origins": ["*", "https://a.example"]}, "give either * or origins by name"),
        ({"credentials": True}, "needs gateway.cors.origins by name; got none"),
        ({"origins": ["*"], "credentials": True}, "needs gateway.cors.origins by name; got *"),
        ({"origins": ["a.example"]}, "at '/gateway/cors/origins/0'"),
    ],
)
def test_what_a_gateway_would_not_start_with_is_refused(cors: dict[str, Any], message: str) -> None:
    with pytest.raises(chart.ChartError, match=re.escape(message)):
        chart.template({"gateway": {"cors": cors}})


@pytest.mark.parametrize("value", ["10", 10, "1s1s1s1s1s", "ms"])
def test_durations_have_a_unit(value: object) -> None:
    with pytest.raises(chart.ChartError, match="at '/gateway/slowStart"):
        chart.template({"gateway": {"slowStart": value}})
