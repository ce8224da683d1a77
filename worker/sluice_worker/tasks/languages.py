"""Which languages a translation model knows, and what a pair of them changes about a text.

Four kinds: tokens that stand for languages on both sides (mBART, M2M100, NLLB), a token before the
text that names the target (Marian), words before the text (T5), and models of one pair.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.models.text_tokenizer import Frame, TextTokenizer
from sluice_worker.models.writer import Writer


@dataclass(frozen=True, slots=True)
class Direction:
    """From one language to another.

    Attributes:
        source, target: as the answer names them; None where the model has no names for them.
        frame: the tokens around the text.
        prefix: words before the text.
        variant: the task by whose name the configuration has further defaults; may be unknown.
        start, forced_first: replace the model's own, if not None.
    """

    source: str | None
    target: str | None
    frame: Frame
    prefix: str = ""
    variant: str = ""
    start: int | None = None
    forced_first: int | None = None


Choose = Callable[[str | None, str | None], Direction]
"""From the languages a call names to what they mean. Raises ApiError with the known ones."""


def languages_of(writer: Writer, tokenizer: TextTokenizer) -> Choose:
    """How calls to this model choose their languages."""
    if tokenizer.languages:
        return _Tokens(writer, tokenizer).choose
    if tokenizer.targets:
        return _Targets(tokenizer).choose
    pairs = _worded_pairs(writer)
    if pairs:
        return _Words(tokenizer, writer, pairs).choose
    return _OnePair(tokenizer).choose


class _Tokens:
    """A token for each language: one in the frame of the text, one that the answer begins with."""

    def __init__(self, writer: Writer, tokenizer: TextTokenizer) -> None:
        self._ids = tokenizer.languages
        self._frame = tokenizer.frame
        self._source = tokenizer.source
        codes = {token: code for code, token in self._ids.items()}
        self._starts_with_target = writer.start in codes
        forced = writer.defaults.get("forced_bos_token_id")
        own = codes.get(int(writer.start if self._starts_with_target else forced or 0))
        self._target = own or tokenizer.target

    def choose(self, source: str | None, target: str | None) -> Direction:
        here = _named("source", source or self._source, self._ids)
        there = _named("target", target or self._target, self._ids)
        if here == there and (source or target) is not None:
            raise _same(here, given=target is not None)
        token = self._ids[there]
        return Direction(
            here,
            there,
            self._framed(self._ids[here]),
            start=token if self._starts_with_target else None,
            forced_first=None if self._starts_with_target else token,
        )

    def _framed(self, language: int) -> Frame:
        known = set(self._ids.values())
        before = tuple(language if token in known else token for token in self._frame.before)
        behind = tuple(language if token in known else token for token in self._frame.behind)
        if not known & {*before, *behind}:
            before = (language, *before)
        return Frame(before, behind)


class _Targets:
    """A token before the text says what language it is to be written in."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._ids = tokenizer.targets
        self._frame = tokenizer.frame
        self._pair = (tokenizer.source, tokenizer.target)

    def choose(self, source: str | None, target: str | None) -> Direction:
        own, usual = self._pair
        if source is not None and own is not None and source != own:
            raise _unknown("source", source, [own])
        there = _named("target", target or (usual if usual in self._ids else None), self._ids)
        frame = Frame((self._ids[there], *self._frame.before), self._frame.behind)
        return Direction(source or own, there, frame)


class _Words:
    """T5: the pair is said in words, which the configuration has for each pair."""

    def __init__(
        self, tokenizer: TextTokenizer, writer: Writer, pairs: dict[tuple[str, str], str]
    ) -> None:
        self._frame = tokenizer.frame
        self._by_task = writer.by_task
        self._pairs = pairs

    def choose(self, source: str | None, target: str | None) -> Direction:
        pairs = list(self._pairs)
        if source is not None:
            pairs = [pair for pair in pairs if pair[0] == source]
            if not pairs:
                raise _unknown("source", source, sorted({here for here, _ in self._pairs}))
        if target is not None:
            possible = sorted({there for _, there in pairs})
            pairs = [pair for pair in pairs if pair[1] == target]
            if not pairs:
                raise _unknown("target", target, possible)
        if len(pairs) > 1:
            missing = "target" if target is None else "source"
            raise _missing(missing, sorted({pair[target is None] for pair in pairs}))
        pair = pairs[0]
        variant = self._pairs[pair]
        prefix = str(self._by_task[variant].get("prefix") or "")
        return Direction(*pair, self._frame, prefix=prefix, variant=variant)


class _OnePair:
    """A model of one pair, whose names its tokenizer's configuration may have."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._frame = tokenizer.frame
        self._pair = (tokenizer.source, tokenizer.target)

    def choose(self, source: str | None, target: str | None) -> Direction:
        for field, given, own in (
            ("source", source, self._pair[0]),
            ("target", target, self._pair[1]),
        ):
            if given is None or given == own:
                continue
            if own is None:
                raise ApiError(
                    "invalid_field",
                    f"parameters.{field}: got {given!r}, but this model translates one pair of "
                    "languages and has no names for them. Leave it out.",
                    param=f"parameters.{field}",
                )
            raise _unknown(field, given, [own])
        return Direction(*self._pair, self._frame)


def _worded_pairs(writer: Writer) -> dict[tuple[str, str], str]:
    """``translation_en_to_de`` and the like: the pair and the name."""
    found = {}
    for name in writer.by_task:
        source, separator, target = name.removeprefix(f"{Task.TRANSLATION}_").partition("_to_")
        if name.startswith(Task.TRANSLATION) and separator:
            found[source, target] = name
    return found


def _named(field: str, given: str | None, known: Iterable[str]) -> str:
    """The model's own code for a language, which may be given without its region or script."""
    codes = list(known)
    if given is None:
        raise _missing(field, sorted(codes))
    if given in codes:
        return given
    short = [code for code in codes if code.partition("_")[0] == given.lower()]
    if len(short) == 1:
        return short[0]
    raise _unknown(field, given, sorted(short or codes))


def _same(language: str, *, given: bool) -> ApiError:
    field, other = ("target", "source") if given else ("source", "target")
    return ApiError(
        "invalid_field",
        f"parameters.{field}: got {language!r}, which is the {other} as well; there is nothing to "
        f"translate. Say the language of the text in parameters.source and another in "
        "parameters.target.",
        param=f"parameters.{field}",
    )


def _unknown(field: str, given: str, known: list[str]) -> ApiError:
    return ApiError(
        "invalid_field",
        f"parameters.{field}: got {given!r}, this model knows {', '.join(known)}.",
        param=f"parameters.{field}",
    )


def _missing(field: str, known: list[str]) -> ApiError:
    return ApiError(
        "missing_field",
        f"parameters.{field}: required, this model knows {', '.join(known)}.",
        param=f"parameters.{field}",
    )
