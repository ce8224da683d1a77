"""What the control surface answers. Inference has its shapes in ``sluice_api``."""

from importlib.metadata import version
from typing import Final, Literal

from pydantic import BaseModel, Field

from sluice_api.tasks import Task

VERSION: Final = version("sluice")


class ModelCard(BaseModel):
    """One model, as ``GET /v1/models`` shows it."""

    id: str = Field(description="What to write into `model`.", examples=["minilm"])
    object: Literal["model"] = "model"
    created: int = Field(
        description="When the service came to be, in seconds since the epoch; 0 where a table of "
        "services does not say."
    )
    owned_by: str = Field(description="The namespace.", examples=["default"])
    tasks: list[Task] = Field(description="What it can do, the one it is made for first.")
    revision: str = Field(description="Digest of everything that can change an answer.")
    state: Literal["ready", "starting", "asleep", "failed"] = Field(
        description="A model that is asleep is woken by the first request for it, or has a "
        "reason and answers 503. One that failed answers 503 until a start succeeds."
    )
    reason: str = Field(
        default="",
        description="Of all states but `ready`: one word for programs, where known.",
    )
    message: str = Field(default="", description="Why no worker can answer, where that is known.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TensorTasks(BaseModel):
    """The tasks that have a tensor, where a model offers others as well."""

    tasks: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: TensorTasks | None = None


class V2Server(BaseModel):
    name: str
    version: str
    extensions: list[str]


class V2Model(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool
