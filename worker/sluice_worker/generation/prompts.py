"""From a call to prompts: tokens, how to choose the ones that follow, and what to look for in them.

Runs on the tokeniser's threads. Everything a caller can get wrong is found here, before any
computing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from sluice_api.call import Call, place
from sluice_api.errors import ApiError
from sluice_api.shapes.generation import Parameters, parameters_of
from sluice_api.tasks import Task
from sluice_worker.engines.decoder.sampling import Sampler
from sluice_worker.generation.defaults import Defaults
from sluice_worker.generation.grammar import SchemaGrammar, Vocabulary
from sluice_worker.generation.quoting import Quoting
from sluice_worker.generation.template import ChatTemplate
from sluice_worker.generation.tools import ToolParser, parser_for
from sluice_worker.models.tokenizer import CHARACTERS_PER_TOKEN, Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready to be continued.

    Attributes:
        samplers: one for each of the differing texts that are to be written.
        copies: how many times each is told.
    """

    ids: list[int]
    max_tokens: int
    samplers: Sequence[Sampler]
    copies: int

    @property
    def choices(self) -> int:
        return len(self.samplers)


@dataclass(frozen=True, slots=True)
class Prompts:
    """A whole call.

    Attributes:
        sampled: chance has a part in the answer.
    """

    parameters: Parameters
    prompts: Sequence[Prompt]
    sampled: bool


class PromptMaker:
    """Of one model. Safe to use from several threads at once.

    Args:
        most_tokens: of a prompt and what follows it together.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        defaults: Defaults,
        template: ChatTemplate | None,
        *,
        most_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.defaults = defaults
        self.template = template
        self.most_tokens = most_tokens
        self._quoting = Quoting(tokenizer.markers())

    def __repr__(self) -> str:
        return f"<PromptMaker of at most {self.most_tokens} tokens, {self.template!r}>"

    def prepare(self, call: Call, grammar: SchemaGrammar | None = None) -> Prompts:
        """Raises ApiError naming field, value and fix.

        Args:
            grammar: that every choice keeps to.
        """
        parameters = parameters_of(call)
        self._check(parameters)
        sampled = self.defaults.draws(parameters)
        choices = parameters.n if sampled else 1
        prompts = [
            Prompt(
                ids,
                self._room(ids, parameters, call, index),
                [self._sampler(parameters, choice, grammar) for choice in range(choices)],
                parameters.n // choices,
            )
            for index, ids in enumerate(self._tokens(call, parameters))
        ]
        return Prompts(parameters, prompts, sampled)

    def _sampler(
        self, parameters: Parameters, choice: int, grammar: SchemaGrammar | None
    ) -> Sampler:
        """How the tokens of one choice are chosen."""
        own = None if grammar is None else grammar.copy()
        return Sampler(self.defaults.sampling(parameters, choice), own)

    def tool_parser(self, parameters: Parameters) -> ToolParser | None:
        """What finds calls in one choice; None where none are looked for. Raises ApiError."""
        if parameters.tools is None or parameters.tool_choice == "none":
            return None
        assert self.template is not None, "only a chat has tools"
        source = self.template.with_tools
        offered = {tool["function"]["name"] for tool in msgspec.json.decode(parameters.tools)}
        parser = parser_for(source, parameters.tool_choice, offered) if "tools" in source else None
        if parser is None:
            raise ApiError(
                "invalid_field",
                "tools: this model's chat template shows no tools, or calls in no spelling that is "
                "known (Hermes and Qwen, Llama 3, Mistral). Leave tools out.",
                param="tools",
            )
        return parser

    def _tokens(self, call: Call, parameters: Parameters) -> list[list[int]]:
        if call.task == Task.CHAT:
            assert self.template is not None, "else the task is not offered"
            tools = None if parameters.tool_choice == "none" else parameters.tools
            (conversation,) = call.inputs
            variables = parameters.chat_template_kwargs
            parts = self.template.render(str(conversation), tools, variables, self._quoting)
            return [self._rendered(parts)]
        return [self._encoded(call, index) for index in range(len(call.inputs))]

    def _encoded(self, call: Call, index: int) -> list[int]:
        value, where = call.inputs[index], place(call, index)
        if isinstance(value, str):
            encoded = self.tokenizer.encode(value, where=where)
        else:
            encoded = self.tokenizer.accept(value, where=where)
        return list(encoded.ids)

    def _rendered(self, parts: list[str]) -> list[int]:
        """The tokens of a rendered conversation, in which special tokens are spelled out."""
        characters = sum(map(len, parts))
        if characters > self.most_tokens * CHARACTERS_PER_TOKEN:
            raise self._too_long("messages", f"{characters} characters")
        return [token for part in parts for token in self.tokenizer.spelled(part)]

    def _room(self, ids: list[int], parameters: Parameters, call: Call, index: int) -> int:
        """How many tokens may follow ``ids``. Raises ApiError when that is too few."""
        where = place(call, index)
        if not ids:
            raise ApiError("invalid_field", f"{where}: holds no token.", param=where)
        room = self.most_tokens - len(ids)
        wanted = parameters.max_tokens
        if room < 1:
            raise self._too_long(where, f"{len(ids)} tokens")
        if wanted is not None and wanted > room:
            also = " (or max_completion_tokens)" if call.task == Task.CHAT else ""
            raise ApiError(
                "input_too_long",
                f"max_tokens{also}: got {wanted} after a prompt of {len(ids)} tokens, the model "
                f"takes {self.most_tokens} together; at most {room} are possible.",
                param="max_tokens",
            )
        return room if wanted is None else wanted

    def _too_long(self, where: str, got: str) -> ApiError:
        return ApiError(
            "input_too_long",
            f"{where}: got {got}, the model takes {self.most_tokens} tokens with the answer.",
            param=where,
        )

    def _check(self, parameters: Parameters) -> None:
        self.tool_parser(parameters)
        size = self.vocabulary.size
        for token in parameters.logit_bias:
            if int(token) >= size:
                raise ApiError(
                    "invalid_field",
                    f"logit_bias: got token id {token}, the model has ids 0 to {size - 1}.",
                    param="logit_bias",
                )
