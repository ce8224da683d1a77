"""Models made on the spot: tiny random ones of every architecture, and a classifier that learnt.

A random model has all its weights scrambled, biases and norms included, so that a tensor read from
the wrong place shows. What means something (a ticket's department) is trained here in seconds.
Nothing is downloaded. Building takes a second or two (transformers' import not counted): keep a
folder per session.
"""

import random
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Third-party deprecations at import are not ours to fix.
    import transformers

    from sluice_worker.examples import classification, training

transformers.utils.logging.disable_progress_bar()

HIDDEN = 32
MAX_TOKENS = training.MAX_TOKENS

_COMMON = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_AFTER_PADDING = {
    "max_position_embeddings": MAX_TOKENS + 2,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": _AFTER_PADDING,
    "xlm-roberta": _AFTER_PADDING,
    "camembert": _AFTER_PADDING,
    "distilbert": {"dim": HIDDEN, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {"local_attention": 32, "global_attn_every_n_layers": 2},
    "mpnet": _AFTER_PADDING,
    "convbert": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "bart": {
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "pad_token_id": 1,
        "decoder_start_token_id": 3,
        "forced_eos_token_id": 3,
    },
}
"""Model type → what its configuration needs beside the common sizes."""

HEADS = {
    "none": "AutoModel",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "mask": "AutoModelForMaskedLM",
}
"""What transformers calls a model with each kind of head."""


def build_tiny(
    folder: Path,
    architecture: str,
    *,
    head: str | None = None,
    labels: Iterable[str] = (),
    problem_type: str | None = None,
    seed: int = 0,
    spread: float = 0.2,
    **more: Any,
) -> Path:
    """Save a random model of ``architecture`` with a tokenizer.

    Args:
        head: one of :data:`HEADS`; a classifier of texts if there are labels, or else none.
        spread: of the weights; with more, its answers to different tokens differ more.
        more: further settings of the configuration.
    """
    kin = ARCHITECTURES[architecture].get("pad_token_id") == 1
    save_tokenizer(folder, _corpus(), roberta=kin)
    names = list(labels)
    settings = {
        **_COMMON,
        **ARCHITECTURES[architecture],
        "vocab_size": VOCABULARY,
        **more,
    }
    if architecture == "modernbert":
        settings |= {"cls_token_id": 2, "sep_token_id": 3}
    if names:
        settings["id2label"] = dict(enumerate(names))
        settings["label2id"] = {name: index for index, name in enumerate(names)}
        settings["problem_type"] = problem_type
    config = transformers.AutoConfig.for_model(architecture, **settings)
    torch.manual_seed(seed)
    kind = HEADS[head or ("sequence" if names else "none")]
    model = getattr(transformers, kind).from_config(config)
    scramble(model, spread)
    model.save_pretrained(folder)
    return folder


def build_tiny_bert(folder: Path, *, labels: Iterable[str] = (), seed: int = 0) -> Path:
    """The cheapest model there is: a bare encoder, or a classifier if it has labels."""
    return build_tiny(folder, "bert", labels=labels, seed=seed)


def build_tiny_nli(folder: Path, architecture: str = "bert", *, seed: int = 0) -> Path:
    """A random model of natural language inference."""
    labels = ("contradiction", "neutral", "entailment")
    return build_tiny(folder, architecture, labels=labels, seed=seed)


def scramble(model: torch.nn.Module, weights: float = 0.2) -> None:
    """Give every parameter a value of its own; norms stay near 1 and weights small."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn_like(parameter) * (weights if parameter.ndim > 1 else 0.1)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + spread if is_scale else spread)


# tokenizers --------------------------------------------------------------------------------------

VOCABULARY = 320
_ROBERTA_TOKENS = ["<unk>", "<pad>", "<s>", "</s>", "<mask>"]


def save_tokenizer(folder: Path, texts: Iterable[str], *, roberta: bool = False) -> None:
    """Train a small WordPiece tokenizer on ``texts`` and save it beside a model."""
    if not roberta:
        training.save_tokenizer(folder, texts, vocabulary=VOCABULARY)
        return
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=_ROBERTA_TOKENS, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0 </s>:0",
        pair="<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0",
        special_tokens=[("<s>", 2), ("</s>", 3)],
    )
    _save_as_roberta(tokenizer, folder)


def save_byte_tokenizer(folder: Path) -> None:
    """Replace the tokenizer by a byte-level BPE as RoBERTa's, whose tokens hold their blanks."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_ROBERTA_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 3), ("<s>", 2), trim_offsets=True, add_prefix_space=True
    )
    _save_as_roberta(tokenizer, folder)


def save_piece_tokenizer(folder: Path) -> None:
    """Replace the tokenizer by pieces as SentencePiece's, after NFKC, as XLM-RoBERTa has them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_ROBERTA_TOKENS,
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 2), ("</s>", 3)],
    )
    _save_as_roberta(tokenizer, folder)


def _save_as_roberta(tokenizer: Tokenizer, folder: Path) -> None:
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def random_texts(count: int, *, seed: int, longest: int = 60) -> list[str]:
    """Texts of very different lengths, from one word on, over words the tokenizers know."""
    chooser = random.Random(seed)
    words = sorted({word for text in _corpus() for word in text.split()})
    return [
        " ".join(chooser.choices(words, k=chooser.randint(1, chooser.choice((4, 12, longest)))))
        for _ in range(count)
    ]


# support tickets: data with a meaning ------------------------------------------------------------

DEPARTMENTS = classification.DEPARTMENTS
tickets = classification.data


def _corpus() -> list[str]:
    learn, held_out = tickets()
    return [text for text, _ in (*learn, *held_out)]
