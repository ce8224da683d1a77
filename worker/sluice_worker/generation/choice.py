"""One choice as it is written: from tokens to text, held back where it may yet be cut.

Listens to a sequence on the engine's thread, and gathers what the event loop is to be told. A stop
string never shows, not even its beginning; half a character never shows either.
"""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from sluice_api.shapes.generated import (
    Alternative,
    Choice,
    Delta,
    FinishReason,
    TokenLogprob,
    ToolCall,
)
from sluice_worker.engines.decoder.sampling import Drawn
from sluice_worker.generation.tools import Found, ToolParser, partial_suffix

PRIMING_TOKENS = 6
"""Of the prompt: whether a first word begins with a space depends on what it follows."""
HALF = "\ufffd"
"""What tokenizers make of bytes that are no character."""


class Writing:
    """Implements :class:`sluice_worker.engines.decoder.sequence.Listener`.

    Args:
        fast: the engine thread's own tokenizer, made when first called.
        bytes_of: of a token; only asked where probabilities are wanted.
        on_news: called on the engine's thread when there is something to collect.
    """

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        fast: Callable[[], FastTokenizer],
        bytes_of: Callable[[int], bytes],
        *,
        stops: Sequence[str] = (),
        tools: ToolParser | None = None,
        parallel_calls: bool = True,
        named_call: bool = False,
        scored: bool = False,
        on_news: Callable[["Writing"], None],
    ) -> None:
        self.index = index
        self.error: Exception | None = None
        self.reason: FinishReason | None = None
        self._fast = fast
        self._bytes_of = bytes_of
        self._prompt_end = list(prompt[-PRIMING_TOKENS:])
        self._stream: DecodeStream | None = None
        self._stops = stops
        self._tools = tools
        self._parallel_calls = parallel_calls
        self._named_call = named_call
        self._on_news = on_news
        self._held = ""
        self._length = 0
        self._shown: list[str] = []
        self._calls: list[ToolCall] = []
        self._scores: list[tuple[int, TokenLogprob]] | None = [] if scored else None
        self._news: list[Delta] = []
        self._told_scores = 0
        self._cut: int | None = None

    def __repr__(self) -> str:
        return f"<Writing {self.index}: {self._length} characters, {self.reason or 'goes on'}>"

    # On the engine's thread -----------------------------------------------------------------------

    def take(self, drawn: Drawn) -> FinishReason | None:
        if drawn.logprob is not None and self._scores is not None:
            chosen = self._alternative(drawn.token, drawn.logprob)
            top = [self._alternative(token, logprob) for token, logprob in drawn.top]
            self._scores.append((self._length, TokenLogprob(chosen, top)))
        text = self._decoded(drawn.token)
        if text is None:
            return None
        self._held += text
        self._length += len(text)
        place = min((at for at in (self._held.find(s) for s in self._stops) if at >= 0), default=-1)
        if place >= 0:
            self._cut = self._length - len(self._held) + place
            self._held = self._held[:place]
            return "stop"
        kept = partial_suffix(self._held, *self._stops)
        self._show(self._held[: len(self._held) - kept])
        self._held = self._held[len(self._held) - kept :]
        if self._calls and not self._parallel_calls:
            return "stop"
        return None

    def _decoded(self, token: int) -> str | None:
        """The text that is complete with ``token``; None for half a character."""
        fast, skips = self._fast(), self._tools is None
        if self._stream is None:
            self._stream = DecodeStream(ids=self._whole_end(fast), skip_special_tokens=skips)
        try:
            return self._stream.step(fast, token)
        except Exception:
            # Of the library, when what came before is no beginning of what is there now, as with
            # tokens that nobody would write in this order: from here on it is told anew.
            self._stream = DecodeStream(skip_special_tokens=skips)
            return self._stream.step(fast, token)

    def _whole_end(self, fast: FastTokenizer) -> list[int]:
        """The prompt's last tokens that are whole characters: half of one would show as text."""
        ends = (self._prompt_end[begin:] for begin in range(len(self._prompt_end)))
        return next((ids for ids in ends if HALF not in fast.decode(ids)), [])

    def finish(self, reason: FinishReason) -> None:
        self._show(self._held)
        self._held = ""
        if self._tools is not None:
            self._tell(self._tools.finish(cut=reason == "length" or self._cut is not None))
        if not self._parallel_calls:
            del self._calls[1:]
        called = bool(self._calls) and reason == "stop" and not self._named_call
        self.reason = "tool_calls" if called else reason
        self._news.append(Delta(self.index, "", self._new_scores(), (), self.reason))
        self._on_news(self)

    def fail(self, error: Exception) -> None:
        self.error = error
        self._on_news(self)

    def collect(self) -> list[Delta]:
        """What is new since the last time."""
        news, self._news = self._news, []
        return news

    def _show(self, text: str) -> None:
        if text:
            self._tell(Found(text) if self._tools is None else self._tools.feed(text))

    def _tell(self, found: Found) -> None:
        places = range(len(self._calls), len(self._calls) + len(found.calls))
        self._calls += found.calls
        if not self._parallel_calls:
            places = range(places.start, min(places.stop, 1))
        calls = tuple(zip(places, found.calls, strict=False))
        if found.text:
            self._shown.append(found.text)
        if found.text or calls:
            scores = self._new_scores() if found.text else None
            self._news.append(Delta(self.index, found.text, scores, calls))
            self._on_news(self)

    def _new_scores(self) -> list[TokenLogprob] | None:
        if self._scores is None:
            return None
        scores = [
            score
            for begin, score in self._scores[self._told_scores :]
            if self._cut is None or begin < self._cut
        ]
        self._told_scores = len(self._scores)
        return scores

    def _alternative(self, token: int, logprob: float) -> Alternative:
        meant = self._bytes_of(token)
        return Alternative(meant.decode("utf-8", "replace"), logprob, meant)

    # When it is over ------------------------------------------------------------------------------

    def choice(self) -> Choice:
        """The whole choice. Needs a :attr:`reason`."""
        assert self.reason is not None, "it is over"
        scores = self._scores
        if scores is not None and self._cut is not None:
            scores = [(begin, score) for begin, score in scores if begin < self._cut]
        return Choice(
            "".join(self._shown),
            self.reason,
            None if scores is None else [score for _, score in scores],
            self._calls,
        )
