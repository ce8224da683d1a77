"""Bodies of the control surface, typed for the OpenAPI document and for nothing else.

The main path never builds one of these: requests are checked by the codecs in ``sluice_api``.
"""

from importlib.metadata import version
from typing import Final, Literal

from pydantic import BaseModel, Field

from sluice_api.tasks import Task

VERSION: Final = version("sluice")


class ModelCard(BaseModel):
    """One model, as ``GET /v1/models`` shows it."""

    id: str = Field(description="What to write into `model`.", examples=["minilm"])
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Always 0; part of OpenAI's shape.")
    owned_by: str = Field(description="The namespace.", examples=["default"])
    tasks: list[Task] = Field(description="What it can do, the one it is made for first.")
    revision: str = Field(description="Digest of everything that can change an answer.")
    state: Literal["ready", "starting", "asleep", "failed"] = Field(
        description="A model that is asleep is woken by the first request for it. "
        "One that failed answers 503 until a start succeeds."
    )
    reason: str = Field(default="", description="Of state `failed`: one word for programs.")
    message: str = Field(default="", description="Why no worker can answer, where that is known.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


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


class V2Live(BaseModel):
    live: bool


class V2Ready(BaseModel):
    ready: bool


class V2ModelReady(BaseModel):
    name: str
    ready: bool


class Embeddings(BaseModel):
    """`POST /v1/embeddings`, OpenAI's shape."""

    input: str | list[str] | list[int] | list[list[int]] = Field(
        examples=["The food was delicious."]
    )
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    truncate: bool = False


class ClassifyParameters(BaseModel):
    labels: list[str] | dict[str, str] | None = Field(
        default=None, description="Makes it zero-shot: names, or a map from name to description."
    )
    multi_label: bool | None = None
    top_k: int | None = None
    hypothesis_template: str | None = None
    truncate: bool = False


class Classify(BaseModel):
    """`POST /v1/classify`."""

    input: str | list[str] = Field(examples=["My order arrived broken."])
    model: str | None = None
    parameters: ClassifyParameters = ClassifyParameters()


class ClassifyText(BaseModel):
    """`POST /classify`."""

    text: str
    model: str | None = None


class Predict(BaseModel):
    """`POST /predict`."""

    text: str | list[str]
    model: str | None = None


class V2Tensor(BaseModel):
    name: str = Field(examples=["text"])
    shape: list[int] = Field(examples=[[1]])
    datatype: str = Field(examples=["BYTES"])
    data: list[str]


class Infer(BaseModel):
    """`POST /v2/models/{name}/infer`, Open Inference Protocol V2."""

    inputs: list[V2Tensor]
    id: str | None = None
    parameters: dict[str, object] | None = None
    outputs: list[dict[str, object]] | None = None


BODIES: dict[str, type[BaseModel]] = {
    "/v1/embeddings": Embeddings,
    "/v1/classify": Classify,
    "/classify": ClassifyText,
    "/predict": Predict,
}
"""By path; the V2 route takes :class:`Infer`."""
