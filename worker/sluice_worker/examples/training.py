"""What the example models share: a tokenizer made of their texts, a small BERT, a training loop.

Everything is seeded, so that a model comes out the same on the same machine. Sizes are chosen so
that seconds are enough to learn a toy language and nothing more.
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

MAX_TOKENS = 128


Example = dict[str, Any]
"""One text as the model takes it: ``input_ids``, perhaps ``token_type_ids``, and its targets. A
list as long as the text is filled up in a batch."""

_PADDING = {"labels": -100}
"""What a list is filled up with in a batch; 0 for every other name."""


def save_tokenizer(
    folder: Path,
    texts: Iterable[str],
    *,
    added: Sequence[str] = (),
    vocabulary: int = 400,
    lowercase: bool = True,
) -> Any:
    """Make a WordPiece tokenizer for ``texts``, save it beside a model and return it.

    Its pieces are letters and the most frequent words: a trainer's choice among equals differs from
    run to run, and the model with it.

    Args:
        added: special tokens beside BERT's own.
        vocabulary: how many pieces there are at most, unless there are more letters.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *added]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
            tokenizer.normalizer.normalize_str(text)
        )
    )
    letters = sorted({letter for word in words for letter in word})
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    frequent = sorted(words.keys() - set(pieces), key=lambda word: (-words[word], word))
    pieces += frequent[: max(0, vocabulary - len(pieces))]
    ids = {piece: index for index, piece in enumerate(pieces)}
    tokenizer.model = models.WordPiece(ids, unk_token="[UNK]")  # noqa: S106
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    fast = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        mask_token="[MASK]",  # noqa: S106
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )
    fast.save_pretrained(folder)
    return fast


def small_bert(
    kind: Any, tokenizer: Any, *, seed: int, labels: Sequence[str] = (), **more: Any
) -> Any:
    """A BERT of two layers with random weights.

    Args:
        kind: a class of transformers.
        more: further members of its configuration.
    """
    torch.manual_seed(seed)
    if labels:
        more["id2label"] = dict(enumerate(labels))
        more["label2id"] = {name: index for index, name in enumerate(labels)}
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,  # Wider than BERT's own: so small a model learns sooner.
        **more,
    )
    return kind(config)


def fit(
    model: Any,
    examples: Sequence[Example],
    *,
    epochs: int,
    rate: float = 2e-3,
    size: int = 32,
    seed: int = 0,
) -> None:
    """Train ``model`` in place by its own loss, with a rate that falls to zero.

    On one thread: so the result does not depend on the machine's load, and for models of this size
    more only wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    steps = epochs * -(-len(examples) // size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    model.train()
    for chosen in batches(len(examples), epochs=epochs, size=size, seed=seed):
        batch = collated([examples[index] for index in chosen])
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    torch.set_num_threads(threads)


def collated(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A padded batch with its attention mask."""
    longest = max(len(example["input_ids"]) for example in examples)
    masked = [{**each, "attention_mask": [1] * len(each["input_ids"])} for each in examples]
    return {
        name: torch.tensor([_filled(each, name, longest) for each in masked]) for name in masked[0]
    }


def batches(count: int, *, epochs: int, size: int, seed: int) -> Iterator[list[int]]:
    """Positions of ``count`` examples in batches, dealt anew in each epoch."""
    chooser = random.Random(seed)  # noqa: S311
    for _ in range(epochs):
        order = chooser.sample(range(count), count)
        for start in range(0, count, size):
            yield order[start : start + size]


def dealt_out(values: Sequence[Any], *, seed: int) -> list[Any]:
    """The same values in another order: the targets of a control that must not learn."""
    return random.Random(seed).sample(list(values), len(values))  # noqa: S311


def combinations(*parts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Every combination of ``parts``, and apart from them about a fifth to hold out.

    No two of the first two parts are together in both, so what is held out must be understood by
    its parts.
    """
    learn: list[Any] = []
    held_out: list[Any] = []
    for (row, first), (column, second), *others in itertools.product(*map(enumerate, parts)):
        target = held_out if (row + column) % 5 == 0 else learn
        target.append((first, second, *(other for _, other in others)))
    return learn, held_out


def _filled(example: Example, name: str, longest: int) -> Any:
    value, length = example[name], len(example["input_ids"])
    if not isinstance(value, list) or len(value) != length:
        return value
    return value + [_PADDING.get(name, 0)] * (longest - length)
