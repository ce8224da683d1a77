"""``POST /v1/chat/completions``: OpenAI's shape for the next message of a conversation.

The one input of a call is the conversation as JSON text in canonical form: texts in parts are
joined, ``developer`` is ``system``. Tools are a parameter. Items: see ``generation``.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from sluice_api.call import Call, Input, Item
from sluice_api.decode import check_depth, decode, shown
from sluice_api.errors import ApiError
from sluice_api.shapes import generated, generation
from sluice_api.shapes.generated import (
    Alternative,
    Choice,
    Delta,
    FinishReason,
    FunctionCall,
    GenerationCodec,
    StreamWriter,
    TokenLogprob,
    ToolCall,
)
from sluice_api.shapes.generation import GenerationRequest, Name, Parameters
from sluice_api.shapes.template_variables import Effort, GivenVariables, variables_of
from sluice_api.tasks import Task

KIND = "chat.completion"
CHUNK_KIND = "chat.completion.chunk"
PREFIX = "chatcmpl"
MAX_MESSAGES = 4096
MAX_TOOLS = 128
_FUNCTION_NAME = re.compile("[A-Za-z0-9_-]+")  # As OpenAI has it; how long: see Name.


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    type: Literal["text"]


class MessageToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """`index` is what a client keeps of a stream; it means nothing here."""

    function: FunctionCall
    id: str
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message of the conversation; what the OpenAI client adds to an answer is taken back.

    `reasoning_content`, or newer `reasoning`, is what other servers call the thoughts before an
    answer; templates of models that think look for the first.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=generation.MAX_ALTERNATIVES)] | None = None
    tools: Annotated[list[Tool], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: GivenVariables | None = None
    reasoning_effort: Effort | None = None


class ScoredToken(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenScore(ScoredToken):
    top_logprobs: list[ScoredToken]


class ContentScores(msgspec.Struct):
    content: list[TokenScore]
    refusal: None = None


class AnswerMessage(msgspec.Struct, omit_defaults=True):
    """The model's message; `content` is null where it only calls tools."""

    role: str
    content: str | None
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct):
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ContentScores | None = None


_TASK = Task.CHAT
"""Reading it off the class costs as much as a call."""

_decoder = msgspec.json.Decoder(ChatRequest)
_read_choice = msgspec.json.Decoder(ChatChoice).decode


class ChatCodec:
    name = "chat"
    field = "messages"
    parameters: str | None = ""

    def parse(self, body: bytes) -> Call:
        request = decode(_decoder, body)
        parameters = generation.canonical(request)
        parameters.max_tokens = _max_tokens(request)
        parameters.logprobs = _logprobs(request)
        parameters.chat_template_kwargs = variables_of(
            request.chat_template_kwargs, request.reasoning_effort
        )
        _set_tools(parameters, request)
        return Call(
            codec=self,
            model=request.model,
            task=_TASK,
            inputs=[_conversation(request.messages)],
            parameters=msgspec.to_builtins(parameters),
            sampled=generation.asks_for_sampling(parameters),
            stream=generation.stream_of(request),
        )

    def canonical_body(self, call: Call, inputs: list[Input]) -> bytes:
        """A plain body that asks for the one conversation with the parameters of ``call``."""
        (conversation,) = inputs
        assert isinstance(conversation, str), "parse() made it"
        body = generation.shared_body(call)
        body["messages"] = msgspec.Raw(conversation.encode())
        parameters = generation.parameters_of(call)
        if parameters.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": parameters.logprobs}
        if parameters.tools is not None:
            body["tools"] = msgspec.Raw(parameters.tools.encode())
            choice = parameters.tool_choice
            named = {"type": "function", "function": {"name": choice[1:]}}
            body["tool_choice"] = named if choice.startswith("=") else choice
        return msgspec.json.encode(body)

    def render(self, call: Call, model: str, items: list[Item]) -> bytes:
        return generated.write_answer(KIND, PREFIX, model, items)

    def extract(self, call: Call, body: bytes) -> list[Item]:
        return generated.read_answer(call, body)

    def item(
        self,
        choices: Sequence[Choice],
        prompt_tokens: int,
        completion_tokens: int,
        *,
        sampled: bool = False,
    ) -> Item:
        """The canonical item of one conversation's choices."""
        written = (msgspec.json.encode(_choice(choice)) for choice in choices)
        return generated.write_item(written, prompt_tokens, completion_tokens, sampled=sampled)

    def writer(self, model: str, *, include_usage: bool) -> StreamWriter:
        """Writes the chunks of one stream."""
        return ChatWriter(CHUNK_KIND, PREFIX, model, include_usage=include_usage)

    def render_stream(self, call: Call, model: str, items: list[Item]) -> bytes:
        """The whole stream of answers that are there already."""
        assert call.stream is not None
        writer = self.writer(model, include_usage=call.stream.include_usage)
        return generated.write_replay(writer, items)


class ChatWriter(StreamWriter):
    """Chunks of a message: its role, then texts and calls, then why it ended."""

    def start(self, index: int) -> bytes:
        return self._part(index, {"role": "assistant", "content": ""}, None, None)

    def delta(self, delta: Delta) -> bytes:
        parts = []
        if delta.text or delta.logprobs:
            found = None if delta.logprobs is None else scores(delta.logprobs)
            parts.append(self._part(delta.index, {"content": delta.text}, found, None))
        parts += [
            self._part(delta.index, {"tool_calls": [_call_delta(place, call)]}, None, None)
            for place, call in delta.tool_calls
        ]
        if delta.finish_reason:
            parts.append(self._part(delta.index, {}, None, delta.finish_reason))
        return b"".join(parts)

    def whole(self, index: int, choice: bytes) -> bytes:
        told = _read_choice(choice)
        message = told.message
        parts = [self.start(index)]
        if message.content or told.logprobs:
            content = {"content": message.content or ""}
            parts.append(self._part(index, content, told.logprobs, None))
        if message.tool_calls:
            calls = [_call_delta(place, call) for place, call in enumerate(message.tool_calls)]
            parts.append(self._part(index, {"tool_calls": calls}, None, None))
        parts.append(self._part(index, {}, None, told.finish_reason))
        return b"".join(parts)

    def _part(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: ContentScores | None,
        finish_reason: FinishReason | None,
    ) -> bytes:
        return self.chunk(
            msgspec.json.encode(
                {
                    "index": index,
                    "delta": delta,
                    "logprobs": logprobs,
                    "finish_reason": finish_reason,
                }
            )
        )


def scores(tokens: Sequence[TokenLogprob]) -> ContentScores:
    return ContentScores(
        [
            TokenScore(
                token.chosen.text,
                token.chosen.logprob,
                list(token.chosen.bytes),
                [_scored(alternative) for alternative in token.top],
            )
            for token in tokens
        ]
    )


def _scored(alternative: Alternative) -> ScoredToken:
    return ScoredToken(alternative.text, alternative.logprob, list(alternative.bytes))


def _choice(choice: Choice) -> ChatChoice:
    calls = list(choice.tool_calls)
    return ChatChoice(
        AnswerMessage("assistant", choice.text or (None if calls else ""), calls or msgspec.UNSET),
        choice.finish_reason,
        None if choice.logprobs is None else scores(choice.logprobs),
    )


def _call_delta(place: int, call: ToolCall) -> dict[str, Any]:
    """The first part of a call has its id and name; what comes after adds to the arguments."""
    if not call.id:
        return {"index": place, "function": {"arguments": call.function.arguments}}
    return {
        "index": place,
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": call.function.arguments},
    }


# Reading a request -------------------------------------------------------------------------------


def _max_tokens(request: ChatRequest) -> int | None:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise ApiError(
            "invalid_field",
            f"max_tokens: got {old} beside max_completion_tokens {new}; give one of them.",
            param="max_tokens",
        )
    return old if new is None else new


def _logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise ApiError(
            "invalid_field",
            "top_logprobs: only allowed together with logprobs: true.",
            param="top_logprobs",
        )
    return None


def _set_tools(parameters: Parameters, request: ChatRequest) -> None:
    choice = request.tool_choice
    if not request.tools:
        if isinstance(choice, NamedTool) or choice == "required":
            raise ApiError(
                "missing_field",
                "tools: required, because tool_choice asks for a call.",
                param="tools",
            )
        return
    names = [tool.function.name for tool in request.tools]
    for index, name in enumerate(names):
        where = f"tools[{index}].function.name"
        if _FUNCTION_NAME.fullmatch(name) is None:
            raise ApiError(
                "invalid_field",
                f"{where}: got {shown(name)}, allowed letters A to Z and a to z, digits, _ and -.",
                param=where,
            )
        if names.index(name) != index:
            raise ApiError("invalid_field", f"{where}: {name!r} is given twice.", param=where)
        check_depth(request.tools[index].function.parameters, f"tools[{index}].function.parameters")
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            where = "tool_choice.function.name"
            raise ApiError(
                "invalid_field",
                f"{where}: got {shown(choice.function.name)}, allowed {', '.join(names)}.",
                param=where,
            )
        parameters.tool_choice = f"={choice.function.name}"
    elif choice is not None:
        parameters.tool_choice = choice
    calls = parameters.tool_choice not in ("auto", "none")
    if calls and parameters.json_schema is not None:
        raise ApiError(
            "invalid_field",
            "response_format: not allowed together with a tool_choice that asks for a call.",
            param="response_format",
        )
    parameters.tools = msgspec.json.encode(request.tools).decode()
    parameters.parallel_tool_calls = request.parallel_tool_calls is not False


def _conversation(messages: list[Message]) -> str:
    """The canonical JSON text of a conversation. Raises ApiError."""
    written = [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]
    return msgspec.json.encode(written).decode()


def _message(message: Message, where: str) -> dict[str, Any]:
    calls = message.tool_calls if message.role == "assistant" else None
    thoughts = message.reasoning_content if message.reasoning is None else message.reasoning
    if message.content is None and not calls and thoughts is None:
        raise ApiError("missing_field", f"{where}.content: required.", param=f"{where}.content")
    if message.role == "tool" and message.tool_call_id is None:
        field = f"{where}.tool_call_id"
        raise ApiError("missing_field", f"{field}: required for the role tool.", param=field)
    if message.tool_calls and calls is None:
        field = f"{where}.tool_calls"
        message_ = f"{field}: only allowed for the role assistant, got {message.role}."
        raise ApiError("invalid_field", message_, param=field)
    if thoughts is not None and message.role != "assistant":
        field = f"{where}.{'reasoning_content' if message.reasoning is None else 'reasoning'}"
        message_ = f"{field}: only allowed for the role assistant, got {message.role}."
        raise ApiError("invalid_field", message_, param=field)
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    if content is None and not calls:
        content = ""  # Its thoughts were cut off.
    written: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content,
    }
    if message.name is not None:
        written["name"] = message.name
    if calls:
        written["tool_calls"] = [ToolCall(call.id, call.function) for call in calls]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    if thoughts is not None:
        written["reasoning_content"] = thoughts
    return written


CODEC: GenerationCodec = ChatCodec()
