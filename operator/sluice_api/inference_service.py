"""The resource: what a user writes to have a model served, and what Sluice answers in status.

The CRD, its reference page and every message about a bad file are made from these models, so a
field exists here only when it works. Longer sections stand in ``spec_model``, ``spec_hardware`` and
``spec_rollout``, kinds of value in ``fields``, rules between fields in ``spec_rules``, reading
files in ``service_files``. Users of the parsed resource: the planner
(``sluice_operator.plan``), the scaling rules, ``sluice up``.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from sluice_api import bounds, names
from sluice_api.digests import revision_digest
from sluice_api.fields import Choice, Duration, Flag, Text, TextMap, TextSet, Whole
from sluice_api.pod_fields import Member, PodList, PodObject
from sluice_api.section import Section
from sluice_api.spec_hardware import GPU_RESOURCE, Hardware
from sluice_api.spec_model import Engine, Model
from sluice_api.spec_rollout import Rollout
from sluice_api.spec_rules import ACCESS_RULES, CACHE_RULES, SCALING_RULES, SPEC_RULES
from sluice_api.tasks import Task

MAX_REPLICAS = 1000
MAX_METADATA_BYTES = 262_144
"""What Kubernetes allows all annotations of an object together."""

NAME = Text(
    40,
    pattern="^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$",
    form="a name of 1 to 40 lower-case letters, digits and hyphens that starts with a letter"
    " and ends with a letter or digit (such as minilm-v2)",
)
"""A DNS-1035 label, short enough that a child's name can carry the revision too."""


class Metadata(Section):
    """What Sluice reads of Kubernetes' object metadata; what the server adds is dropped."""

    SERVER_FIELDS: ClassVar = frozenset(
        {
            "creationTimestamp",
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "finalizers",
            "generateName",
            "generation",
            "managedFields",
            "ownerReferences",
            "resourceVersion",
            "selfLink",
            "uid",
        }
    )

    name: Annotated[str, NAME] = Field(description="The name of the service.")
    namespace: Annotated[
        str,
        Text(
            63,
            pattern="^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
            form="a namespace of lower-case letters, digits and hyphens",
        ),
    ] = names.DEFAULT_NAMESPACE
    # As many and as long as the API server takes them, or gateways would not know a service that is
    # there: `kubectl apply` writes the whole of a manifest into an annotation.
    labels: Annotated[
        dict[str, str], TextMap(max_items=MAX_METADATA_BYTES, max_value_length=63)
    ] = Field(default_factory=dict)
    annotations: Annotated[
        dict[str, str],
        TextMap(max_items=MAX_METADATA_BYTES, max_value_length=MAX_METADATA_BYTES),
    ] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _drop_server_fields(cls, value: Any) -> Any:
        # So that the output of `kubectl get -o yaml` is a valid file.
        if isinstance(value, dict):
            return {name: field for name, field in value.items() if name not in cls.SERVER_FIELDS}
        return value


class Target(Section):
    """What one replica should carry."""

    concurrency: Annotated[int | None, Whole(1, 4096, auto=True)] = Field(
        default=None,
        description="Requests that should be at one replica at once, on average; auto plans for"
        " 80 % of what a replica is measured to do.",
        examples=[8],
    )


class Scaling(Section):
    """How many replicas run. The number follows demand between the two bounds."""

    rules = SCALING_RULES

    mode: Annotated[str, Choice("hpa", "direct", "signal", "off")] = Field(
        default="hpa",
        description="Who sets the number. hpa: Sluice decides and a HorizontalPodAutoscaler follows"
        " its metric; where that cannot be had, as direct. direct: Sluice decides and sets it."
        " signal and off: exactly minReplicas run, moved by nobody but you (kubectl scale, or an"
        " autoscaler of your own whose target is the InferenceService); with signal Sluice"
        " publishes what such an autoscaler can go by.",
        examples=["direct"],
    )
    min_replicas: Annotated[int, Whole(0, MAX_REPLICAS)] = Field(
        default=0,
        description="Replicas that always run; 0 lets the service sleep when nobody asks."
        " kubectl scale sets this field.",
        examples=[1],
    )
    max_replicas: Annotated[int, Whole(1, MAX_REPLICAS)] = Field(
        default=4, description="Replicas at most, whatever the demand.", examples=[10]
    )
    initial_replicas: Annotated[int, Whole(0, MAX_REPLICAS)] = Field(
        default=1,
        description="Replicas a new revision starts with to prove that it works, before anybody"
        " asks; 0 starts it with the first request.",
        examples=[0],
    )
    target: Target = Field(default_factory=Target, description="What one replica should carry.")
    idle_after: Annotated[float | None, Duration("1s", "24h", auto=True)] = Field(
        default=None,
        description="Time without requests after which a service with minReplicas 0 goes to sleep;"
        " answers from the cache do not count. auto learns it from how long a start takes:"
        " ten times that, 60s at least and 30m at most.",
        examples=["15m"],
    )


class Batching(Section):
    """How a worker puts requests together. What is not here is learnt."""

    latency_goal: Annotated[float | None, Duration("1ms", "10s", auto=True)] = Field(
        default=None,
        description="How long one batch may compute; auto lets the worker choose by device.",
        examples=["50ms"],
    )
    max_size: Annotated[int | None, Whole(1, 4096, auto=True)] = Field(
        default=None,
        description="Inputs in one batch at most; auto lets the latency goal alone decide.",
        examples=[32],
    )


PRECOMPUTED = PodObject(
    {
        "task": Member("string", "What is asked.", tuple(map(str, Task))),
        "body": Member("object", "Body of a request to the task's route, without the model."),
    },
    required=("task", "body"),
)
"""A request of the service's owner."""


class Cache(Section):
    """Answers kept to be given again. Only answers that follow from their input are kept."""

    rules = CACHE_RULES

    enabled: Annotated[bool, Flag()] = Field(
        default=True, description="Whether answers are kept.", examples=[False]
    )
    ttl: Annotated[float, Duration("1s", bounds.LONGEST_KEPT)] = Field(
        default=86400.0, description="How long an answer is fresh at most.", examples=["1h"]
    )
    stale_while_revalidate: Annotated[float, Duration("0s", bounds.LONGEST_KEPT)] = Field(
        default=600.0,
        description="How long after ttl an answer is still given at once, while it is computed anew"
        " behind the caller's back, if a replica is ready and nobody waits. 0s: never.",
        examples=["1h"],
    )
    stale_if_error: Annotated[float, Duration("0s", bounds.LONGEST_KEPT)] = Field(
        default=3600.0,
        description="How long after ttl an answer is given when no replica can give a new one."
        " 0s: never.",
        examples=["24h"],
    )
    sharing: Annotated[str, Choice("tenant", "service")] = Field(
        default="tenant",
        description="Who may be given a kept answer: tenant means the tenant who caused it,"
        " service means every tenant of the service (then the time of an answer tells whether"
        " somebody asked the same before).",
        examples=["service"],
    )
    generation: Annotated[str, Choice("deterministic", "sampled", "never")] = Field(
        default="deterministic",
        description="Which generated answers are kept: deterministic means those that follow from"
        " their request (temperature 0, or a model that does not sample by itself), sampled means"
        " also those that were drawn by chance (who asks the same again gets the same text until it"
        " expires), never means none.",
        examples=["never"],
    )
    precompute: Annotated[
        tuple[dict[str, Any], ...], PodList(PRECOMPUTED, max_items=bounds.MAX_PRECOMPUTED)
    ] = Field(
        default=(),
        description="Requests that are answered before anybody asks: at the start of each revision,"
        " and again before the answers expire, whenever a replica is ready and nobody waits. They"
        " wake nobody. Goes with sharing: service.",
        examples=[[{"task": "embeddings", "body": {"input": ["hello", "goodbye"]}}]],
    )


class Hedge(Section):
    """When a second replica is asked the same; the first answer counts, the other is stopped."""

    after: Annotated[float | None, Duration("10ms", bounds.LONGEST_HEDGE, auto=True)] = Field(
        default=None,
        description="Time without an answer from the first; auto: what 95 of 100 of the last"
        " answers took.",
        examples=["200ms"],
    )


class Limits(Section):
    """What a caller can expect at worst."""

    max_waiting: Annotated[int, Whole(0, bounds.MAX_WAITING)] = Field(
        default=1000,
        description="Requests that may wait in one gateway for a free replica; more are refused"
        " with 429.",
        examples=[200],
    )
    timeout: Annotated[float, Duration("100ms", bounds.LONGEST_WAIT)] = Field(
        default=30.0,
        description="Time from the last byte of a request to the last byte of its answer; of a"
        " streamed one, to its first event and from each to the next.",
        examples=["10s"],
    )
    start_timeout: Annotated[float, Duration("1s", bounds.LONGEST_WAIT)] = Field(
        default=120.0,
        description="How long a request is held while the service wakes or starts, before 503.",
        examples=["5m"],
    )
    queue_timeout: Annotated[float | None, Duration("10ms", bounds.LONGEST_WAIT, auto=True)] = (
        Field(
            default=None,
            description="How long a request may wait for a place at a replica that is ready, before"
            " 429; auto: as long as its deadline allows.",
            examples=["2s"],
        )
    )
    first_byte_timeout: Annotated[
        float | None, Duration("10ms", bounds.LONGEST_WAIT, auto=True)
    ] = Field(
        default=None,
        description="Time from sending a request to a replica until the answer begins, or the first"
        " event of a streamed one; then another replica is asked, and this one is taken out if it"
        " happens again. auto: as long as the request's deadline allows.",
        examples=["5s"],
    )
    token_timeout: Annotated[float | None, Duration("100ms", bounds.LONGEST_WAIT, auto=True)] = (
        Field(
            default=None,
            description="Time from each event of a streamed answer to the next; auto: timeout.",
            examples=["10s"],
        )
    )
    stream_timeout: Annotated[float, Duration("1s", bounds.LONGEST_STREAM)] = Field(
        default=3600.0,
        description="Time from the last byte of a request to the last byte of its streamed answer.",
        examples=["10m"],
    )
    hedge: Hedge | None = Field(
        default=None,
        description="Has a second replica asked where the first is slow. Only for tasks whose"
        " answers follow from the input alone, and for about 1 in 10 requests at most."
        " Without it, never.",
    )


class Access(Section):
    """Who may call the service. Left empty: the tenant of the service's namespace."""

    rules = ACCESS_RULES

    public: Annotated[bool, Flag()] = Field(
        default=False,
        description="Open to every caller; where keys are asked for, to everybody who has one.",
        examples=[True],
    )
    tenants: Annotated[
        tuple[str, ...],
        TextSet(
            Text(
                63,
                pattern="^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$",
                form="a tenant of 1 to 63 letters, digits and . _ -",
            ),
            max_items=bounds.MAX_TENANTS,
        ),
    ] = Field(
        default=(),
        description="Tenants that may call the service, beside that of its namespace.",
        examples=[["search", "support"]],
    )


class Spec(Section):
    """What is wanted."""

    rules = SPEC_RULES

    paused: Annotated[bool, Flag()] = Field(
        default=False,
        description="Whether Sluice leaves everything as it is: nothing is started, scaled, rolled"
        " out or repaired until this is false again.",
        examples=[True],
    )
    model: Model = Field(description="What is served.")
    entities_from: Annotated[
        str,
        Text(
            104,
            pattern="^(([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[a-z]([-a-z0-9]{0,38}[a-z0-9])?)?$",
            form="the name of a service, or namespace/name",
        ),
    ] = Field(
        default="",
        description="For relation extraction: the service of token classification that finds the"
        " entities of texts that come without any, by its name in this namespace or as"
        " namespace/name. It is asked with the caller's rights. Empty: entities must be given.",
        examples=["ner"],
    )
    engine: Engine = Field(default_factory=Engine, description="What computes.")
    hardware: Hardware = Field(default_factory=Hardware, description="What a replica runs on.")
    scaling: Scaling = Field(default_factory=Scaling, description="How many replicas run.")
    batching: Batching = Field(
        default_factory=Batching, description="How a worker puts requests together."
    )
    cache: Cache = Field(default_factory=Cache, description="Answers kept to be given again.")
    limits: Limits = Field(default_factory=Limits, description="What a caller can expect at worst.")
    rollout: Rollout = Field(default_factory=Rollout, description="How another revision comes in.")
    access: Access = Field(default_factory=Access, description="Who may call the service.")


class InferenceService(Section):
    """One model, served. Equal resources are equal objects."""

    api_version: Annotated[str, Choice(names.API_VERSION)] = Field(
        description="Group and version of the resource."
    )
    kind: Annotated[str, Choice(names.KIND)] = Field(description="Kind of the resource.")
    metadata: Metadata
    spec: Spec

    @property
    def key(self) -> str:
        """``namespace/name``: how callers and logs name the service."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    def __repr__(self) -> str:
        return f"<InferenceService {self.key} {self.spec.model.uri} revision={revision_of(self)}>"


def revision_of(service: InferenceService) -> str:
    """The digest of everything in the spec that can change an answer, and of nothing else.

    The device counts: it decides what ``dtype: auto`` means, and rounds differently. Generation
    settings join here when they exist. See ``docs/decisions``.
    """
    model, gpu = service.spec.model, service.spec.hardware.gpu
    return revision_digest(
        {
            "uri": model.uri,
            "revision": model.revision or None,
            "task": model.task,
            "dtype": model.dtype,
            "maxInputTokens": model.max_input_tokens,
            "engineImage": service.spec.engine.image or None,
            "device": service.spec.hardware.device,
            "gpuResource": gpu.resource if gpu.resource != GPU_RESOURCE else None,
            "gpuProduct": gpu.product or None,
        }
    )


def canary_of(service: InferenceService) -> InferenceService | None:
    """The service as its canary would have it; None without one, or when it changes no answer.

    Its ``rollout`` is empty: it is what the resource would be after promotion.
    """
    canary = service.spec.rollout.canary
    if canary is None:
        return None
    spec = service.spec.model_copy(
        update={
            "model": canary.model.over(service.spec.model) if canary.model else service.spec.model,
            "engine": canary.engine or service.spec.engine,
            "rollout": Rollout(),
        }
    )
    trial = service.model_copy(update={"spec": spec})
    return None if revision_of(trial) == revision_of(service) else trial
