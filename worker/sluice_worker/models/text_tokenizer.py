"""The tokenizer of a model that writes texts: texts to ids, ids to texts, and the languages it has.

Two kinds of folders: one with ``tokenizer.json``, and one with SentencePiece files whose pieces
``vocab.json`` maps to the model's ids (Marian, M2M100). Tasks use both alike.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders

from sluice_api.wording import sentence
from sluice_worker.models.encoding import encoding_of
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import Manifest
from sluice_worker.models.sentencepiece import SPACE, read_pieces, tokenizer_of

_LANGUAGE = re.compile(r"__(?P<m2m>[a-z]{2,3})__|(?P<code>[a-z]{2,3}_[A-Z]([A-Z]|[a-z]{3}))")
"""Tokens that stand for a language: ``__en__`` (M2M100), ``en_XX`` (mBART), ``eng_Latn`` (NLLB)."""
_MARKER = re.compile(r"<(?P<code>[a-z]+)>")
_NO_MARKERS = frozenset(("<s>", "<pad>", "<unk>", "<mask>", "<eos>", "<bos>"))
_TARGET = re.compile(r">>(?P<code>[^<>]+)<<")
"""Before a text, what language it is to be written in (Marian)."""

_CLEANED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
            (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip
"""What transformers does under ``clean_up_tokenization_spaces``, in its order."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens that stand before and behind a text."""

    before: tuple[int, ...]
    behind: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.before) + len(self.behind)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The files of a SentencePiece folder.

    Attributes:
        ids: by place among the pieces, the model's own token id.
        spellings: by the model's id, the piece it stands for.
        special: ids that are no text.
    """

    ids: tuple[int, ...]
    spellings: Mapping[int, str]
    special: frozenset[int]


class TextTokenizer:
    """Use :func:`load_text_tokenizer` to make one.

    Args:
        serialized: the content of a ``tokenizer.json``, or the like of it for ``pieces``.
        frame: what stands around a text, in the tokenizer's own default language.
        languages: by code, the token that stands for the language in the frame and in front of
            what is written.
        targets: by code, the token that asks for the language in front of what is read.
        markers: by token, the names in angle brackets that a text may be written with.
        source, target: the languages that are meant where none is named; may be None.
        cleans: spaces before punctuation are taken out of what is written.
    """

    def __init__(
        self,
        serialized: str,
        frame: Frame,
        *,
        languages: Mapping[str, int],
        targets: Mapping[str, int],
        markers: Mapping[int, str],
        source: str | None,
        target: str | None,
        pieces: Pieces | None = None,
        cleans: bool = False,
    ) -> None:
        self.frame = frame
        self.languages = languages
        self.targets = targets
        self.markers = markers
        self.source = source
        self.target = target
        self._serialized = serialized
        self._pieces = pieces
        self._cleans = cleans
        self._local = threading.local()

    def __repr__(self) -> str:
        kind = "tokenizer.json" if self._pieces is None else "SentencePiece"
        return f"<TextTokenizer {kind}, {len(self.languages) or len(self.targets)} languages>"

    @property
    def _fast(self) -> FastTokenizer:
        fast: FastTokenizer | None = getattr(self._local, "fast", None)
        if fast is None:  # One per thread: a shared one fails with "Already borrowed" under load.
            fast = FastTokenizer.from_str(self._serialized)
            fast.no_truncation()
            fast.no_padding()
            self._local.fast = fast
        return fast

    def ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, without any around it."""
        return self._own(encoding_of(self._fast, text, special=False).ids)

    def ends(self, text: str) -> list[int]:
        """Where each token of :meth:`ids` ends, in characters of the text."""
        encoding = encoding_of(self._fast, text, special=False)
        return [end for _, end in encoding.offsets]

    def text(self, ids: Sequence[int]) -> str:
        """What some tokens say. Special tokens are left out."""
        if self._pieces is None:
            text: str = self._fast.decode(list(ids), skip_special_tokens=True)
        else:
            spellings, special = self._pieces.spellings, self._pieces.special
            kept = [
                spellings[token] for token in ids if token in spellings and token not in special
            ]
            text = str(_PIECES.decode(kept)).strip()
        if self._cleans:
            for spaced, plain in _CLEANED:
                text = text.replace(spaced, plain)
        return text

    def spelling(self, token: int) -> str:
        """A token as the vocabulary has it; empty where it has none."""
        if self._pieces is None:
            return self._fast.id_to_token(token) or ""
        return self._pieces.spellings.get(token, "")

    def id_of(self, spelling: str) -> int | None:
        """Undo :meth:`spelling`; None for what is not in the vocabulary."""
        if self._pieces is None:
            found: int | None = self._fast.token_to_id(spelling)
            return found
        places = self._pieces.spellings.items()
        return next((token for token, text in places if text == spelling), None)

    def highest_id(self) -> int:
        """The highest token id that a text can turn into."""
        if self._pieces is None:
            return max(self._fast.get_vocab().values(), default=0)
        return max(self._pieces.ids, default=0)

    def _own(self, ids: list[int]) -> tuple[int, ...]:
        if self._pieces is None:
            return tuple(ids)
        return tuple(self._pieces.ids[place] for place in ids)


_PIECES = decoders.Sequence(
    [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
)


def load_text_tokenizer(manifest: Manifest, vocabulary: int) -> TextTokenizer:
    """The tokenizer of a verified folder. Raises ModelRejected.

    Args:
        vocabulary: ids below this exist in the model.
    """
    settings = manifest.read_json("tokenizer_config.json") or {}
    try:
        if "tokenizer.json" in manifest.sums:
            tokenizer = _from_json(manifest, settings)
        elif "vocab.json" in manifest.sums and _spm_name(manifest):
            tokenizer = _from_pieces(manifest, settings)
        else:
            raise ModelRejected(
                "The folder has neither tokenizer.json nor SentencePiece files with a vocab.json. "
                "Save a fast tokenizer beside the model: "
                "AutoTokenizer.from_pretrained(…).save_pretrained(folder)."
            )
        highest = tokenizer.highest_id()
    except ModelRejected:
        raise
    except Exception as error:  # The library raises bare Exception for whatever is wrong.
        told = sentence(str(error))
        raise ModelRejected(f"The tokenizer cannot be used: {told} Save it again.") from error
    if highest >= vocabulary:
        raise ModelRejected(
            f"The tokenizer has token ids up to {highest}, the model knows {vocabulary}. "
            "Save model and tokenizer together."
        )
    return tokenizer


def _from_json(manifest: Manifest, settings: Mapping[str, Any]) -> TextTokenizer:
    serialized = (manifest.folder / "tokenizer.json").read_text(encoding="utf-8")
    fast = FastTokenizer.from_str(serialized)
    probe = fast.encode("a")
    mask = probe.special_tokens_mask
    first = mask.index(0) if 0 in mask else len(mask)
    last = len(mask) - mask[::-1].index(0) if 0 in mask else len(mask)
    added = {token.content: id_ for id_, token in fast.get_added_tokens_decoder().items()}
    is_bpe = type(fast.model).__name__ == "BPE"
    frame = Frame(tuple(probe.ids[:first]), tuple(probe.ids[last:]))
    languages = _coded(_LANGUAGE, added)
    is_nllb = str(settings.get("tokenizer_class")).startswith("Nllb")
    if is_nllb and not settings.get("legacy_behaviour"):
        frame = _language_first(frame, frozenset(languages.values()))
    return TextTokenizer(
        serialized,
        frame,
        languages=languages,
        targets=_coded(_TARGET, added),
        markers={id_: name for name, id_ in _coded(_MARKER, added).items()},
        source=settings.get("src_lang") or settings.get("source_lang"),
        target=settings.get("tgt_lang") or settings.get("target_lang"),
        cleans=bool(settings.get("clean_up_tokenization_spaces")) and not is_bpe,
    )


def _language_first(frame: Frame, languages: frozenset[int]) -> Frame:
    """NLLB's frame, whose published files are older than its language's place before the text."""
    language = tuple(token for token in frame.behind if token in languages)
    behind = tuple(token for token in frame.behind if token not in languages)
    return Frame((*language, *frame.before), behind)


def _from_pieces(manifest: Manifest, settings: Mapping[str, Any]) -> TextTokenizer:
    vocabulary: dict[str, int] = manifest.read_json("vocab.json")
    written = manifest.read_json("target_vocab.json") or vocabulary
    name = _spm_name(manifest)
    model = read_pieces((manifest.folder / name).read_bytes(), name)
    for token in ("</s>", "<unk>"):
        if token not in vocabulary:
            raise ModelRejected(f"vocab.json has no {token}. Fetch the model again.")
    end, unknown = vocabulary["</s>"], vocabulary["<unk>"]
    languages = _language_ids(manifest, settings, len(vocabulary))
    spellings = {token: piece for piece, token in written.items()}
    spellings |= {token: spelling for spelling, token in languages.items()}
    special = {*languages.values(), *(written.get(t, unknown) for t in ("<s>", "<pad>", "</s>"))}
    targets = _coded(_TARGET, vocabulary)
    coded = _coded(_LANGUAGE, languages)
    source = settings.get("src_lang") or settings.get("source_lang")
    if coded and source not in coded:
        source = "en" if "en" in coded else None  # As M2M100's tokenizer has it.
    before = (coded[source],) if coded and source is not None else ()
    return TextTokenizer(
        tokenizer_of(model).to_str(),
        Frame(before, (end,)),
        languages=coded,
        targets=targets,
        markers={},
        source=source,
        target=settings.get("tgt_lang") or settings.get("target_lang"),
        pieces=Pieces(
            ids=tuple(vocabulary.get(piece, unknown) for piece, _, _ in model.pieces),
            spellings=spellings,
            special=frozenset({*special, unknown, *targets.values()}),
        ),
    )


def _spm_name(manifest: Manifest) -> str:
    names = ("source.spm", "sentencepiece.bpe.model")
    return next((name for name in names if name in manifest.sums), "")


def _language_ids(manifest: Manifest, settings: Mapping[str, Any], first: int) -> dict[str, int]:
    """M2M100's language tokens, which ``vocab.json`` does not have: they follow it in order."""
    placed = settings.get("added_tokens_decoder") or {}
    found = {
        str(token.get("content")): int(place)
        for place, token in placed.items()
        if _LANGUAGE.fullmatch(str(token.get("content")))
    }
    if found:
        return found
    special = manifest.read_json("special_tokens_map.json") or {}
    listed = next(
        (
            found[key]
            for found in (special, settings)
            for key in ("additional_special_tokens", "extra_special_tokens")
            if found.get(key)
        ),
        (),
    )
    names = [token["content"] if isinstance(token, dict) else token for token in listed]
    return {
        name: first + place
        for place, name in enumerate(name for name in names if _LANGUAGE.fullmatch(name))
    }


def _coded(pattern: re.Pattern[str], tokens: Mapping[str, int]) -> dict[str, int]:
    """By the code inside them, the ids of the tokens that ``pattern`` matches."""
    found: dict[str, int] = {}
    for token, id_ in sorted(tokens.items(), key=lambda pair: pair[1]):
        if token not in _NO_MARKERS and (match := pattern.fullmatch(token)):
            code = next(code for code in match.groupdict().values() if code is not None)
            found[code] = id_
    return found
