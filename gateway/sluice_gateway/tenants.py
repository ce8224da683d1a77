"""``auth.mode: keys``: callers by their keys, from a file that is read again whenever it changes.

``app`` makes one :class:`Keys` and runs it beside ``discovery``. A request's header is looked up in
a dict of those seen before; only the first of a key is digested. A new file and the end of a key's
life empty that dict, so both hold from then on, on open connections too. A file that cannot be used
keeps what was good. The file's format stands in ``sluice_api.key_file``.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from sluice_api import api_keys, names
from sluice_api.errors import ApiError
from sluice_api.key_file import (
    EVERYTHING,
    MAX_FILE_BYTES,
    KeyEntry,
    KeyFile,
    KeyFileError,
    Limits,
    TenantEntry,
    read_key_file,
)
from sluice_gateway.auth import Rights, Tenant, wire_hash
from sluice_gateway.keys import TenantScope
from sluice_gateway.limits import TenantLimits
from sluice_gateway.priority import WORDS

POLL_SECONDS: Final = 0.05
MAX_SEEN: Final = 10_000
"""Headers that are remembered; more than that many keys in use are digested each time again."""
MAX_KEY_BYTES: Final = 1024

_REALM: Final = 'Bearer realm="sluice"'

log = logging.getLogger(__name__)


class _Known(NamedTuple):
    """A key of the file."""

    tenant: Tenant
    expires: float


class Keys:
    """Callers by key.

    Args:
        secret: behind the hash that workers are told instead of a tenant's name.
        limits_of: a tenant's limits, given those of the file; None for those of everybody.
        changed: called after every change of what tenants may do, with the tenants there are.
        refused: called with each file that cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        secret: bytes,
        limits_of: Callable[[str, Limits | None], TenantLimits | None],
        changed: Callable[[set[str]], None],
        refused: Callable[[], None],
    ) -> None:
        self.path = path
        self._secret = secret
        self._limits_of = limits_of
        self._changed = changed
        self._refused = refused
        self._known: dict[bytes, _Known] = {}
        self._seen: dict[bytes, Tenant] = {}
        self._entries: dict[str, tuple[TenantEntry, Rights]] = {}
        self._next_end = float("inf")
        self._stamp: tuple[int, ...] | None = None
        self.failing = False
        self.files = 0
        self.read_at = 0.0
        """When the file was last known to be good, on the monotonic clock."""

    def __repr__(self) -> str:
        state = "failing" if self.failing else "good"
        return f"<Keys {len(self._known)} of {len(self._entries)} tenants, {state}>"

    def __len__(self) -> int:
        """Keys that are good now."""
        now = time.time()
        return sum(now < known.expires for known in self._known.values())

    def identify(self, authorization: bytes | None) -> Tenant:
        """See ``Authenticator``."""
        if authorization is not None:
            tenant = self._seen.get(authorization)
            if tenant is not None:
                return tenant
        return self._recognise(authorization, time.time())

    def begin(self) -> None:
        """Read the file for the first time. Raises KeyFileError."""
        self._stamp = _stamp(self.path)
        self._apply(load(self.path), time.time())

    async def run(self) -> None:
        """Follow the file and the clock until cancelled."""
        # Polling sees every way of replacing a file, a mounted Secret's links too.
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if time.time() >= self._next_end:
                self._end_lives(time.time())
            stamp = _stamp(self.path)
            if stamp == self._stamp:
                if not self.failing:
                    self.read_at = time.monotonic()
                continue
            self._stamp = stamp
            try:
                # In a thread: thousands of keys take a while.
                found = await asyncio.to_thread(load, self.path)
            except KeyFileError as error:
                self.failing = True
                self._refused()
                log.error(
                    "keys file is not usable, the last good one stays",
                    extra={"path": str(self.path), "reason": str(error)},
                )
                continue
            self._apply(found, time.time())
            log.info(
                "keys file applied",
                extra={"tenants": len(self._entries), "keys": len(self._known)},
            )

    # ----------------------------------------------------------------------------------------------

    def _recognise(self, authorization: bytes | None, now: float) -> Tenant:
        """The caller behind a header that was not seen lately. Raises ApiError."""
        if authorization is None:
            raise _unauthorized("No API key came with the request.", None)
        scheme, _, key = authorization.partition(b" ")
        key = key.strip(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise _unauthorized("The Authorization header holds no Bearer key.", "invalid_request")
        # By its digest, whose bytes nobody can choose: how long it takes tells nothing of any key.
        known = self._known.get(api_keys.digest(key)) if len(key) <= MAX_KEY_BYTES else None
        if known is None:
            raise _unauthorized("The API key is not known, or was revoked.", "invalid_token")
        if now >= known.expires:
            raise _unauthorized("The API key has expired.", "invalid_token")
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        # Any number of spaces may stand before a key; what is kept of callers must be bounded.
        if len(authorization) <= MAX_KEY_BYTES:
            self._seen[authorization] = known.tenant
        return known.tenant

    def _apply(self, content: KeyFile, now: float) -> None:
        """Make the callers be what ``content`` says."""
        known, entries = {}, {}
        for entry in content.tenants:
            before = self._entries.get(entry.name)
            # Rights that stay the same stay the same object: answers kept for them stay good.
            same = before is not None and _reach(before[0]) == _reach(entry)
            rights = before[1] if before is not None and same else rights_of(entry)
            entries[entry.name] = (entry, rights)
            limits = self._limits_of(entry.name, entry.limits)
            hashed = wire_hash(self._secret, entry.name)
            for key in entry.keys:
                tenant = Tenant(
                    entry.name,
                    entry.namespaces[0],
                    hashed,
                    TenantScope.of(entry.name),
                    priority=WORDS[entry.priority],
                    weight=entry.weight,
                    rights=rights,
                    key=key.id,
                    limits=limits,
                )
                known[bytes.fromhex(key.sha256)] = _Known(tenant, _end(key))
        self._known, self._entries = known, entries
        self.failing = False
        self.files += 1
        self.read_at = time.monotonic()
        self._end_lives(now)
        self._changed(set(entries))

    def _end_lives(self, now: float) -> None:
        """Forget who was let in: some keys may have come to their end, or another file holds."""
        self._seen.clear()
        to_come = (known.expires for known in self._known.values() if known.expires > now)
        self._next_end = min(to_come, default=float("inf"))


def load(path: Path) -> KeyFile:
    """Read and check the file. Raises KeyFileError."""
    try:
        with path.open("rb") as file:
            content = read_key_file(file.read(MAX_FILE_BYTES + 1), str(path))
    except OSError as error:
        raise KeyFileError(
            f"{path}: {error.strerror or error}. --keys-file must name a file that can be read;"
            " `sluice keys create` makes one."
        ) from None
    if content.tenant(names.ANONYMOUS_TENANT) is not None:
        raise KeyFileError(
            f"{path}: tenants: {names.ANONYMOUS_TENANT!r} is who comes without a key, whom"
            " --auth keys does not let in. Give the tenant another name."
        )
    return content


def rights_of(entry: TenantEntry) -> Rights:
    own = frozenset(entry.namespaces)
    if EVERYTHING in entry.services:
        return Rights(own, None)
    named = (service.rpartition("/") for service in entry.services)
    return Rights(own, frozenset((space or entry.namespaces[0], name) for space, _, name in named))


def _reach(entry: TenantEntry) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return entry.namespaces, entry.services


def _end(key: KeyEntry) -> float:
    return key.expires.timestamp() if key.expires is not None else float("inf")


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _unauthorized(message: str, problem: str | None) -> ApiError:
    """RFC 6750 §3: the challenge names an error only where credentials came."""
    challenge = _REALM if problem is None else f'{_REALM}, error="{problem}"'
    return ApiError("unauthorized", message, headers=[("www-authenticate", challenge)])
