"""Any resource that the API server accepts can be planned, and means the same to all parts."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_api.inference_service import InferenceService, canary_of, revision_of
from sluice_api.service_entry import service_entry
from sluice_api.service_files import parse_service
from sluice_api.spec_errors import SpecError
from sluice_operator import crd
from sluice_operator.plan import notes, worker_environment
from sluice_operator.scaling.rules import rules_of
from sluice_worker.settings import read_settings
from tests.support.cel_rules import broken_rules
from tests.support.resources import document
from tests.support.structural_schema import with_defaults

SCHEMA = crd.resource_schema()

DURATION = st.builds("{}{}".format, st.integers(0, 99999), st.sampled_from(["ms", "s", "m", "h"]))
OR_AUTO = st.just("auto")
AMOUNTS = st.fixed_dictionaries(
    {},
    optional={
        "cpu": st.sampled_from(["500m", "2", 1, 1, "much"]),
        "memory": st.sampled_from(["1Gi", "1024Mi", "2G", "auto"]),
    },
)
SPEC = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {
                "uri": st.sampled_from(
                    [
                        "python://p",
                        "hf://a/b",
                        "file:///m",
                        "s3://b",
                        "",
                        "pvc://c/m",
                        "oci://r/m:1",
                    ]
                )
            },
            optional={
                "credentials": st.sampled_from(["", "hub-token", "Hub"]),
                "revision": st.sampled_from(["", "main", "-x", "sha256:" + "f" * 64]),
                "maxInputTokens": OR_AUTO | st.integers(1, 512),
            },
        )
    },
    optional={
        "paused": st.booleans(),
        "engine": st.fixed_dictionaries({}, optional={"image": st.sampled_from(["a/b:1", "-"])}),
        "hardware": st.fixed_dictionaries(
            {},
            optional={
                "device": st.sampled_from(["cpu", "gpu"]),
                "gpu": st.sampled_from([{}, {"count": 2}, {"product": "NVIDIA-H200"}]),
                "resources": st.fixed_dictionaries(
                    {}, optional={"requests": AMOUNTS, "limits": AMOUNTS}
                ),
            },
        ),
        "rollout": st.sampled_from(
            [
                *({}, {"canary": {"weight": 5}}, {"canary": {"engine": {"image": "a/b:1"}}}),
                *({"canary": {"model": {"revision": "v2"}}}, {"canary": {"model": {}}}),
                {"canary": {"model": {"uri": "file:///n", "revision": "v2"}}},
                {"canary": {"model": {"uri": "hf://c/d"}, "weight": 50}},
            ]
        ),
        "scaling": st.fixed_dictionaries(
            {},
            optional={
                "minReplicas": st.integers(0, 9),
                "maxReplicas": st.integers(1, 9),
                "initialReplicas": st.integers(0, 9),
                "idleAfter": OR_AUTO | DURATION,
            },
        ),
        "limits": st.fixed_dictionaries(
            {}, optional={"timeout": DURATION, "startTimeout": DURATION}
        ),
        "cache": st.fixed_dictionaries({}, optional={"ttl": DURATION, "enabled": st.booleans()}),
        "batching": st.fixed_dictionaries({}, optional={"latencyGoal": OR_AUTO | DURATION}),
        "access": st.fixed_dictionaries(
            {},
            optional={
                "public": st.booleans(),
                "tenants": st.lists(st.sampled_from(["a", "b", "c"]), unique=True),
            },
        ),
    },
)


@settings(max_examples=120, deadline=None)  # CEL is slow in Python
@given(SPEC)
def test_both_judges_agree_and_what_passes_can_be_planned(spec: dict[str, Any]) -> None:
    resource = document()
    resource["spec"] = spec
    complete = with_defaults(SCHEMA, resource)
    theirs = set(broken_rules(SCHEMA, complete))
    try:
        service = parse_service(resource, "test")
    except SpecError as error:
        ours = {(problem.field, problem.message) for problem in error.problems}
        # Where one value of a section is wrong already, we do not compare it with others.
        assert ours <= theirs
        assert ours
        return
    assert theirs == set()
    assert parse_service(complete, "test") == service
    assert parse_service(service.to_dict(), "test") == service
    check_plan(service)
    if trial := canary_of(service):
        assert revision_of(trial) != revision_of(service)
        assert parse_service(trial.to_dict(), "test") == trial
        check_plan(trial)


def check_plan(service: InferenceService) -> None:
    environment = worker_environment(service)
    assert all(environment.values())
    settings = read_settings([], environment)
    model, batching = service.spec.model, service.spec.batching
    assert settings.max_input_tokens == model.max_input_tokens
    assert settings.model_revision == (model.revision or None)
    assert settings.max_backlog_seconds == service.spec.limits.timeout
    if batching.latency_goal is not None:
        assert settings.batch_latency_goal_seconds == batching.latency_goal
    entry = service_entry(service)
    assert entry.revision == environment["SLUICE_REVISION"] == revision_of(service)
    assert entry.cache.ttl_seconds == service.spec.cache.ttl
    rules = rules_of(service)
    assert rules.min_replicas <= rules.max_replicas
    assert rules.initial_replicas <= rules.max_replicas
    assert all(note.endswith(".") for note in notes(service))
