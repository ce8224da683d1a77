"""Values that prove whose they are: what stands in Redis for one answer.

``cache.py`` seals what it stores and opens what it reads. A value is sealed under its *whole key*,
so a reply that was swapped, replayed for another question, cut, flipped or made up by somebody who
can write to Redis opens to a fault and counts as a miss. ``sealing.py`` does the cryptography; here
stands what is inside: a header, big-endian, and the answer, compressed where that is worth it.
"""

import struct
import zlib
from typing import Final, Literal

import msgspec

from sluice_api.call import Item
from sluice_gateway.sealing import FORMAT, OVERHEAD, Sealer

MAX_ENTRY_BYTES: Final = 256 * 1024
"""Bound on a sealed value and on the answer inside; larger answers are not cached."""

_COMPRESSED: Final = 1
_COMPRESS_FROM: Final = 1024
_WORTH: Final = 0.7
"""Compress only when this share or less remains: base64 of floats shrinks to 0.76 at best, and
inflating it on every hit costs more than the bytes do."""
_DENSE_SYMBOLS: Final = 56
"""Different bytes in a sample from which on it is taken for base64 or the like, without trying."""

_HEADER: Final = struct.Struct(">BIdddf")  # flags, tokens, created, fresh, expires, seconds
_SMALLEST: Final = OVERHEAD + _HEADER.size

Fault = Literal["wrong_type", "too_large", "truncated", "format", "not_proven", "expired"]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One answer. Times are seconds since the epoch.

    Attributes:
        fresh: until then it is as good as new.
        expires: until then it may be given by those rules that allow stale answers.
        seconds: what it took to compute; 0 when unknown.
    """

    item: Item
    created: float
    fresh: float
    expires: float
    seconds: float = 0.0


def seal(sealer: Sealer, key: bytes, entry: Entry) -> bytes | None:
    """The value to store under ``key``; None when it does not fit the layout."""
    item = entry.item
    if len(item.json) > MAX_ENTRY_BYTES - _SMALLEST or not 0 <= item.tokens < 2**32:
        return None
    payload, flags = item.json, 0
    if len(payload) >= _COMPRESS_FROM:
        payload, flags = _pack(payload)
    header = _HEADER.pack(
        flags, item.tokens, entry.created, entry.fresh, entry.expires, entry.seconds
    )
    return sealer.seal(key, header + payload)


def unseal(sealer: Sealer, key: bytes, value: object, now: float) -> Entry | Fault:
    """What ``value`` holds, or why it must not be used for ``key``. Never raises."""
    if not isinstance(value, bytes):
        return "wrong_type"
    if len(value) > MAX_ENTRY_BYTES:
        return "too_large"
    if len(value) < _SMALLEST:
        return "truncated"
    if value[0] != FORMAT:
        return "format"
    plain = sealer.open(key, value)
    if plain is None:
        return "not_proven"
    flags, tokens, created, fresh, expires, seconds = _HEADER.unpack_from(plain)
    if expires <= now:
        return "expired"
    payload = plain[_HEADER.size :]
    if flags & _COMPRESSED:
        inflated = _inflate(payload)
        if inflated is None:
            return "too_large"
        payload = inflated
    return Entry(Item(payload, tokens), created, fresh, expires, seconds)


def _pack(payload: bytes) -> tuple[bytes, int]:
    middle = len(payload) // 2
    if len(set(payload[middle - 256 : middle + 256])) < _DENSE_SYMBOLS:
        # A small window and little memory: starting a full-sized one costs more than the work.
        packer = zlib.compressobj(1, zlib.DEFLATED, 12, 4)
        packed = packer.compress(payload) + packer.flush()
        if len(packed) <= len(payload) * _WORTH:
            return packed, _COMPRESSED
    return payload, 0


def _inflate(payload: bytes) -> bytes | None:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(payload, MAX_ENTRY_BYTES)
    except zlib.error:  # Only a defect of our own gets here: these bytes have been proven.
        return None
    return plain if inflater.eof else None
