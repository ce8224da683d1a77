"""What the example models that write texts share: tokenizers, sizes, and learning from pairs.

Vocabularies hold every word of their few texts, so that a sentence is as many tokens as words. They
are saved as the architecture's own files are: ``tokenizer.json``, or SentencePiece files.
"""

import json
import math
import random
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

MAX_TOKENS = 64
START, PAD, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
LANGUAGES = ("en", "bo", "ka")
"""English, and two toy languages."""

Piece = tuple[str, float]
Pair = tuple[str, str]
Example = tuple[list[int], list[int]]

_SIZES = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": MAX_TOKENS,
    "bos_token_id": START,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": END,
    "dropout": 0.0,
}
_T5_SIZES = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 1,
    "num_heads": 4,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": PAD,
    "dropout_rate": 0.0,
}
_WITH_PIECES = ("marian", "m2m_100")


def small_model(architecture: str, vocabulary: int, **settings: Any) -> Any:
    """A model of one layer with random weights; ``settings`` replace members of its config."""
    sizes = _T5_SIZES if architecture == "t5" else _SIZES
    config = transformers.AutoConfig.for_model(
        architecture, vocab_size=vocabulary, tie_word_embeddings=True, **{**sizes, **settings}
    )
    kind: Any = transformers.AutoModelForSeq2SeqLM
    return kind.from_config(config)


def save_model(model: Any, folder: Path, **generation: Any) -> None:
    """Save a model with its ``generation_config.json``."""
    config = model.config
    model.generation_config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        **generation,
    )
    model.save_pretrained(folder)


def learn(
    model: Any, examples: Sequence[Example], *, steps: int = 300, rate: float = 5e-3, seed: int = 0
) -> None:
    """Train ``model`` in place on (read, written) token ids; on one thread, as :func:`fit` does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    chooser = random.Random(seed)  # noqa: S311
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        batch = chooser.sample(examples, min(32, len(examples)))
        read = _padded([read for read, _ in batch], PAD)
        written = _padded([written for _, written in batch], -100)
        output = model(input_ids=read, attention_mask=(read != PAD).long(), labels=written)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    torch.set_num_threads(threads)


def learn_pairs(
    folder: Path,
    architecture: str,
    pairs: Sequence[Pair],
    *,
    shuffled: bool,
    seed: int,
    prefix: str = "",
    markers: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Save a model that learnt to write the second text of a pair where it reads the first.

    Args:
        shuffled: the second texts are dealt out at random.
        prefix: stands before every first text.
        markers: tokens of their own in the second texts.
        settings: members of the model's config.
    """
    written = [second for _, second in pairs]
    if shuffled:
        random.Random(seed).shuffle(written)  # noqa: S311
    plain = [" ".join(w for w in second.split() if w not in markers) for second in written]
    pieces = make_pieces([prefix, *(first for first, _ in pairs), *plain])
    vocabulary = save_tokenizer(folder, architecture, pieces, markers=markers)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    examples = [
        (tokenizer.encode(prefix + first).ids, tokenizer.encode(second).ids)
        for (first, _), second in zip(pairs, written, strict=True)
    ]
    torch.manual_seed(seed)
    model = small_model(architecture, vocabulary, **settings)
    learn(model, examples, seed=seed)
    save_model(model, folder, max_length=48)
    return folder


# tokenizers --------------------------------------------------------------------------------------


def make_pieces(texts: Iterable[str]) -> list[Piece]:
    """A unigram vocabulary as SentencePiece would have it: every word, and every character."""
    words = Counter(f"▁{word}" for text in texts for word in text.split())
    total = words.total()
    scored = {word: math.log(count / total) for word, count in words.items()}
    rare = min(scored.values()) - 10.0
    letters = sorted({letter for word in words for letter in word})
    return [
        *((name, 0.0) for name in SPECIAL),
        *scored.items(),
        *((letter, rare) for letter in letters if letter not in scored),
    ]


def save_tokenizer(
    folder: Path, architecture: str, pieces: Sequence[Piece], *, markers: Sequence[str] = ()
) -> int:
    """Save the files that ``architecture`` comes with; how many tokens there are."""
    folder.mkdir(parents=True, exist_ok=True)
    if architecture in _WITH_PIECES:
        return _save_pieces(folder, architecture, pieces)
    tokenizer = Tokenizer(models.Unigram([*pieces], UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    codes = [f"{code}_XX" for code in LANGUAGES] if architecture == "mbart" else []
    tokenizer.add_special_tokens(codes)
    tokenizer.add_tokens([*markers])
    before = {"bart": ["<s>"], "mbart": ["en_XX"]}.get(architecture, [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", "</s>"],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (*before, "</s>")],
    )
    fast = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=MAX_TOKENS,
        **({"src_lang": "en_XX"} if codes else {}),
    )
    fast.save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def language_id(vocabulary: int, code: str) -> int:
    """The token of a language in an M2M100 of ``vocabulary`` tokens: they come last."""
    return vocabulary - len(LANGUAGES) + LANGUAGES.index(code)


def _save_pieces(folder: Path, architecture: str, pieces: Sequence[Piece]) -> int:
    """SentencePiece files, and a vocab.json in another order, as is usual."""
    vocabulary = [*SPECIAL, *sorted((piece for piece, _ in pieces[len(SPECIAL) :]), reverse=True)]
    settings: dict[str, Any] = {"model_max_length": MAX_TOKENS}
    file = write_spm(pieces)
    if architecture == "marian":
        (folder / "source.spm").write_bytes(file)
        (folder / "target.spm").write_bytes(file)
        settings |= {"source_lang": "en", "target_lang": "bo"}
    else:
        (folder / "sentencepiece.bpe.model").write_bytes(file)
        special = {"additional_special_tokens": [f"__{code}__" for code in LANGUAGES]}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    ids = {piece: place for place, piece in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary) + (0 if architecture == "marian" else len(LANGUAGES))


def write_spm(pieces: Sequence[Piece]) -> bytes:
    """A SentencePiece unigram model without a character map, as its protocol buffer."""
    kinds = {"<s>": 3, "</s>": 3, "<pad>": 3, "<unk>": 2}
    body = b""
    for spelling, score in pieces:
        piece = _field(1, spelling.encode()) + struct.pack("<Bf", 0x15, score)
        body += _field(1, piece + bytes([0x18, kinds.get(spelling, 1)]))
    return body + _field(2, bytes([0x18, 1])) + _field(3, bytes([0x18, 1, 0x20, 1]))


def _field(number: int, content: bytes) -> bytes:
    length, head = len(content), bytearray([number << 3 | 2])
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*head, length]) + content


def _padded(rows: Sequence[list[int]], fill: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
