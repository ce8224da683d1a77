"""Cache keys, from the one place that builds them, and the secrets behind them.

Every lookup, store and coalescing of an answer is by a key made here, so nothing can share an
answer that does not share tenant scope, revision, answer digest, task, parameters and input. Keys
are HMACs: who can read Redis can neither guess what was asked nor compute where an answer lies.
"""

import hashlib
import os
import secrets
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, Self, final

import msgspec

from sluice_api.call import Input

SECRET_BYTES: Final = 32
MAX_SECRETS: Final = 2
"""The current secret, and during a rotation the one before it."""
KNOWN_BYTES: Final = 2048
"""Longer parameters are hashed each time: tools and schemas may be as large as a body."""

_SCHEMA: Final = 2
"""Raised when the meaning of the same fields changes; every key changes with it."""


class Mac:
    """HMAC-SHA256 under one secret, with the two padded key blocks hashed once.

    Copying a started hash costs 0.7 µs a message; ``hmac.digest``, which starts anew, 1.7 µs.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
        block = secret.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def __call__(self, message: bytes) -> bytes:
        """The 32 bytes that prove ``message``."""
        inner = self._inner.copy()
        inner.update(message)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()

    def after(self, head: bytes) -> "Mac":
        """This MAC with ``head`` already taken in: ``after(a)(b) == self(a + b)``."""
        advanced = object.__new__(Mac)
        advanced._inner = self._inner.copy()
        advanced._inner.update(head)
        advanced._outer = self._outer
        return advanced

    def __repr__(self) -> str:
        return "<Mac>"


class Keyring:
    """One secret, or two while they are rotated; the first is the one to write with.

    Each secret gives independent MACs: ``naming`` makes keys, ``sealing`` the keys that values are
    encrypted with.
    """

    __slots__ = ("naming", "sealing")

    def __init__(self, *ring: bytes) -> None:
        if not 1 <= len(ring) <= MAX_SECRETS:
            raise ValueError(f"a keyring holds 1 or {MAX_SECRETS} secrets, not {len(ring)}")
        macs = [Mac(secret) for secret in ring]
        self.naming = tuple(Mac(mac(b"sluice cache key")) for mac in macs)
        self.sealing = tuple(Mac(mac(b"sluice cache encryption")) for mac in macs)

    @classmethod
    def load(cls, path: Path | None, *, make: bool = True) -> Self:
        """Read the secrets, or make them when there are none yet.

        Args:
            path: a file of one or two lines of 64 hexadecimal digits each, the current secret
                first. A missing one is made, readable by its owner alone; of several processes
                that make it at once, all get the one that was first. None: a random secret that
                lives as long as this process.

            make: False where the file is given to several gateways, so that a missing one is not
                made by each for itself.

        Raises:
            ValueError: the file holds something else, or can be neither read nor made.
        """
        if path is None:
            return cls(secrets.token_bytes(SECRET_BYTES))
        try:
            if make and not path.exists():
                _make(path)
            text = path.read_text("ascii")
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            raise ValueError(
                f"{path}: {error.strerror or error}. --cache-secret must name a file that can be"
                f" read, with one or two lines of {2 * SECRET_BYTES} hexadecimal digits."
            ) from None
        try:
            return cls(*(bytes.fromhex(line) for line in text.split("\n") if line.strip()))
        except ValueError as error:
            raise ValueError(
                f"{path}: {error}; needs one or two lines of {2 * SECRET_BYTES} hexadecimal digits"
            ) from None

    def __repr__(self) -> str:
        return f"<Keyring {len(self.naming)} secrets>"


def _make(path: Path) -> None:
    """Make the secrets file whole or not at all; leave alone one that somebody else just made."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # Unlike a rename, a link never replaces what is there.
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)


@final
class TenantScope:
    """Who may share an answer. Made by :meth:`of` or :meth:`service_wide`, never from a bare text.

    There is no default and no empty scope: whoever builds a key has decided this.
    """

    __slots__ = ("wire",)

    wire: bytes
    """The scope as a field of a key: different scopes, different bytes."""

    def __init__(self) -> None:
        raise TypeError("use TenantScope.of(tenant) or TenantScope.service_wide(namespace, name)")

    @classmethod
    def of(cls, tenant: str) -> "TenantScope":
        """Only this tenant's requests share. Raises ValueError for an empty name."""
        if not isinstance(tenant, str) or not tenant:
            raise ValueError("a tenant scope needs the tenant's name")
        return cls._made(b"tenant:" + tenant.encode())

    @classmethod
    def service_wide(cls, namespace: str, name: str) -> "TenantScope":
        """Every caller of this service shares, and of no other one, whatever model that serves.

        Raises ValueError for an empty name.
        """
        if not namespace or not name:
            raise ValueError("a service's scope needs its namespace and name")
        space = namespace.encode()  # Behind its length: no two services come to the same bytes.
        return cls._made(b"service:%d:%b/%b" % (len(space), space, name.encode()))

    @classmethod
    def _made(cls, wire: bytes) -> "TenantScope":
        scope = object.__new__(cls)
        scope.wire = wire
        return scope

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TenantScope) and self.wire == other.wire

    def __hash__(self) -> int:
        return hash(self.wire)

    def __repr__(self) -> str:
        return f"<TenantScope {self.wire.partition(b':')[0].decode()}>"


def item_key(
    keyring: Keyring,
    scope: TenantScope,
    *,
    revision: str,
    answer_digest: str,
    task: str,
    parameters: bytes,
    item: Input,
    epoch: bytes = b"",
) -> bytes:
    """The key of the answer to one input: 32 bytes for each secret in the ring, current one first.

    Args:
        revision: the revision's digest.
        answer_digest: what the worker really loaded; without it an answer cannot be bound.
        parameters: :meth:`Call.canonical_parameters`.
        epoch: see :class:`~sluice_gateway.epochs.Epochs`; with another one, nothing is found again.

    Raises:
        ValueError: ``answer_digest`` or ``revision`` is empty.
        TypeError: ``scope`` is not a :class:`TenantScope`.
    """
    head = _head(_wire(scope), revision, answer_digest, task, parameters, epoch)
    message = head + _tail(item)
    naming = keyring.naming
    if len(naming) == 1:
        return naming[0](message)
    return b"".join([mac(message) for mac in naming])


def item_keys(
    keyring: Keyring,
    scope: TenantScope,
    *,
    revision: str,
    answer_digest: str,
    task: str,
    parameters: bytes,
    items: Sequence[Input],
    epoch: bytes = b"",
) -> list[bytes]:
    """:func:`item_key` of each input of one call, in order; what they share is hashed once."""
    start = _started if len(parameters) <= KNOWN_BYTES else _start
    macs = start(keyring, _wire(scope), revision, answer_digest, task, parameters, epoch)
    if len(macs) == 1:
        mac = macs[0]
        return [mac(_tail(items[0]))] if len(items) == 1 else [mac(_tail(item)) for item in items]
    return [b"".join([mac(tail) for mac in macs]) for tail in map(_tail, items)]


def _start(
    keyring: Keyring,
    scope: bytes,
    revision: str,
    answer_digest: str,
    task: str,
    parameters: bytes,
    epoch: bytes,
) -> list[Mac]:
    """The MACs with what the calls of one tenant for one service share taken in already."""
    head = _head(scope, revision, answer_digest, task, parameters, epoch)
    return [mac.after(head) for mac in keyring.naming]


_started = lru_cache(maxsize=1024)(_start)


def _wire(scope: TenantScope) -> bytes:
    if type(scope) is not TenantScope:
        raise TypeError(f"scope must be a TenantScope, not {type(scope).__name__}")
    return scope.wire


def _head(
    scope: bytes, revision: str, answer_digest: str, task: str, parameters: bytes, epoch: bytes
) -> bytes:
    """Every field but the input, each behind its length: different fields, different bytes."""
    if not answer_digest or not revision:
        raise ValueError("no key without revision and answer digest")
    a, b, c, d = scope, revision.encode(), answer_digest.encode(), task.encode()
    return b"%d.%d:%b%d:%b%d:%b%d:%b%d:%b%d:%b" % (
        _SCHEMA,
        len(a),
        a,
        len(b),
        b,
        len(c),
        c,
        len(d),
        d,
        len(parameters),
        parameters,
        len(epoch),
        epoch,
    )


def _tail(item: Input) -> bytes:
    if isinstance(item, str):
        text = item.encode()
        return b"text%d:%b" % (len(text), text)
    tokens = msgspec.json.encode(item)
    return b"ids%d:%b" % (len(tokens), tokens)
