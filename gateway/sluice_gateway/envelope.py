"""Values that prove whose they are: what stands in Redis for one answer.

``cache.py`` seals what it stores and opens what it reads. A value proves its *whole key*, so a
reply that was swapped, replayed for another question, cut, flipped or made up by somebody who can
write to Redis opens to a fault and counts as a miss.

Layout, big-endian: a fixed header, the payload, 32 bytes of MAC over (key, header, payload). To
encrypt payloads, replace ``_pack``/``_unpack`` of the payload and take a new format number.
"""

import struct
import zlib
from hmac import compare_digest
from typing import Final, Literal, NamedTuple

from sluice_api.call import Item
from sluice_gateway.keys import Mac

MAX_ENTRY_BYTES: Final = 256 * 1024
"""Bound on a sealed value and on the answer inside; larger answers are not cached."""

_FORMAT: Final = 1
_COMPRESSED: Final = 1
_COMPRESS_FROM: Final = 1024
_WORTH: Final = 0.7
"""Compress only when this share or less remains: base64 of floats shrinks to 0.76 at best, and
inflating it on every hit costs more than the bytes do."""
_DENSE_SYMBOLS: Final = 56
"""Different bytes in a sample from which on it is taken for base64 or the like, without trying."""

_HEADER: Final = struct.Struct(">BBIddI")  # format, flags, tokens, created, expires, payload length
_MAC_BYTES: Final = 32
_SMALLEST: Final = _HEADER.size + _MAC_BYTES

Fault = Literal["wrong_type", "too_large", "truncated", "format", "not_proven", "expired"]


class Opened(NamedTuple):
    """A value that has proven its key. Times are seconds since the epoch."""

    item: Item
    created: float
    expires: float


def seal(mac: Mac, key: bytes, item: Item, created: float, expires: float) -> bytes | None:
    """The value to store under ``key``; None when it does not fit the layout."""
    if len(item.json) > MAX_ENTRY_BYTES - _SMALLEST or not 0 <= item.tokens < 2**32:
        return None
    payload, flags = _pack(item.json)
    header = _HEADER.pack(_FORMAT, flags, item.tokens, created, expires, len(payload))
    body = header + payload
    return body + mac(key + body)


def unseal(mac: Mac, key: bytes, value: object, now: float) -> Opened | Fault:
    """What ``value`` holds, or why it must not be used for ``key``. Never raises."""
    if not isinstance(value, bytes):
        return "wrong_type"
    if len(value) > MAX_ENTRY_BYTES:
        return "too_large"
    if len(value) < _SMALLEST:
        return "truncated"
    if value[0] != _FORMAT:
        return "format"
    if not compare_digest(mac(key + value[:-_MAC_BYTES]), value[-_MAC_BYTES:]):
        return "not_proven"
    _, flags, tokens, created, expires, length = _HEADER.unpack_from(value)
    if expires <= now:
        return "expired"
    if length != len(value) - _SMALLEST:
        return "truncated"
    payload = _unpack(value[_HEADER.size : -_MAC_BYTES], flags)
    return "too_large" if payload is None else Opened(Item(payload, tokens), created, expires)


def _pack(payload: bytes) -> tuple[bytes, int]:
    middle = len(payload) // 2
    if len(payload) >= _COMPRESS_FROM and (
        len(set(payload[middle - 256 : middle + 256])) < _DENSE_SYMBOLS
    ):
        # A small window and little memory: starting a full-sized one costs more than the work.
        packer = zlib.compressobj(1, zlib.DEFLATED, 12, 4)
        packed = packer.compress(payload) + packer.flush()
        if len(packed) <= len(payload) * _WORTH:
            return packed, _COMPRESSED
    return payload, 0


def _unpack(payload: bytes, flags: int) -> bytes | None:
    if not flags & _COMPRESSED:
        return payload
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(payload, MAX_ENTRY_BYTES)
    except zlib.error:  # Only a defect of our own gets here: the MAC covers these bytes.
        return None
    return plain if inflater.eof else None
