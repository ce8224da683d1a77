"""``POST /v1/rerank``: how relevant documents are to a query. Cohere's shape.

One input for each document; the query is a parameter of all. Canonical item::

    {"relevance_score": 0.93, "chunks": 2?, "tokens": 40}

How many results are answered, in which order and with their documents or without, only changes how
the answer is written, so every question about the same query shares its scores.
"""

from typing import Annotated, Any

import msgspec

from sluice_api.call import Call, CanonicalCodec, Input, Item, check_inputs
from sluice_api.decode import decode
from sluice_api.shapes.listing import required
from sluice_api.tasks import Task


class Document(msgspec.Struct):
    """A document with more about it, of which only the text is read."""

    text: str


class RerankRequest(msgspec.Struct, forbid_unknown_fields=True):
    """``raw_scores``: the model's own numbers instead of probabilities."""

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool = False
    raw_scores: bool = False


class RerankOptions(msgspec.Struct):
    top_n: int | None
    return_documents: bool


class RerankItem(msgspec.Struct):
    """A canonical item, read back."""

    relevance_score: float
    tokens: int
    chunks: int = 1


class _Result(msgspec.Struct):
    index: int
    tokens: int


class _Answer(msgspec.Struct):
    results: list[msgspec.Raw]


_decoder = msgspec.json.Decoder(RerankRequest)
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_result = msgspec.json.Decoder(_Result).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
read_item = msgspec.json.Decoder(RerankItem).decode


class RerankCodec:
    """Implements :class:`sluice_api.call.CanonicalCodec`."""

    name = "rerank"
    field = "documents"
    parameters: str | None = ""

    def parse(self, body: bytes) -> Call:
        request = decode(_decoder, body)
        texts: list[Input] = [
            document if isinstance(document, str) else document.text
            for document in request.documents
        ]
        return Call(
            codec=self,
            model=request.model,
            task=Task.RERANK,
            inputs=check_inputs(texts, self.field),
            listed=True,
            parameters={
                "query": required(request.query, "query"),
                "raw_scores": request.raw_scores,
            },
            # Every document's result is needed, and nothing beside it.
            passthrough=not request.return_documents
            and (request.top_n is None or request.top_n >= len(texts)),
            options=RerankOptions(request.top_n, request.return_documents),
        )

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        options: RerankOptions = call.options or RerankOptions(None, False)
        scores = [read_item(item.json).relevance_score for item in items]
        order = sorted(range(len(items)), key=lambda index: -scores[index])[: options.top_n]
        results = []
        for index in order:
            document = b""
            if options.return_documents:
                document = b'"document":%b,' % msgspec.json.encode({"text": call.inputs[index]})
            results.append(b'{"index":%d,%b%b' % (index, document, items[index].json[1:]))
        tokens = sum(item.tokens for item in items)
        return (
            b'{"object":"list","model":%b,"results":[%b],'
            b'"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
            % (msgspec.json.encode(model), b",".join(results), tokens, tokens)
        )

    def extract(self, call: Call, body: bytes) -> list[Item]:
        """The items in the order of the documents, whatever the order of the results."""
        try:
            items = dict(map(_item_of, _decode_answer(body).results))
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from None
        if sorted(items) != list(range(len(call.inputs))):
            raise ValueError(f"{len(items)} results for {len(call.inputs)} documents")
        return [items[index] for index in range(len(items))]

    def canonical_body(self, call: Call, inputs: list[Input]) -> bytes:
        body: dict[str, Any] = {**call.parameters, "documents": inputs}
        if call.model is not None:
            body["model"] = call.model
        return msgspec.json.encode(body)


def _item_of(raw: msgspec.Raw) -> tuple[int, Item]:
    head, members = _decode_result(raw), _decode_members(raw)
    del members["index"]
    members["tokens"] = members.pop("tokens")  # The last member of every item.
    return head.index, Item(msgspec.json.encode(members), head.tokens)


CODEC: CanonicalCodec = RerankCodec()
