"""Guesses at what comes next, from what the text has said before (prompt lookup decoding).

Where the last words have stood before, what followed them then may follow now. A guess costs a few
tokens in a step that has room for them, and is kept only as far as the model would have written the
same. After Saxena, "Prompt Lookup Decoding" (2023).
"""

_WORDS = 3
_MOST = 7
_PATIENCE = 16


class Lookup:
    """Of one sequence: where each run of three tokens stood last."""

    __slots__ = ("_after", "_length", "_pause", "_seen")

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = 0
        self._length = 2
        self._pause = 0

    def guess(self, ids: list[int], most: int) -> list[int]:
        """What may follow ``ids``; at most ``most`` tokens, often none."""
        for end in range(max(self._seen, _WORDS), len(ids)):
            self._after[tuple(ids[end - _WORDS : end])] = end
        self._seen = len(ids)
        if self._pause:
            self._pause -= 1
            return []
        begin = self._after.get(tuple(ids[-_WORDS:]))
        return [] if begin is None else ids[begin : begin + min(most, self._length)]

    def learn(self, guessed: int, right: int) -> None:
        """Guess longer while it comes true, and pause when it does not."""
        if right == guessed:
            self._length = min(_MOST, self._length + 1)
        elif right == 0:
            self._length = max(1, self._length - 1)
            self._pause = _PATIENCE if self._length == 1 else 0
