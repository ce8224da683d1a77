"""What the two kinds of zero-shot classification share: the caller's labels, read and bounded."""

from dataclasses import dataclass

from sluice_api.call import Call
from sluice_api.errors import ApiError

MAX_PAIRS = 4096
"""Inputs times labels of one request: each pair may be a forward pass of its own."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one call.

    Attributes:
        names: in the caller's order.
        texts: what stands for each label: its description as it is, or else the template with
            the name filled in.
        multi_label: each label is decided by itself.
        top: how many to answer with; None for all.
    """

    names: list[str]
    texts: list[str]
    multi_label: bool
    top: int | None


def labels_of(call: Call) -> Labels:
    """Read the canonical parameters. Raises ApiError where there are too many pairs."""
    parameters = call.parameters
    pairs: list[list[str | None]] = parameters["labels"]
    if len(pairs) * len(call.inputs) > MAX_PAIRS:
        raise ApiError(
            "too_many_inputs",
            f"{call.codec.field}: got {len(call.inputs)} inputs with {len(pairs)} labels, "
            f"at most {MAX_PAIRS} pairs of both are allowed.",
            param=call.codec.field,
        )
    template: str = parameters["hypothesis_template"]
    return Labels(
        names=[str(name) for name, _ in pairs],
        texts=[description or template.replace("{}", str(name)) for name, description in pairs],
        multi_label=parameters["multi_label"],
        top=parameters["top_k"],
    )
