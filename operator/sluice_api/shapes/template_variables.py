"""Variables of a model's chat template that a caller sets: ``chat_template_kwargs``, as vLLM and
SGLang call them, and OpenAI's ``reasoning_effort``, which is one of them.

They are parameters of the call. Whether the template reads them, only the worker can tell.
"""

from typing import Annotated, Final, Literal

import msgspec

from sluice_api.decode import shown
from sluice_api.errors import ApiError

FIELD: Final = "chat_template_kwargs"
EFFORT: Final = "reasoning_effort"
MOST_VARIABLES: Final = 16
MOST_CHARACTERS: Final = 1024
MOST: Final = 1_000_000
"""Of a number: a template may write as many blanks, and budgets of tokens are below."""

RESERVED: Final = frozenset(
    (
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("conversations", "chat_template", "return_assistant_tokens_mask", "self"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
        *("mask_token", "range", "dict", "lipsum", "cycler", "joiner", "namespace"),
        *("raise_exception", "strftime_now"),
    )
)
"""Names that whoever renders a template gives it: what is in them is not a caller's."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Value = (
    bool
    | Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]
    | Annotated[float, msgspec.Meta(ge=-MOST, le=MOST)]
    | Annotated[str, msgspec.Meta(max_length=MOST_CHARACTERS)]
    | None
)
Variables = dict[Name, Value]
GivenVariables = Annotated[Variables, msgspec.Meta(max_length=MOST_VARIABLES)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""As OpenAI has them; which of them a model knows is its template's business."""


def variables_of(given: Variables | None, effort: str | None) -> Variables:
    """What both members set together. Raises ApiError."""
    variables = dict(given or {})
    for name in variables:
        if name in RESERVED:
            raise ApiError(
                "invalid_field",
                f"{place(name)}: this name is the renderer's own and cannot be set. Leave it out.",
                param=place(name),
            )
    if effort is None:
        return variables
    if variables.setdefault(EFFORT, effort) != effort:
        raise ApiError(
            "invalid_field",
            f"{EFFORT}: got {shown(effort)} beside {shown(variables[EFFORT])} in {FIELD}; give one "
            "of them.",
            param=EFFORT,
        )
    return variables


def place(name: str) -> str:
    """How the caller finds the variable ``name`` again."""
    return EFFORT if name == EFFORT else f"{FIELD}[{shown(name)}]"
