"""How many values a large JSON body may hold: refused by counting bytes, before any is made.

An empty list takes two bytes on the wire and some 70 in memory, so a body of 16 MiB could take 600.
``decode`` and ``v2_binary`` ask here first; what is small enough is not looked at.
"""

import re
from typing import Final

from sluice_api.errors import ApiError

LARGE: Final = 64 * 1024
"""Bytes of a body that may hold anything."""
MAX_TEXTS: Final = 1 << 20
"""Texts, names of members among them."""
MAX_NESTS: Final = 1 << 19
"""Lists and objects."""
MAX_PARTS: Final = 1 << 21
"""Entries of lists and members of objects, however they nest: as many token ids are two of the
longest inputs."""

_TEXT: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def check_counts(body: bytes) -> None:
    """Raise ApiError if ``body`` holds more values than the bounds above."""
    if len(body) <= LARGE:
        return
    # An escaped quote is within a text. Where "\\" ends one it is counted for two too few, at most.
    texts = (body.count(b'"') - body.count(b'\\"')) // 2
    if texts > MAX_TEXTS:
        raise _too_many(texts, "texts and names", MAX_TEXTS)
    nests = body.count(b"[") + body.count(b"{")
    parts = body.count(b",")
    if nests > MAX_NESTS or parts > MAX_PARTS:
        # Perhaps they stand in texts: prose and programs are not what takes the memory.
        for text in _TEXT.finditer(body):
            start, end = text.span()
            nests -= body.count(b"[", start, end) + body.count(b"{", start, end)
            parts -= body.count(b",", start, end)
    if nests > MAX_NESTS:
        raise _too_many(nests, "lists and objects", MAX_NESTS)
    if parts > MAX_PARTS:
        raise _too_many(parts, "values", MAX_PARTS)


def _too_many(count: int, what: str, allowed: int) -> ApiError:
    return ApiError(
        "too_many_inputs",
        f"The body: holds {count} {what}, at most {allowed} are taken in one request.",
    )
