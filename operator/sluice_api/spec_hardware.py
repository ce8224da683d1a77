"""``spec.hardware``: what a replica runs on and where. A section of ``inference_service``."""

from typing import Annotated, Any, Final

from pydantic import Field

from sluice_api.fields import Choice, Text, TextMap, Whole
from sluice_api.pod_fields import Member, PodList, PodObject, Quantity
from sluice_api.section import Section
from sluice_api.spec_rules import HARDWARE_RULES, RESOURCES_RULES

GPU_RESOURCE: Final = "nvidia.com/gpu"

_CPU = "cores such as 500m, 0.5 or 2"
_BYTES = "bytes such as 512Mi or 4Gi"
_NAME = Text(
    253,
    pattern="^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$",
    form="a name of lower-case letters, digits, hyphens and dots",
)

_AFFINITY = PodObject(
    {
        "nodeAffinity": Member("object", "Which nodes are required or preferred."),
        "podAffinity": Member("object", "Beside which pods."),
        "podAntiAffinity": Member("object", "Away from which pods."),
    }
)
_TOLERATION = PodObject(
    {
        "key": Member("string", "The taint's key; left out: every key."),
        "operator": Member(
            "string",
            "Equal (default) or Exists; Lt and Gt where the cluster has them.",
            ("Equal", "Exists", "Lt", "Gt"),
        ),
        "value": Member("string", "The taint's value, with all but Exists."),
        "effect": Member(
            "string",
            "NoSchedule, PreferNoSchedule or NoExecute; left out: all.",
            ("NoSchedule", "PreferNoSchedule", "NoExecute"),
        ),
        "tolerationSeconds": Member("integer", "How long, with NoExecute; left out: for ever."),
    }
)
_SPREAD = PodObject(
    {
        "maxSkew": Member("integer", "How uneven the spread may be."),
        "topologyKey": Member("string", "Label of nodes that makes one domain."),
        "whenUnsatisfiable": Member(
            "string", "DoNotSchedule or ScheduleAnyway.", ("DoNotSchedule", "ScheduleAnyway")
        ),
        "labelSelector": Member("object", "Which pods count; left out: the revision's workers."),
        "minDomains": Member("integer", "Domains there must be at least."),
        "matchLabelKeys": Member("array", "Labels of the pod that select, too."),
        "nodeAffinityPolicy": Member("string", "Honor or Ignore.", ("Honor", "Ignore")),
        "nodeTaintsPolicy": Member("string", "Honor or Ignore.", ("Honor", "Ignore")),
    },
    required=("maxSkew", "topologyKey", "whenUnsatisfiable"),
)


class Gpu(Section):
    """Which accelerators a replica gets. Only with device gpu."""

    count: Annotated[int, Whole(1, 16)] = Field(
        default=1,
        description="How many for one replica. Sluice's own engine computes on one; more are for"
        " an engine.image that can use them.",
        examples=[2],
    )
    resource: Annotated[
        str,
        Text(
            253,
            pattern="^[a-z0-9][a-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9._-]*$",
            form="the name of an extended resource such as nvidia.com/gpu",
        ),
    ] = Field(
        default=GPU_RESOURCE,
        description="What the nodes call it. A change makes a new revision.",
        examples=["nvidia.com/mig-1g.10gb"],
    )
    product: Annotated[
        str,
        Text(
            63,
            pattern="^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$",
            form="the value of the node label nvidia.com/gpu.product",
        ),
    ] = Field(
        default="",
        description="Only nodes whose label nvidia.com/gpu.product says so; empty for any. A change"
        " makes a new revision, because products differ in what they compute.",
        examples=["NVIDIA-H200"],
    )


class Requests(Section):
    """What a replica is guaranteed; the scheduler looks for a node that has it."""

    cpu: Annotated[str, Quantity(_CPU)] = Field(
        default="1", description="CPU cores.", examples=["500m"]
    )
    memory: Annotated[str | None, Quantity(_BYTES, auto=True)] = Field(
        default=None,
        description="Memory in bytes; auto takes limits.memory, or 2Gi where that is auto too.",
        examples=["4Gi"],
    )
    storage: Annotated[str | None, Quantity(_BYTES, auto=True)] = Field(
        default=None,
        description="Disk of the node in bytes (ephemeral-storage), where a downloaded model lies;"
        " auto asks for none in particular.",
        examples=["20Gi"],
    )


class ResourceLimits(Section):
    """What a replica may take at most."""

    cpu: Annotated[str | None, Quantity(_CPU, auto=True)] = Field(
        default=None,
        description="CPU cores. auto sets no limit: a replica computes with as many threads as it"
        " has requested whole cores, and may use what the node has to spare besides.",
        examples=["2"],
    )
    memory: Annotated[str | None, Quantity(_BYTES, auto=True)] = Field(
        default=None,
        description="Memory in bytes, beyond which the kernel ends the replica; auto takes what"
        " requests.memory says.",
        examples=["4Gi"],
    )
    storage: Annotated[str | None, Quantity(_BYTES, auto=True)] = Field(
        default=None,
        description="Disk of the node in bytes, beyond which the replica is evicted; auto sets no"
        " limit.",
        examples=["20Gi"],
    )


class Resources(Section):
    """How much of a node a replica takes."""

    rules = RESOURCES_RULES

    requests: Requests = Field(
        default_factory=Requests, description="What a replica is guaranteed."
    )
    limits: ResourceLimits = Field(
        default_factory=ResourceLimits, description="What a replica may take at most."
    )


class Hardware(Section):
    """What a replica runs on."""

    rules = HARDWARE_RULES

    device: Annotated[str, Choice("cpu", "gpu")] = Field(
        default="cpu",
        description="Where the model is computed. A change makes a new revision, because answers"
        " differ in their last digits.",
        examples=["gpu"],
    )
    gpu: Gpu = Field(default_factory=Gpu, description="Which accelerators a replica gets.")
    resources: Resources = Field(
        default_factory=Resources, description="How much of a node a replica takes."
    )
    node_selector: Annotated[dict[str, str], TextMap(max_items=32, max_value_length=63)] = Field(
        default_factory=dict,
        description="Labels that a node must have.",
        examples=[{"pool": "inference"}],
    )
    tolerations: Annotated[tuple[dict[str, Any], ...], PodList(_TOLERATION, max_items=32)] = Field(
        default=(),
        description="Taints of nodes that do not keep replicas away, as in a pod.",
        examples=[[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]],
    )
    affinity: Annotated[dict[str, Any], _AFFINITY] = Field(
        default_factory=dict,
        description="Nodes and pods that a replica is drawn to or kept from, as in a pod.",
        examples=[{"podAntiAffinity": {}}],
    )
    topology_spread_constraints: Annotated[
        tuple[dict[str, Any], ...], PodList(_SPREAD, max_items=16)
    ] = Field(
        default=(),
        description="How replicas spread over zones or nodes, as in a pod.",
        examples=[
            [
                {
                    "maxSkew": 1,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "ScheduleAnyway",
                }
            ]
        ],
    )
    priority_class_name: Annotated[str, _NAME] = Field(
        default="",
        description="PriorityClass of the replicas; empty for the cluster's default.",
        examples=["inference-high"],
    )
    runtime_class_name: Annotated[str, _NAME] = Field(
        default="",
        description="RuntimeClass of the replicas; empty for the cluster's default.",
        examples=["nvidia"],
    )
