"""API keys: how one is made, and what is kept of it.

A key is ``sk-sluice-ID-SECRET``: an id for people and logs, 256 random bits, and a checksum by
which scanners of repositories tell a key from what only looks like one. Only its SHA-256 is kept:
nothing slow is needed for what nobody can guess. ``sluice keys`` makes them, the gateway digests
what it is shown.
"""

import hashlib
import secrets
import string
import zlib
from typing import Final, NamedTuple

PREFIX: Final = "sk-sluice-"
_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_LETTERS: Final = string.digits + string.ascii_letters
_ID_LENGTH: Final = 8
_SECRET_LENGTH: Final = 43
"""62^43 > 2^256."""
_CHECK_LENGTH: Final = 6


class NewKey(NamedTuple):
    """A key that was just made; ``text`` is shown once and kept by nobody."""

    id: str
    text: str
    sha256: str


def make_key() -> NewKey:
    identity = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    body = "".join(secrets.choice(_LETTERS) for _ in range(_SECRET_LENGTH))
    text = f"{PREFIX}{identity}-{body}{_check(identity + body)}"
    return NewKey(identity, text, digest(text.encode()).hex())


def digest(key: bytes) -> bytes:
    """The 32 bytes that are kept of a key."""
    return hashlib.sha256(key).digest()


def is_whole(text: str) -> bool:
    """Whether ``text`` is a key of ours from its first to its last letter."""
    identity, dash, rest = text.removeprefix(PREFIX).partition("-")
    body, check = rest[:-_CHECK_LENGTH], rest[-_CHECK_LENGTH:]
    return text.startswith(PREFIX) and dash == "-" and check == _check(identity + body)


def _check(text: str) -> str:
    number, letters = zlib.crc32(text.encode()), []
    for _ in range(_CHECK_LENGTH):
        number, digit = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[digit])
    return "".join(letters)
