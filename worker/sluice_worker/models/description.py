"""What a model is made for, read from its configuration files alone.

Pure: parsed JSON in, a :class:`Description` out. No weights, no model library; the operator's
questions ("which tasks, which labels, how long") could be answered from here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from sluice_api.tasks import Task
from sluice_worker.models.errors import BadConfiguration, ModelRejected
from sluice_worker.models.manifest import Manifest
from sluice_worker.models.writer import Writer, describe_writer, writes

Head = Literal["none", "sequence", "token", "span", "mask", "causal", "text"]
"""What a model says of its hidden states: nothing, one thing of the text, one of each token, where
a span begins and ends, which token stands behind a mask, which token comes next; ``text`` reads one
text and writes another."""

_BARE_HEADS = ("Model", "ForMaskedLM", "ForPreTraining", "Encoder")
_HEADS: dict[str, Head] = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "ForQuestionAnswering": "span",
    "ForQuestionAnsweringSimple": "span",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
}
"""By the end of the architecture's name; a masked language model is looked at by itself."""

_MARKERS_FIELD = "entity_markers"
_UNBOUNDED_TOKENS = 1_000_000
"""Tokenizers without a maximum write a number above this one."""
_DEFAULT_TOKENS = 512

POOLING_MODES = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
"""As sentence-transformers names them; each has a line in ``engines.pooling``."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a text's token vectors become its sentence vector.

    Attributes:
        mode: one of :data:`POOLING_MODES`.
        normalize: scale to unit length.
    """

    mode: str
    normalize: bool


@dataclass(frozen=True, slots=True)
class Classifier:
    """What the logits of a classification head mean, for a text or for each of its tokens.

    Attributes:
        labels: in the model's order.
        activation: ``softmax`` where exactly one label holds, ``sigmoid`` where each is by itself,
            ``none`` where the model predicts numbers.
        entailment: position of the label that says so, for models of natural language inference.
        contradiction: position of the opposite label; None unless ``entailment`` is there.
    """

    labels: tuple[str, ...]
    activation: Literal["softmax", "sigmoid", "none"]
    entailment: int | None = None
    contradiction: int | None = None


@dataclass(frozen=True, slots=True)
class Markers:
    """What stands around the two entities whose relation is asked for, spaces included.

    ``{label}`` in one of them is the entity's label.
    """

    head: tuple[str, str]
    tail: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Description:
    """One model, described.

    Attributes:
        pooling: there for a model without a head, and for no other.
        classifier: there for the heads ``sequence`` and ``token``.
        mask_token: as the tokenizer's files name it, for the head ``mask``; None where they do not.
        markers: there for a sequence classifier that was trained on marked entities.
        writer: there for the head ``text``.
        max_tokens: of one input, special tokens included.
        prompt: stands before every text where the caller says nothing; mostly empty.
        lower_case: texts are lowered before they are tokenised.
        token_types: the model is told which of two texts a token belongs to.
    """

    config: Mapping[str, Any]
    model_type: str
    max_tokens: int
    head: Head
    pooling: Pooling | None
    classifier: Classifier | None
    mask_token: str | None
    markers: Markers | None
    lower_case: bool
    token_types: bool
    prompt: str = ""
    writer: Writer | None = None

    @property
    def vocabulary(self) -> int:
        return int(self.config.get("vocab_size", 0))

    @property
    def stored_dtype(self) -> object:
        """The weights' type, as transformers writes it now (``dtype``) or did (``torch_dtype``)."""
        return self.config.get("dtype") or self.config.get("torch_dtype")

    @property
    def hidden_size(self) -> int:
        return int(self.config.get("hidden_size") or self.config.get("dim") or 0)


def describe(
    manifest: Manifest, max_input_tokens: int | None, task: Task | None = None
) -> Description:
    """Read the configuration files of a verified folder.

    Args:
        max_input_tokens: replaces the model's own default; never above what its positions allow.
        task: what the model is to do, where it could do one thing or another.

    Raises:
        ModelRejected: the architecture is not one that is served.
        BadConfiguration: ``max_input_tokens`` is out of range.
    """
    config = manifest.read_json("config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelRejected("config.json has no model_type, so the architecture is not known.")
    sentence = manifest.read_json("sentence_bert_config.json") or {}
    tokenizer = manifest.read_json("tokenizer_config.json") or {}
    modules = manifest.read_json("modules.json")
    architecture = next(iter(config.get("architectures") or ()), "")
    if modules is None and writes(config, architecture):
        return _writing(manifest, config, tokenizer, max_input_tokens, task)
    embeds = modules is not None or task in (Task.EMBEDDINGS, Task.ZERO_SHOT)
    head = _head(config, is_sentence_model=modules is not None, embeds=embeds)
    return Description(
        config=config,
        model_type=config["model_type"],
        max_tokens=_max_tokens(config, sentence, tokenizer, max_input_tokens),
        head=head,
        pooling=_pooling(manifest, modules) if head == "none" else None,
        classifier=_classifier(config) if head in ("sequence", "token") else None,
        mask_token=_mask_token(manifest, tokenizer) if head == "mask" else None,
        markers=_markers(config) if head == "sequence" else None,
        lower_case=bool(sentence.get("do_lower_case", False)),
        token_types=_token_types(config, tokenizer),
        prompt=_prompt(manifest) if modules is not None else "",
    )


def _writing(
    manifest: Manifest,
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    max_input_tokens: int | None,
    task: Task | None,
) -> Description:
    generation = manifest.read_json("generation_config.json")
    return Description(
        config=config,
        model_type=config["model_type"],
        max_tokens=_max_tokens(config, {}, tokenizer, max_input_tokens),
        head="text",
        pooling=None,
        classifier=None,
        mask_token=None,
        markers=None,
        lower_case=False,
        token_types=False,
        writer=describe_writer(config, generation, task),
    )


_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


def position_offset(config: Mapping[str, Any]) -> int:
    """The first position id of a text. RoBERTa and its kin begin after the padding index."""
    if config["model_type"] in _AFTER_PADDING:
        padding = config.get("pad_token_id")
        return (1 if padding is None else int(padding)) + 1
    return 0


def _head(config: Mapping[str, Any], *, is_sentence_model: bool, embeds: bool) -> Head:
    """
    Args:
        embeds: a masked language model is not asked what stands behind a mask.
    """
    architectures = config.get("architectures") or []
    name = architectures[0] if architectures else "Model"
    if not is_sentence_model:
        for ending, head in _HEADS.items():
            if name.endswith(ending):
                return head
    if config.get("is_encoder_decoder") or config.get("is_decoder"):
        raise ModelRejected(
            f"The architecture {name} generates text, which is not served. "
            "Use an encoder for embeddings, or one with a sequence classification head."
        )
    if name.endswith("ForMaskedLM") and not embeds:
        return "mask"
    if is_sentence_model or name.endswith(_BARE_HEADS):
        return "none"
    raise ModelRejected(
        f"The architecture {name} is made for a task that is not served. "
        f"Use an encoder for embeddings, or a model that ends in {', '.join(_HEADS)}."
    )


def _max_tokens(
    config: Mapping[str, Any],
    sentence: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    wanted: int | None,
) -> int:
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    possible = int(positions) - position_offset(config) if positions else None
    why = ""
    turn = _turning_point(config)
    if turn is not None and (possible is None or turn < possible):
        possible = turn
        why = " Beyond that it reckons positions anew (longrope), for all texts of a step at once."
    if wanted is not None:
        if wanted < 4 or (possible is not None and wanted > possible):
            allowed = possible or "any"
            raise BadConfiguration(
                f"model.maxInputTokens: got {wanted}, the model allows 4 to {allowed}.{why}"
            )
        return wanted
    given = [possible, sentence.get("max_seq_length"), tokenizer.get("model_max_length")]
    bounds = [int(bound) for bound in given if bound and bound < _UNBOUNDED_TOKENS]
    return min(bounds, default=_DEFAULT_TOKENS)


def _turning_point(config: Mapping[str, Any]) -> int | None:
    """The longest text before a model goes over to other frequencies of its rotary positions.

    Phi-3 and its kin ("longrope") choose them by the longest text in the batch, for keys that are
    stored already as well: beside a longer neighbour, or read in pieces, a text would get others
    than alone.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, Mapping))]
    spelled = ("longrope", "su", *(["yarn"] if config["model_type"] == "phi3" else []))
    for kind in kinds:
        if kind.get("rope_type", kind.get("type")) in spelled:
            turn = config.get("original_max_position_embeddings")
            turn = turn or kind.get("original_max_position_embeddings")
            return int(turn) if turn else None
    return None


def _token_types(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> bool:
    """Unless the tokenizer's configuration leaves them out, or the model knows one type only.

    What a configuration leaves open is what its class has done since it exists: transformers 5
    names generic tokenizers anew, and those tell a model no types.
    """
    generic = tokenizer.get("tokenizer_class") == "TokenizersBackend"
    named = tokenizer.get("model_input_names", [] if generic else ["token_type_ids"])
    return "token_type_ids" in named and config.get("type_vocab_size", 2) > 1


def _prompt(manifest: Manifest) -> str:
    """What sentence-transformers puts before every text unless it is told another prompt."""
    settings = manifest.read_json("config_sentence_transformers.json") or {}
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if name not in prompts:
        raise ModelRejected(
            f"config_sentence_transformers.json: default_prompt_name is {name!r}, but prompts has "
            f"{', '.join(prompts) or 'none'}. Name one of these, or none."
        )
    return str(prompts[name])


def _pooling(manifest: Manifest, modules: list[dict[str, str]] | None) -> Pooling:
    """From a sentence-transformers folder; a bare encoder gets the usual mean of unit length."""
    if modules is None:
        return Pooling(mode="mean", normalize=True)
    kinds = [(module["type"].rpartition(".")[2], module["path"]) for module in modules]
    names = [kind for kind, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]):
        raise ModelRejected(
            f"modules.json chains {' → '.join(names)}; served are Transformer → Pooling, with or "
            "without Normalize after it."
        )
    name = PurePosixPath(kinds[1][1], "config.json").as_posix()
    config = manifest.read_json(name)
    if config is None:  # Any mode could be meant, and most would give numbers that look right.
        raise ModelRejected(f"{name} is missing, which says how to pool. Fetch the model again.")
    return Pooling(mode=_pooling_mode(config), normalize="Normalize" in names)


def _pooling_mode(config: Mapping[str, Any]) -> str:
    if config.get("include_prompt") is False:
        raise ModelRejected("The pooling leaves the prompt out, which is not served.")
    mode = config.get("pooling_mode")
    if mode is not None:
        if mode not in POOLING_MODES:
            raise ModelRejected(f"The pooling mode {mode!r} is none of {', '.join(POOLING_MODES)}.")
        return str(mode)
    flags = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens": "weightedmean",
        "pooling_mode_lasttoken": "lasttoken",
    }
    chosen = [name for flag, name in flags.items() if config.get(flag)]
    if len(chosen) > 1:
        raise ModelRejected(f"The pooling joins several modes ({', '.join(chosen)}); give one.")
    return chosen[0] if chosen else "mean"


def _classifier(config: Mapping[str, Any]) -> Classifier:
    names = config.get("id2label") or {
        str(index): f"LABEL_{index}" for index in range(int(config.get("num_labels", 2)))
    }
    if set(names) != {str(place) for place in range(len(names))}:
        raise ModelRejected(
            f"config.json: id2label names {', '.join(map(str, names))}; it needs a label for each "
            f"output of the head, from 0 to {len(names) - 1}."
        )
    labels = tuple(str(names[str(place)]) for place in range(len(names)))
    entailment = _starts_with(labels, "entail")
    return Classifier(
        labels=labels,
        activation=_activation(config.get("problem_type"), len(labels)),
        entailment=entailment,
        contradiction=None if entailment is None else _contradiction(labels, entailment),
    )


def _activation(problem: object, labels: int) -> Literal["softmax", "sigmoid", "none"]:
    """As transformers' pipeline chooses it."""
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or labels == 1:
        return "sigmoid"
    return "softmax"


def _starts_with(labels: tuple[str, ...], prefix: str) -> int | None:
    return next((i for i, label in enumerate(labels) if label.lower().startswith(prefix)), None)


def _contradiction(labels: tuple[str, ...], entailment: int) -> int | None:
    """The label named so, or else the end of the list that entailment is not at."""
    if len(labels) < 2:
        return None
    named = _starts_with(labels, "contradict")
    if named is not None:
        return named
    return len(labels) - 1 if entailment == 0 else 0


_KNOWN_MARKERS = (
    ("[E1]", "[/E1]", "[E2]", "[/E2]"),
    ("<e1>", "</e1>", "<e2>", "</e2>"),
    ("[E1_START]", "[E1_END]", "[E2_START]", "[E2_END]"),
    ("[H]", "[/H]", "[T]", "[/T]"),
    ("[SUBJ]", "[/SUBJ]", "[OBJ]", "[/OBJ]"),
    ("<subj>", "</subj>", "<obj>", "</obj>"),
)
"""Spellings in use since Soares et al. 2019 (arXiv:1906.03158), looked for among a tokenizer's
added tokens where the configuration says nothing."""


def known_markers(added: Collection[str]) -> Markers | None:
    """What a tokenizer's added tokens tell of a model that says nothing itself."""
    for e1, e1_end, e2, e2_end in _KNOWN_MARKERS:
        if all(token in added for token in (e1, e1_end, e2, e2_end)):
            return Markers((f"{e1} ", f" {e1_end}"), (f"{e2} ", f" {e2_end}"))
    return None


def _markers(config: Mapping[str, Any]) -> Markers | None:
    given = config.get(_MARKERS_FIELD)
    if given is None:
        return None
    try:
        (head_open, head_close), (tail_open, tail_close) = given["head"], given["tail"]
    except (TypeError, ValueError, KeyError, IndexError):
        raise ModelRejected(
            f"config.json: {_MARKERS_FIELD} is {given!r}; it needs a pair of texts each for head "
            'and tail, such as {"head": ["[E1] ", " [/E1]"], "tail": ["[E2] ", " [/E2]"]}.'
        ) from None
    return Markers((str(head_open), str(head_close)), (str(tail_open), str(tail_close)))


def _mask_token(manifest: Manifest, tokenizer: Mapping[str, Any]) -> str | None:
    special = manifest.read_json("special_tokens_map.json") or {}
    value = tokenizer.get("mask_token") or special.get("mask_token")
    if isinstance(value, Mapping):  # As a token with its properties.
        value = value.get("content")
    return value if isinstance(value, str) else None
