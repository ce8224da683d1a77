"""What a sequence-to-sequence model is made to write, and how, from its configuration files alone.

Defaults come from ``generation_config.json``, or from ``config.json`` where a model is older than
that file; ``task_specific_params`` (T5, older BART) add to them. A default that the engine could
not honour rejects the model, because its answers would not be the model's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluice_api.tasks import Task
from sluice_worker.models.errors import ModelRejected

TASKS = (Task.SUMMARIZATION, Task.TRANSLATION, Task.RELATION_EXTRACTION)
"""What these models are served for."""

HONOURED = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "renormalize_logits",
    "repetition_penalty",
    "suppress_tokens",
)
"""Members of a generation configuration that the engine obeys."""

_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "constraints": (None,),
    "diversity_penalty": (None, 0, 0.0),
    "dola_layers": (None,),
    "epsilon_cutoff": (None, 0, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1, 1.0),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "sequence_bias": (None, {}),
    "stop_strings": (None, []),
    "watermarking_config": (None,),
}
"""Members that change what is written and that the engine does not know, with the values that
change nothing."""

_TRANSLATORS = ("marian", "m2m_100", "mbart", "nllb-moe", "fsmt", "plbart")
_ANY_TEXT = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
_WRITERS = ("ForConditionalGeneration", "MarianMTModel", "WithLMHeadModel")


@dataclass(frozen=True, slots=True)
class Writer:
    """How a model writes.

    Attributes:
        tasks: what it is offered for.
        defaults: members of :data:`HONOURED`.
        by_task: what ``task_specific_params`` add, by their own names; with ``prefix``, the words
            that such a model expects before a text.
        most: new tokens that its positions allow; None for any number.
    """

    tasks: tuple[Task, ...]
    defaults: Mapping[str, Any]
    by_task: Mapping[str, Mapping[str, Any]]
    most: int | None

    @property
    def start(self) -> int:
        return int(self.defaults["decoder_start_token_id"])


def writes(config: Mapping[str, Any], architecture: str) -> bool:
    """Whether a model of this architecture reads one text and writes another."""
    return bool(config.get("is_encoder_decoder")) and architecture.endswith(_WRITERS)


def describe_writer(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, wanted: Task | None
) -> Writer:
    """Read the configuration of a model that :func:`writes`. Raises ModelRejected.

    Args:
        generation: ``generation_config.json``; None where there is none.
        wanted: the task the model is to be served for, if somebody said.
    """
    where = "config.json" if generation is None else "generation_config.json"
    given = config if generation is None else {**_tokens(config), **generation}
    for name, neutral in _REFUSED.items():
        if given.get(name) not in neutral:
            raise ModelRejected(
                f"{where}: {name} is {given[name]!r}, which is not served. Take it out if the "
                "model may write without it."
            )
    by_task = config.get("task_specific_params") or {}
    defaults = {name: given[name] for name in HONOURED if given.get(name) is not None}
    if "decoder_start_token_id" not in defaults:
        raise ModelRejected(
            f"{where} has no decoder_start_token_id, so nothing can be written. Save the model "
            "again with one: model.generation_config.decoder_start_token_id = ….",
        )
    return Writer(
        tasks=_tasks(config, by_task, wanted),
        defaults=defaults,
        by_task={str(name): dict(added) for name, added in by_task.items()},
        most=config.get("max_position_embeddings"),
    )


def _tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers takes from config.json although there is a generation_config.json."""
    names = ("decoder_start_token_id", "eos_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def _tasks(
    config: Mapping[str, Any], by_task: Mapping[str, Any], wanted: Task | None
) -> tuple[Task, ...]:
    if wanted in TASKS:
        return (wanted,)
    named = [
        task
        for task in (Task.SUMMARIZATION, Task.TRANSLATION)
        if any(name.startswith(task) for name in by_task)
    ]
    if named:
        return tuple(named)
    if config["model_type"] in _TRANSLATORS:
        return (Task.TRANSLATION,)
    if config["model_type"] in _ANY_TEXT:
        return (Task.SUMMARIZATION, Task.TRANSLATION)
    return (Task.SUMMARIZATION,)
