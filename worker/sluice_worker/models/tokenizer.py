"""Texts to token ids, with the model's limit applied and truncation never silent.

Used by task modules on tokeniser threads. Each thread has a copy of its own: a shared fast
tokenizer fails with "Already borrowed" under load.
"""

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from sluice_api.errors import ApiError
from sluice_api.wording import sentence
from sluice_worker.models.description import Description
from sluice_worker.models.encoding import encoding_of
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import VOCABULARY_FILES, Manifest

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 32
"""No text with more than this many characters per allowed token is tokenised at all: the work
that one request can cause stays bounded. Real text has about four."""


MAX_WINDOWS = 128
"""Most windows one long text is computed in."""
_WINDOW_CHARACTERS_PER_TOKEN = 16

MASK_TOKENS = ("[MASK]", "<mask>")
"""What a mask is called where a tokenizer's files do not say."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text, or one pair of texts, as the model takes it."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...] | None
    truncated: bool


@dataclass(frozen=True, slots=True)
class Located:
    """The tokens of a whole text, without special tokens, and where each stands.

    Attributes:
        tokens: their spelling in the vocabulary.
        offsets: characters of the text, half-open.
        words: number of the word of each, as the tokenizer splits words.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    words: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around texts: ``ids[0] text ids[1]``, for a pair ``… second ids[2]``.

    Attributes:
        type_ids: of each of ``ids``, and of the texts between them.
    """

    ids: tuple[tuple[int, ...], ...]
    type_ids: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    @property
    def special(self) -> int:
        return sum(len(part) for part in self.ids)


class Tokenizer:
    """A model's tokenizer and its input limit.

    Args:
        serialized: the content of ``tokenizer.json``.
        max_tokens: special tokens included.
        vocabulary: ids below this exist in the model.
        prompt: put before every text (an option of sentence-transformers).
        lower_case: lower every text first (another one).
        token_types: tell the texts of a pair apart by token types, as ``tokenizer.json`` says.
    """

    def __init__(
        self,
        serialized: str,
        *,
        max_tokens: int,
        vocabulary: int,
        prompt: str = "",
        lower_case: bool = False,
        token_types: bool = True,
    ) -> None:
        self.max_tokens = max_tokens
        self.serialized = serialized
        self._vocabulary = vocabulary
        self._prompt = prompt
        self._lower_case = lower_case
        self._token_types = token_types
        self._local = threading.local()
        self._frames: dict[bool, Frame] = {}

    def __repr__(self) -> str:
        return f"<Tokenizer {self._vocabulary} ids, at most {self.max_tokens} tokens>"

    @property
    def _fast(self) -> FastTokenizer:
        fast: FastTokenizer | None = getattr(self._local, "fast", None)
        if fast is None:
            fast = FastTokenizer.from_str(self.serialized)
            # Files carry the training's truncation and padding; both are ours to decide.
            fast.no_truncation()
            fast.no_padding()
            self._local.fast = fast
        return fast

    def fast(self) -> FastTokenizer:
        """The calling thread's own copy of the tokenizer itself."""
        return self._fast

    def spelled(self, text: str) -> list[int]:
        """The tokens of a text in which special tokens are spelled out already."""
        ids: list[int] = encoding_of(self._fast, text, special=False).ids
        return ids

    def highest_id(self) -> int:
        """The highest token id that a text can turn into."""
        return max(self._fast.get_vocab().values(), default=0)

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        found: int | None = self._fast.token_to_id(token)
        return found

    def token_of(self, token_id: int) -> str:
        """A token as the vocabulary spells it."""
        return str(self._fast.id_to_token(token_id))

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special ones included, as transformers decodes them."""
        return str(self._fast.decode(list(ids), skip_special_tokens=False))

    def added_tokens(self) -> set[str]:
        """Tokens beside the vocabulary, special ones among them."""
        return {token.content for token in self._fast.get_added_tokens_decoder().values()}

    def markers(self) -> list[tuple[str, bool]]:
        """The same, and whether each is called special."""
        decoder = self._fast.get_added_tokens_decoder()
        return [(token.content, token.special) for token in decoder.values()]

    def knows_words(self) -> bool:
        """Whether there is more in the vocabulary than what stands around texts."""
        return not self.added_tokens() >= self._fast.get_vocab().keys()

    @property
    def marks_subwords(self) -> bool:
        """Whether a token's spelling shows that it goes on with a word."""
        return bool(getattr(self._fast.model, "continuing_subword_prefix", None))

    @property
    def unknown_id(self) -> int | None:
        """The id that stands for whatever the vocabulary has no token for."""
        names = (getattr(self._fast.model, "unk_token", None), "<unk>", "[UNK]")
        return next((i for name in names if name and (i := self.id_of(name)) is not None), None)

    def locate(self, text: str, *, where: str) -> Located:
        """The whole text, however long up to :data:`MAX_WINDOWS` windows. Raises ApiError."""
        limit = MAX_WINDOWS * self.max_tokens * _WINDOW_CHARACTERS_PER_TOKEN
        if len(text) > limit:
            raise ApiError(
                "input_too_long",
                f"{where}: got {len(text)} characters, at most {limit} are taken in windows of "
                f"{self.max_tokens} tokens.",
                param=where,
            )
        lowered = text.lower() if self._lower_case else text
        if len(lowered) != len(text):  # A few letters grow when lowered; offsets would drift.
            lowered = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
        encoding = encoding_of(self._fast, lowered)
        own = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        ids, tokens = encoding.ids, encoding.tokens
        offsets, words = encoding.offsets, encoding.word_ids
        return Located(
            text=text,
            ids=tuple(ids[place] for place in own),
            tokens=tuple(tokens[place] for place in own),
            offsets=tuple(offsets[place] for place in own),
            words=tuple(words[place] for place in own),
        )

    def room(self, *, pair: bool = False) -> int:
        """Tokens of one window beside its special ones."""
        return self.max_tokens - self.frame(pair=pair).special

    def framed(self, ids: Sequence[int], second: Sequence[int] | None = None) -> Encoded:
        """Tokens of a text, or of a pair, as the model takes them."""
        frame = self.frame(pair=second is not None)
        texts = (tuple(ids),) if second is None else (tuple(ids), tuple(second))
        whole, types = list(frame.ids[0]), list(frame.type_ids[0])
        for number, text in enumerate(texts):
            whole += (*text, *frame.ids[number + 1])
            types += (*(frame.text_types[number],) * len(text), *frame.type_ids[number + 1])
        type_ids = tuple(types) if self._token_types and any(types) else None
        return Encoded(tuple(whole), type_ids, truncated=False)

    def frame(self, *, pair: bool) -> Frame:
        """The special tokens that the tokenizer puts around a text or a pair of texts."""
        frame = self._frames.get(pair)
        if frame is None:
            frame = self._frames[pair] = _frame(self._fast.encode("a", "a" if pair else None))
        return frame

    def encode(
        self, text: str, *, where: str, truncate: bool = False, instead: str = ""
    ) -> Encoded:
        """One text. Raises ApiError ``input_too_long`` naming ``where``, unless ``truncate``.

        Args:
            instead: what the error says can be done beside sending less.
        """
        text, cut = self._bounded(text, where, truncate, instead)
        fast = self._fast
        encoding = encoding_of(fast, text, special=False)
        room = self.max_tokens - fast.num_special_tokens_to_add(False)
        cut |= self._fit(encoding, room, where, truncate, instead)
        return self._encoded(fast.post_process(encoding), cut)

    def encode_pairs(
        self,
        text: str,
        seconds: list[str],
        *,
        where: str,
        truncate: bool = False,
        instead: str = "",
    ) -> list[Encoded]:
        """``text`` paired with each of ``seconds``; only ``text`` is ever cut."""
        text, cut = self._bounded(text, where, truncate, instead)
        fast = self._fast
        first = encoding_of(fast, text, special=False)
        special = fast.num_special_tokens_to_add(True)
        pairs = []
        for second in seconds:
            label, _ = self._bounded(second, "parameters.labels", False)
            other = encoding_of(fast, label, special=False)
            room = self.max_tokens - special - len(other)
            if room < 1:
                raise _too_long("parameters.labels", len(other) + special + 1, self.max_tokens)
            if len(first) <= room:
                pairs.append(self._encoded(fast.post_process(first, other), cut))
                continue
            shorter = Encoding.merge([first])  # A copy, which costs a hundredth of reading it anew.
            shortened = self._fit(shorter, room, where, truncate, instead)
            pairs.append(self._encoded(fast.post_process(shorter, other), cut or shortened))
        return pairs

    def accept(
        self, ids: list[int], *, where: str, truncate: bool = False, instead: str = ""
    ) -> Encoded:
        """Token ids as the caller gave them, special tokens included. Raises ApiError."""
        for position, token in enumerate(ids):
            if token >= self._vocabulary:
                raise ApiError(
                    "invalid_field",
                    f"{where}: got token id {token} at position {position}, "
                    f"the model has ids 0 to {self._vocabulary - 1}.",
                    param=where,
                )
        if len(ids) > self.max_tokens and not truncate:
            raise _too_long(where, len(ids), self.max_tokens, instead)
        kept = tuple(ids[: self.max_tokens])
        return Encoded(kept, None, truncated=len(kept) < len(ids))

    def _encoded(self, encoding: Encoding, truncated: bool) -> Encoded:
        type_ids = encoding.type_ids if self._token_types else ()
        return Encoded(
            ids=tuple(encoding.ids),
            type_ids=tuple(type_ids) if any(type_ids) else None,
            truncated=truncated,
        )

    def _bounded(
        self, text: str, where: str, truncate: bool, instead: str = ""
    ) -> tuple[str, bool]:
        limit = self.max_tokens * CHARACTERS_PER_TOKEN
        cut = len(text) > limit
        if cut and not truncate:
            raise ApiError(
                "input_too_long",
                f"{where}: got {len(text)} characters, a model of {self.max_tokens} tokens "
                f"takes at most {limit}.{instead}",
                param=where,
            )
        text = self._prompt + text[:limit]
        return (text.lower() if self._lower_case else text), cut

    def _fit(self, encoding: Encoding, room: int, where: str, truncate: bool, instead: str) -> bool:
        """Cut ``encoding`` in place to ``room`` tokens; whether that was needed."""
        excess = len(encoding) - room
        if excess <= 0:
            return False
        if not truncate:
            raise _too_long(where, self.max_tokens + excess, self.max_tokens, instead)
        encoding.truncate(room)
        return True


def _frame(encoding: Encoding) -> Frame:
    """Read the special tokens off a text, or a pair of texts, of any tokens."""
    ids: list[list[int]] = [[]]
    type_ids: list[list[int]] = [[]]
    text_types: list[int] = []
    before: int | None = None
    for token, kind, sequence, special in zip(
        encoding.ids,
        encoding.type_ids,
        encoding.sequence_ids,
        encoding.special_tokens_mask,
        strict=True,
    ):
        if special:
            ids[-1].append(token)
            type_ids[-1].append(kind)
        elif sequence != before:
            before = sequence
            text_types.append(kind)
            ids.append([])
            type_ids.append([])
    return Frame(tuple(map(tuple, ids)), tuple(map(tuple, type_ids)), tuple(text_types))


def load_tokenizer(manifest: Manifest, description: Description) -> Tokenizer:
    """The tokenizer of a verified folder. Raises ModelRejected when it has none that is fast.

    Folders without ``tokenizer.json`` are converted by transformers, which costs seconds.
    """
    if "tokenizer.json" in manifest.sums:
        serialized = (manifest.folder / "tokenizer.json").read_text(encoding="utf-8")
    elif any(name in manifest.sums for name in VOCABULARY_FILES):
        serialized = _converted(manifest)
    else:  # transformers would make one up that knows no word.
        raise _no_tokenizer()
    try:
        tokenizer = _tokenizer(serialized, description)
        if tokenizer.highest_id() >= description.vocabulary and description.head == "causal":
            tokenizer = _tokenizer(_known(serialized, description.vocabulary), description)
        highest, knows_words = tokenizer.highest_id(), tokenizer.knows_words()
    except Exception as error:  # The library raises bare Exception for whatever is wrong.
        told = sentence(str(error))
        raise ModelRejected(f"tokenizer.json cannot be used: {told} Save it again.") from error
    if not knows_words:
        raise _no_tokenizer()
    if highest >= description.vocabulary:
        raise ModelRejected(
            f"The tokenizer has token ids up to {highest}, the model knows "
            f"{description.vocabulary}. Save model and tokenizer together."
        )
    return tokenizer


def _tokenizer(serialized: str, description: Description) -> Tokenizer:
    return Tokenizer(
        serialized,
        max_tokens=description.max_tokens,
        vocabulary=description.vocabulary,
        prompt=description.prompt,
        lower_case=description.lower_case,
        token_types=description.token_types,
    )


def _known(serialized: str, vocabulary: int) -> str:
    """Without added tokens that the model has no number for: what spells one is text.

    Gemma 3's has one for images, and its models of texts alone do not.
    """
    content = json.loads(serialized)
    added = content["added_tokens"]
    unknown = sorted(token["content"] for token in added if token["id"] >= vocabulary)
    log.warning("the tokenizer has tokens that the model lacks", extra={"tokens": unknown})
    content["added_tokens"] = [token for token in added if token["id"] < vocabulary]
    if isinstance(content["model"]["vocab"], dict):
        for token in unknown:
            content["model"]["vocab"].pop(token, None)
    return json.dumps(content)


def _converted(manifest: Manifest) -> str:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(manifest.folder), local_files_only=True, trust_remote_code=False
        )
        return str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # Dozens of converters, each with errors of its own.
        raise ModelRejected(
            "The folder has no tokenizer.json and converting its tokenizer failed: "
            f"{sentence(str(error))} "
            "Save a fast one: AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)."
        ) from error


def _no_tokenizer() -> ModelRejected:
    return ModelRejected(
        "The folder holds no vocabulary: neither tokenizer.json nor a file it could be made from. "
        "Save the tokenizer beside the model: AutoTokenizer.from_pretrained(…).save_pretrained(…)."
    )


def _too_long(where: str, tokens: int, limit: int, instead: str = "") -> ApiError:
    return ApiError(
        "input_too_long",
        f"{where}: got {tokens} tokens, the model takes at most {limit}.{instead}",
        param=where,
    )
