"""Request ids: a caller's own is kept when it is harmless, otherwise one is made.

The id goes into logs, headers and error bodies of gateway and worker, so what it may hold is
decided here once.
"""

import re
import secrets

_HARMLESS = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")


def harmless(given: bytes) -> bool:
    """Whether a caller's own id may be used."""
    return _HARMLESS.fullmatch(given) is not None


def accept(given: bytes | None) -> str:
    """``given`` as it is, when it is at most 128 harmless characters; else a new id."""
    if given is not None and harmless(given):
        return given.decode("ascii")
    return secrets.token_hex(16)
