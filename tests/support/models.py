"""Models made on the spot: tiny random ones of every architecture, and a classifier that learnt.

A random model has all its weights scrambled, biases and norms included, so that a tensor read from
the wrong place shows. What means something (a ticket's department) is trained here in seconds.
Nothing is downloaded. Building takes a second or two (transformers' import not counted): keep a
folder per session.
"""

import itertools
import random
import warnings
from collections.abc import Iterable, Iterator
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

HIDDEN = 32
MAX_TOKENS = 128

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Third-party deprecations at import are not ours to fix.
    import transformers

transformers.utils.logging.disable_progress_bar()

_COMMON = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_TOKENS,
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
    kin = ARCHITECTURES[architecture] is _AFTER_PADDING
    save_tokenizer(folder, _corpus(), roberta=kin)
    names = list(labels)
    special = {"pad_token_id": 1 if kin else 0, "bos_token_id": 2, "eos_token_id": 3}
    settings = {
        **_COMMON,
        **special,
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


def save_tokenizer(folder: Path, texts: Iterable[str], *, roberta: bool = False) -> None:
    """Train a small WordPiece tokenizer on ``texts`` and save it beside a model."""
    first, last = ("<s>", "</s>") if roberta else ("[CLS]", "[SEP]")
    pad, unknown = ("<pad>", "<unk>") if roberta else ("[PAD]", "[UNK]")
    mask = "<mask>" if roberta else "[MASK]"
    special = [unknown, pad, first, last] if roberta else [pad, unknown, first, last]
    special.append(mask)
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    second = f"{last}:0 $B:0 {last}:0" if roberta else "$B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 {second}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, last)],
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        mask_token=mask,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask", *([] if roberta else ["token_type_ids"])],
    )
    fast.save_pretrained(folder)


def save_byte_tokenizer(folder: Path) -> None:
    """Replace the tokenizer by a byte-level BPE as RoBERTa's, whose tokens hold their blanks."""
    special = ["<unk>", "<pad>", "<s>", "</s>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 3), ("<s>", 2), trim_offsets=True, add_prefix_space=True
    )
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

DEPARTMENTS = ("account", "billing", "shipping", "technical")

_TOPICS = {
    "account": (
        ("my password", "the login code", "my user name", "two factor sign in", "my profile"),
        ("is not accepted", "was locked", "needs a reset", "has to be changed", "was hacked"),
    ),
    "billing": (
        ("the invoice", "my credit card", "the monthly fee", "the refund", "your price"),
        ("was charged twice", "is too high", "was not paid back", "shows a wrong tax", "is unpaid"),
    ),
    "shipping": (
        ("my parcel", "the delivery", "the courier", "the package", "the tracking number"),
        ("has not arrived", "is late", "came damaged", "went to a wrong address", "got lost"),
    ),
    "technical": (
        ("the app", "the screen", "the update", "the server", "the export button"),
        ("crashes", "shows an error", "freezes on start", "is very slow", "does not load"),
    ),
}
_OPENINGS = ("hello, ", "please help: ", "", "since monday ", "i noticed that ", "again ")
_CLOSINGS = ("", ", what can i do?", ", please fix it", ". thank you", ", this is urgent")


def tickets() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, department) pairs to learn from, and pairs held out.

    No combination of subject and trouble is in both, so held-out texts must be understood by
    their words, not remembered.
    """
    learn: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for department, (subjects, troubles) in _TOPICS.items():
        for (row, subject), (column, trouble) in itertools.product(
            enumerate(subjects), enumerate(troubles)
        ):
            target = held_out if (row + column) % 5 == 0 else learn
            for opening, closing in zip(_OPENINGS, itertools.cycle(_CLOSINGS), strict=False):
                target.append((f"{opening}{subject} {trouble}{closing}", department))
    return learn, held_out


def train_ticket_classifier(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train a small BERT on :func:`tickets` and save it; takes some seconds.

    Args:
        shuffled: train on labels dealt out at random: the control that must not learn.
    """
    learn, _ = tickets()
    texts, departments = [text for text, _ in learn], [name for _, name in learn]
    if shuffled:
        random.Random(seed).shuffle(departments)
    save_tokenizer(folder, texts)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        **{**_COMMON, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128},
        vocab_size=VOCABULARY,
        id2label=dict(enumerate(DEPARTMENTS)),
        label2id={name: index for index, name in enumerate(DEPARTMENTS)},
        hidden_dropout_prob=0.0,
    )
    model = transformers.BertForSequenceClassification(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    targets = torch.tensor([DEPARTMENTS.index(name) for name in departments])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    for batch in _batches(len(texts), epochs=4, size=32, seed=seed):
        inputs = {name: rows[batch] for name, rows in encoded.items()}
        model(**inputs, labels=targets[batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def _batches(count: int, *, epochs: int, size: int, seed: int) -> Iterator[list[int]]:
    chooser = random.Random(seed)
    for _ in range(epochs):
        order = chooser.sample(range(count), count)
        for start in range(0, count, size):
            yield order[start : start + size]


def _corpus() -> list[str]:
    learn, held_out = tickets()
    return [text for text, _ in (*learn, *held_out)]
