"""One request without its route: what gateway and worker both compute with.

A codec (``sluice_api.shapes``) turns a body into a :class:`Call` and a list of :class:`Item` back
into a body. Because both sides use the same codecs, the gateway can answer from its cache exactly
what the worker would have answered, whatever route the question came by.
"""

from typing import Annotated, Any, Final, NamedTuple, Protocol

import msgspec

from sluice_api.errors import ApiError
from sluice_api.tasks import DETERMINISM, Determinism, Task

MAX_INPUTS = 2048
"""How many inputs one request may carry (OpenAI's own bound for embeddings)."""
MAX_TOKEN_IDS = 1 << 20
"""How many token ids one input may be: as many as the longest contexts of models."""

REUSABLE: Final = frozenset((Determinism.PURE, Determinism.GENERATION))
"""Of calls whose answers may be stored and shared."""

Input = str | list[int]
"""One text, or one text as the model's own token ids.

What has a structure (a question and its context, a chat) is one text of JSON, in one spelling only:
:func:`structured` and :func:`members_of` write and read it.
"""

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], msgspec.Meta(max_length=MAX_TOKEN_IDS)]
GivenInputs = (
    str
    | Annotated[
        list[str | TokenId | TokenIds],
        msgspec.Meta(extra_json_schema={"maxItems": MAX_TOKEN_IDS}),
    ]
)
"""How a body gives them: a text, a list of texts, a list of token ids, or a list of such lists.

:func:`inputs_of` holds the list to its bound, which depends on what it is of.
"""


class Item(msgspec.Struct, frozen=True, gc=False):
    """The answer to one input, ready to be put into any route's answer.

    ``json`` is the canonical answer object without its ``index``; it always ends with the member
    ``"tokens"``, which repeats :attr:`tokens`.
    """

    json: bytes
    tokens: int


class Stream(NamedTuple):
    """That an answer is to come in parts, as server-sent events.

    Attributes:
        include_usage: the caller wants the tokens counted in a last chunk.
    """

    include_usage: bool


class Call(msgspec.Struct):
    """What is asked, by whichever route it came.

    Attributes:
        model: the model's name as the caller wrote it; None when left out.
        task: None until the service is known (the V2 route serves any task).
        inputs: one entry per answer.
        parameters: what can change an answer, defaults filled in, in canonical form.
        passthrough: the worker's answer to the caller's own body is the caller's answer, byte for
            byte, and :meth:`Codec.extract` can read every item from it.
        options: what only changes how the answer is written; belongs to the codec.
        sampled: chance has a part in the answer; the codec sets it for tasks that generate.
        stream: how the answer is to be streamed; None for a plain one.
        entities_from: the service that is to find what inputs lack before they are complete.
        listed: the body has its inputs in a list, so that errors name one by its place there.
    """

    codec: "Codec"
    model: str | None
    task: Task | None
    inputs: list[Input]
    parameters: dict[str, Any] = {}
    passthrough: bool = True
    options: Any = None
    sampled: bool = False
    stream: Stream | None = None
    entities_from: str | None = None
    listed: bool = False

    @property
    def reusable(self) -> bool:
        """Whether the answer follows from the call, so that it may be stored and shared."""
        return self.determinism in REUSABLE

    @property
    def determinism(self) -> Determinism:
        """How far the answer follows from the call, by the call itself.

        A model may still sample where the call leaves that open; the gateway learns which do.
        """
        if self.task is None:
            return Determinism.NEVER
        of_task = DETERMINISM[self.task]
        if self.sampled and of_task is Determinism.GENERATION:
            return Determinism.SAMPLED
        return of_task

    def canonical_parameters(self) -> bytes:
        """The parameters as bytes: equal meaning, equal bytes."""
        return msgspec.json.encode(self.parameters, order="deterministic")


class Codec(Protocol):
    """One wire shape. Stateless; a module-level instance per shape.

    Attributes:
        field: the member of the body that holds the inputs, as errors name it.
        parameters: what stands before the name of a parameter, as errors name it; None where the
            route takes none.
    """

    name: str
    field: str
    parameters: str | None

    def parse(self, body: bytes) -> Call:
        """Read and check a body. Raises :class:`ApiError` that names field, value and fix."""
        ...

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        """Write the answer to ``call``; ``items`` are in the order of ``call.inputs``."""
        ...

    def extract(self, call: Call, body: bytes) -> list[Item]:
        """Read the items out of a worker's answer to a pass-through call.

        Raises :class:`ValueError` when the answer does not have the shape it must have.
        """
        ...


class CanonicalCodec(Codec, Protocol):
    """The shape of a task's canonical route, whose answers hold whole items."""

    def canonical_body(self, call: Call, inputs: list[Input]) -> bytes:
        """The body that asks for ``inputs`` of ``call`` alone; the call may be another codec's."""
        ...


class _DataObject(msgspec.Struct):
    index: int
    tokens: int


class _DataEnvelope(msgspec.Struct):
    data: list[msgspec.Raw]


_decode_envelope = msgspec.json.Decoder(_DataEnvelope).decode
_decode_object = msgspec.json.Decoder(_DataObject).decode
_decode_mapping = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def join_items(items: list[Item]) -> tuple[bytes, int]:
    """The elements of ``data`` with their index, comma separated, and the sum of their tokens."""
    if len(items) == 1:
        return b'{"index":0,' + items[0].json[1:], items[0].tokens
    parts, tokens = [], 0
    for index, item in enumerate(items):
        parts.append(b'{"index":%d,%b' % (index, item.json[1:]))
        tokens += item.tokens
    return b",".join(parts), tokens


def split_items(body: bytes, expected: int) -> list[Item]:
    """Undo :func:`join_items` on a whole answer of the ``data`` shape.

    Raises ValueError unless ``data`` holds exactly ``expected`` elements, indexed in order.
    """
    try:
        data = _decode_envelope(body).data
        if len(data) != expected:
            raise ValueError(f"{len(data)} answers to {expected} inputs")
        items = []
        for index, raw in enumerate(data):
            element = bytes(raw)
            head = _decode_object(element)
            if head.index != index:
                raise ValueError(f"answer {index} has index {head.index}")
            prefix = b'{"index":%d,' % index
            if element.startswith(prefix):
                items.append(Item(b"{" + element[len(prefix) :], head.tokens))
            else:  # A worker that is not ours may order the members as it likes.
                members = _decode_mapping(element)
                members.pop("index", None)
                members["tokens"] = members.pop("tokens")
                items.append(Item(msgspec.json.encode(members), head.tokens))
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    return items


def write_list(model: str, items: list[Item]) -> bytes:
    """The whole answer of the routes that answer a list of inputs with a list of objects."""
    data, tokens = join_items(items)
    return (
        b'{"object":"list","model":%b,"data":[%b],'
        b'"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (msgspec.json.encode(model), data, tokens, tokens)
    )


def write_body(call: Call, inputs: list[Input], parameters: dict[str, Any]) -> bytes:
    """``{"input", "model"?, "parameters"}``: the body of those routes. None is left out."""
    body: dict[str, Any] = {"input": inputs}
    if call.model is not None:
        body["model"] = call.model
    body["parameters"] = {name: value for name, value in parameters.items() if value is not None}
    return msgspec.json.encode(body)


def structured(members: dict[str, Any]) -> str:
    """An input with a structure as the one text it is keyed and counted by."""
    return msgspec.json.encode(members, order="deterministic").decode()


def members_of(value: Input) -> dict[str, Any]:
    """Undo :func:`structured`."""
    assert isinstance(value, str), "the codecs of this task write structures only"
    members: dict[str, Any] = msgspec.json.decode(value)
    return members


def place(call: Call, index: int) -> str:
    """How the caller finds input ``index`` again."""
    return f"{call.codec.field}[{index}]" if call.listed else call.codec.field


def instead(codec: Codec) -> str:
    """What else than sending less a caller can do whose input is too long for a task that cuts."""
    if codec.parameters is None:
        return ""
    return f" With {codec.parameters}truncate: true its beginning is used."


def inputs_of(value: GivenInputs | list[str], field_name: str) -> tuple[list[Input], bool]:
    """The inputs that a body gives, and whether in a list; all of one kind. Raises ApiError."""
    if isinstance(value, str):
        return [value] if value else check_inputs([value], field_name, listed=False), False
    given: list[Any] = value
    if len(given) > MAX_TOKEN_IDS and isinstance(given[0], int):
        raise ApiError(
            "invalid_field",
            f"{field_name}: got {len(given)} token ids, at most {MAX_TOKEN_IDS} are allowed.",
            param=field_name,
        )
    if given and all(isinstance(entry, int) for entry in given):
        return check_inputs([given], field_name, listed=False), False
    for index, entry in enumerate(given):
        if isinstance(entry, int):
            raise ApiError(
                "invalid_field",
                f"{field_name}[{index}]: got the number {entry} in a list that also holds texts "
                "or lists. A list holds only texts, only token ids, or only lists of token ids.",
                param=f"{field_name}[{index}]",
            )
    return check_inputs(given, field_name), True


def check_inputs(inputs: list[Input], field_name: str, *, listed: bool = True) -> list[Input]:
    """Refuse an empty or over-long list and empty inputs, naming the field."""
    if not inputs:
        raise ApiError(
            "invalid_field",
            f"{field_name}: got an empty list, needs at least one input.",
            param=field_name,
        )
    if len(inputs) > MAX_INPUTS:
        raise ApiError(
            "too_many_inputs",
            f"{field_name}: got {len(inputs)} inputs, at most {MAX_INPUTS} are allowed.",
            param=field_name,
        )
    for index, value in enumerate(inputs):
        if not value:
            where = f"{field_name}[{index}]" if listed else field_name
            raise ApiError(
                "invalid_field",
                f"{where}: got an empty input, needs at least one character or token.",
                param=where,
            )
    return inputs
