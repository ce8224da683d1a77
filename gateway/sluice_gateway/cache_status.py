"""The headers that say what the cache had to do with an answer: ``Cache-Status`` and ``Age``."""

import math
from typing import Final

from sluice_api import names

CACHE_STATUS: Final = names.CACHE_STATUS.encode() + b": " + names.CACHE_NAME.encode()


def hit_headers(ttl: float, age: float, more: bytes, detail: bytes = b"") -> bytes:
    """``Cache-Status`` and ``Age`` of an answer from the cache, and ``more`` lines."""
    return b"%b; hit; ttl=%d%b\r\nage: %d\r\n%b" % (
        CACHE_STATUS,
        math.floor(ttl),
        detail,
        math.floor(age),
        more,
    )
