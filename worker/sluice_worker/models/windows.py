"""Long texts in windows that overlap, and which window has the say about which token.

Used by the tasks that look at every token of a text (``tasks``). Pure arithmetic over positions, so
offsets stay exact whatever is cut: nothing is tokenised twice.
"""

import itertools
from collections.abc import Sequence

from sluice_api.errors import ApiError
from sluice_worker.models.tokenizer import MAX_WINDOWS

OVERLAP_SHARE = 4
"""Neighbours share a quarter of a window where the caller does not say."""


def windows(tokens: int, room: int, overlap: int | None, *, where: str) -> list[range]:
    """Ranges of ``tokens`` that together hold them all; one where they fit, evenly spread else.

    Args:
        room: tokens of one window, special ones not counted.
        overlap: how many tokens neighbours share at least; None for a quarter of ``room``.
        where: how the caller finds the text again.

    Raises:
        ApiError: ``overlap`` leaves no step, or the text needs too many windows.
    """
    if overlap is not None and overlap >= room:
        raise ApiError(
            "invalid_field",
            f"parameters.stride: got {overlap}, needs less than the {room} tokens of one window.",
            param="parameters.stride",
        )
    if tokens <= room:
        return [range(tokens)]
    shared = room // OVERLAP_SHARE if overlap is None else overlap
    count = -(-(tokens - shared) // (room - shared))
    if count > MAX_WINDOWS:
        raise ApiError(
            "input_too_long",
            f"{where}: got {tokens} tokens, which are {count} windows of {room}; at most "
            f"{MAX_WINDOWS} are computed.",
            param=where,
        )
    starts = [index * (tokens - room) // (count - 1) for index in range(count)]
    return [range(start, start + room) for start in starts]


def own_parts(parts: Sequence[range]) -> list[range]:
    """For each window the tokens it decides about: those that it knows more context of.

    Neighbours divide what they share in the middle.
    """
    cuts = [(one.stop + other.start + 1) // 2 for one, other in itertools.pairwise(parts)]
    starts = [parts[0].start, *cuts]
    stops = [*cuts, parts[-1].stop]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
