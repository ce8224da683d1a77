"""Who may read what this gateway knows of demand: ServiceAccounts, by the tokens they show.

The API server itself is asked what a token is (TokenReview), and what it said is kept for a minute,
or longer while it is away: the operator must go on seeing demand then. ``control.admin`` asks.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from sluice_api import names
from sluice_api.errors import ApiError
from sluice_gateway.cluster.api import ApiServer, Refused, Unreachable

FRESH_SECONDS: Final = 60.0
KEPT_SECONDS: Final = 600.0
"""How long a token that was good stays good while nobody can be asked."""
MAX_TOKENS: Final = 64
REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"

log = logging.getLogger(__name__)


class _User(msgspec.Struct):
    username: str = ""


class _Status(msgspec.Struct):
    authenticated: bool = False
    audiences: list[str] = []
    user: _User = msgspec.field(default_factory=_User)


class _Review(msgspec.Struct):
    status: _Status = msgspec.field(default_factory=_Status)


class _Known(NamedTuple):
    username: str
    asked_at: float


_decode = msgspec.json.Decoder(_Review).decode


class TokenReaders:
    """Checks tokens.

    Args:
        allowed: names such as ``system:serviceaccount:sluice-system:sluice-operator``.
        clock: monotonic seconds.
    """

    def __init__(
        self, api: ApiServer, allowed: frozenset[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._allowed = allowed
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<TokenReaders {len(self._allowed)} allowed, {len(self._known)} tokens known>"

    async def check(self, authorization: str | None) -> None:
        """Return when the header names a reader.

        Raises ApiError: ``unauthorized`` when it does not say who asks, ``forbidden`` when that
        one may not read.
        """
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise ApiError("unauthorized", "A ServiceAccount token is needed here.")
        username = await self._username(token.strip())
        if username is None:
            audience = names.DEMAND_AUDIENCE
            raise ApiError(
                "unauthorized", f"The token is not valid, or not for the audience {audience!r}."
            )
        if username not in self._allowed:
            raise ApiError("forbidden", f"{username} may not read this.")

    async def _username(self, token: str) -> str | None:
        """Whose token it is; None when nobody's, or when that cannot be told."""
        digest = hashlib.sha256(token.encode()).digest()
        # One at a time: whoever sends made-up tokens does not make the API server busy.
        async with self._asking:
            known = self._known.get(digest)
            now = self._clock()
            if known is not None and now - known.asked_at < FRESH_SECONDS:
                return known.username
            try:
                username = await self._review(token)
            except (Unreachable, Refused, msgspec.DecodeError) as error:
                log.warning("token could not be reviewed", extra={"reason": str(error)})
                if known is not None and now - known.asked_at < KEPT_SECONDS:
                    return known.username
                return None
            self._known.pop(digest, None)
            if username is not None:
                self._known[digest] = _Known(username, now)
                if len(self._known) > MAX_TOKENS:
                    self._known.popitem(last=False)
            return username

    async def _review(self, token: str) -> str | None:
        audience = names.DEMAND_AUDIENCE
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        status = _decode(await self._api.post(REVIEWS, msgspec.json.encode(body))).status
        # A server that knows no audiences names none: its word is not about us.
        if not status.authenticated or audience not in status.audiences:
            return None
        return status.user.username or None
