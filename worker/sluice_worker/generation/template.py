"""A model's chat template: from messages to the text that the model continues.

Rendered by transformers, whose environment is sandboxed: a template comes with a model's files and
must not be able to do more than write text.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from jinja2 import TemplateError, UndefinedError
from transformers.utils.chat_template_utils import render_jinja_template

from sluice_api.errors import ApiError
from sluice_api.shapes.template_variables import FIELD, Variables, place
from sluice_api.wording import sentence
from sluice_worker.generation.quoting import Quoting
from sluice_worker.generation.variables import check_read
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import CHAT_TEMPLATE, TOOL_TEMPLATE, Manifest

_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""What transformers lets a template name."""
_REFUSALS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError)
"""What a template raises by itself, and what becomes of values that it was not written for."""


class ChatTemplate:
    """One model's. Safe to use from several threads at once.

    Args:
        source: the template.
        special: the special tokens it may name, by their name.
        with_tools: the one for conversations with tools; None for the same one.
    """

    def __init__(
        self, source: str, special: Mapping[str, Any], with_tools: str | None = None
    ) -> None:
        self.source = source
        self.with_tools = source if with_tools is None else with_tools
        self._special = special

    def __repr__(self) -> str:
        return f"<ChatTemplate of {len(self.source)} characters>"

    def render(
        self, messages: str, tools: str | None, variables: Variables, quoting: Quoting
    ) -> list[str]:
        """The text for a conversation and tools, both canonical JSON, and variables.

        Returns it in parts that are to be tokenised one by one (see ``quoting``): mostly one.

        Raises:
            ApiError: the template refuses what is given, with its own words, or does not read a
                variable.
        """
        told = _as_templates_take_them(msgspec.json.decode(messages))
        offers = None if tools is None else msgspec.json.decode(tools)
        told, offers, values, mark = quoting.marked(told, offers, variables)
        try:
            check_read(variables, self._source(offers))
            text = self._text(told, offers, values)
        except _REFUSALS as error:
            why = sentence(str(error)[:200])
            where = self._at_fault(error, told, offers, variables)
            raise ApiError(
                "invalid_field",
                f"{where}: the model's chat template does not take what is given: {why}",
                param=where,
            ) from None
        return [part for part in text.split(mark) if part]

    def _source(self, offers: Any) -> str:
        return self.source if offers is None else self.with_tools

    def _text(self, told: Any, offers: Any, values: Mapping[str, Any]) -> str:
        try:
            return self._rendered(told, offers, values)
        except UndefinedError:  # Some ask for what OpenAI's clients leave out.
            return self._rendered(_with_contents(told), _with_parameters(offers), values)

    def _rendered(self, told: Any, offers: Any, values: Mapping[str, Any]) -> str:
        rendered: Any = render_jinja_template(
            conversations=[told],
            tools=offers,
            chat_template=self._source(offers),
            add_generation_prompt=True,
            **self._special,
            **values,
        )
        return str(rendered[0][0])

    def _at_fault(self, error: Exception, told: Any, offers: Any, variables: Variables) -> str:
        """The member that the template refuses: the messages where it says the same without the
        variables."""
        if not variables:
            return "messages"
        try:
            self._text(told, offers, {})
        except _REFUSALS as without:
            if str(without) == str(error):
                return "messages"
        return place(next(iter(variables))) if len(variables) == 1 else FIELD


def load_template(manifest: Manifest) -> ChatTemplate | None:
    """The template of a verified folder, or None. Raises ModelRejected."""
    tokenizer = manifest.read_json("tokenizer_config.json") or {}
    special = manifest.read_json("special_tokens_map.json") or {}
    source, with_tools = _sources(manifest, tokenizer.get("chat_template"))
    if source is None:
        return None
    if not isinstance(source, str) or not isinstance(with_tools, str | None):
        raise ModelRejected("tokenizer_config.json: chat_template is no text. Save it again.")
    found = {name: tokenizer.get(name) or special.get(name) for name in _SPECIAL}
    texts = {
        name: token["content"] if isinstance(token, dict) else token
        for name, token in found.items()
        if token
    }
    return ChatTemplate(source, texts, with_tools)


def _sources(manifest: Manifest, configured: Any) -> tuple[Any, Any]:
    """A model's template and the one it has for tools, if it has another. Files go first."""
    named = {"default": configured}
    if isinstance(configured, list):
        named = {entry["name"]: entry["template"] for entry in configured}
    for name, file in (("default", CHAT_TEMPLATE), ("tool_use", TOOL_TEMPLATE)):
        if file in manifest.sums:
            named[name] = (manifest.folder / file).read_text(encoding="utf-8")
    with_tools = named.get("tool_use")
    return named.get("default") or with_tools, with_tools


def _as_templates_take_them(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As transformers does: without what is null, which many a template would spell out.

    Templates want the arguments of earlier calls as objects; OpenAI has them as text.
    """
    told = [
        {name: value for name, value in message.items() if value is not None}
        for message in messages
    ]
    for message in told:
        for call in message.get("tool_calls", ()):
            try:
                call["function"]["arguments"] = msgspec.json.decode(call["function"]["arguments"])
            except msgspec.DecodeError:
                pass  # A model's own mistake, come back: the template gets the text.
    return told


def _with_contents(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With an empty text in messages that are calls alone; Qwen 3's first template joins it."""
    return [{"content": "", **message} for message in messages]


def _with_parameters(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """With an empty description, and the schema of no parameters; Hermes' template writes both."""
    if tools is None:
        return None
    absent = {"description": "", "parameters": {"type": "object", "properties": {}}}
    return [{**tool, "function": {**absent, **tool["function"]}} for tool in tools]
