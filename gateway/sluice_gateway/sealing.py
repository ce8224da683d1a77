"""Encryption of what lies in Redis: who can read or write there learns and forges nothing.

AES-256-GCM under a key of each process's own, made from the shared secret and a random salt that
stands in front of every value. So the counter that the nonce is made of can never meet another
process's under the same key, however many gateways write for however long. The name that a value is
stored under is authenticated with it: under any other name it does not open.
"""

import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT: Final = 2
"""First byte of what is sealed; another one is of another version's making."""

_SALT_BYTES: Final = 16
_COUNTER_BYTES: Final = 8
_NONCE_HEAD: Final = bytes(4)
_START: Final = 1 + _SALT_BYTES + _COUNTER_BYTES
OVERHEAD: Final = _START + 16
"""Bytes that sealing adds: what stands in front, and the tag."""

_MAX_SEALS: Final = 2**32
"""Under one salt; far below what GCM's counter and its bound on data allow."""
_MAX_SALTS: Final = 256
"""Keys of other processes that are kept ready; a forged salt costs one of them, no more."""


_forks = itertools.count(1)
_lineage = [0]
"""Another number in each process that this one is forked into. To ask for the process's own costs a
system call for each value."""
os.register_at_fork(after_in_child=lambda: _lineage.__setitem__(0, next(_forks)))


class Sealer:
    """Seals and opens under one secret.

    Args:
        derive: makes 32 bytes of key from a salt, and nobody without the secret can.
    """

    def __init__(self, derive: Callable[[bytes], bytes]) -> None:
        # Imported late: without Redis, a gateway seals nothing.
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import aead

        self._make: Callable[[bytes], AESGCM] = lambda salt: aead.AESGCM(derive(salt))
        self._invalid = InvalidTag
        self._known: dict[bytes, AESGCM] = {}
        self._process = -1
        self._front = b""
        self._cipher: AESGCM | None = None
        self._count = 0

    def seal(self, name: bytes, plain: bytes) -> bytes:
        """What opens to ``plain`` under ``name`` only."""
        if self._process != _lineage[0] or self._count >= _MAX_SEALS:
            self._begin()
        assert self._cipher is not None
        self._count += 1
        counter = self._count.to_bytes(_COUNTER_BYTES)
        sealed = self._cipher.encrypt(_NONCE_HEAD + counter, plain, self._front[:1] + name)
        return self._front + counter + sealed

    def open(self, name: bytes, value: bytes) -> bytes | None:
        """What was sealed under ``name``, at least :data:`OVERHEAD` bytes; None if it was not."""
        salt, counter = value[1 : 1 + _SALT_BYTES], value[1 + _SALT_BYTES : _START]
        cipher = self._known.get(salt)
        if cipher is None:
            if len(self._known) >= _MAX_SALTS:
                del self._known[next(iter(self._known))]
            cipher = self._known[salt] = self._make(salt)
        try:
            return cipher.decrypt(_NONCE_HEAD + counter, value[_START:], value[:1] + name)
        except self._invalid:
            return None

    def _begin(self) -> None:
        """A key that nobody has used: also not the process that this one was forked from."""
        salt = os.urandom(_SALT_BYTES)
        self._front = bytes([FORMAT]) + salt
        self._cipher = self._make(salt)
        self._count = 0
        self._process = _lineage[0]

    def __repr__(self) -> str:
        return f"<Sealer {self._count} sealed, {len(self._known)} keys known>"
