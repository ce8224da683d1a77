"""Which pages of other sites may call, as browsers ask it (the Fetch standard's CORS protocol).

Off unless origins are configured. Both edges add :meth:`Cors.lines` to their answers; the question
that a browser asks beforehand is answered by ``control.answering``.
"""

from typing import Final

from sluice_api import names
from sluice_api.key_file import LIMIT_KINDS

EVERYBODY: Final = "*"
MAX_AGE_SECONDS: Final = 600
"""How long a browser may remember that it may call."""

METHODS: Final = "GET, HEAD, POST, OPTIONS"
_RATE: Final = ("limit", "remaining", "reset")
EXPOSED: Final = (
    names.REQUEST_ID,
    names.CACHE_STATUS,
    "age",
    "server-timing",
    "retry-after",
    names.RETRY_AFTER_MS,
    names.SHOULD_RETRY,
    names.REVISION,
    names.IDEMPOTENT_REPLAYED,
    names.INFERENCE_JSON_BYTES,
    *(f"x-ratelimit-{what}-{of}" for of in LIMIT_KINDS for what in _RATE),
)
"""What a page may read of an answer beside its body."""


class Cors:
    """The rules of one gateway.

    Args:
        origins: such as ``https://app.example.com``, or :data:`EVERYBODY` alone.
        credentials: a page may send cookies along, for a proxy on the way that reads them; a key in
            ``Authorization`` needs no such leave. Not together with :data:`EVERYBODY`.
    """

    def __init__(self, origins: tuple[str, ...], *, credentials: bool = False) -> None:
        self._everybody = EVERYBODY in origins
        self._origins = frozenset(origin.encode() for origin in origins)
        self._credentials = credentials and not self._everybody
        self._foreign = self._written(None)
        self._lines = {origin: self._written(origin) for origin in self._origins}

    def __repr__(self) -> str:
        return f"<Cors {'everybody' if self._everybody else len(self._origins)}>"

    def allows(self, origin: bytes) -> bool:
        return self._everybody or origin in self._origins

    def headers(self, origin: bytes | None) -> list[tuple[str, str]]:
        """What is added to an answer for a page of ``origin``."""
        found = [] if self._everybody else [("vary", "Origin")]
        if origin is None or not self.allows(origin):
            return found
        shown = EVERYBODY if self._everybody else origin.decode("latin-1")
        found.append(("access-control-allow-origin", shown))
        if self._credentials:
            found.append(("access-control-allow-credentials", "true"))
        found.append(("access-control-expose-headers", ", ".join(EXPOSED)))
        return found

    def preflight(self, asked: str) -> list[tuple[str, str]]:
        """What a page that may call may send, said beside :meth:`headers`.

        Args:
            asked: the headers that it wants to send; every one is allowed, for none is trusted.
        """
        found = [("access-control-allow-methods", METHODS)]
        if asked:
            found.append(("access-control-allow-headers", asked))
        found.append(("access-control-max-age", str(MAX_AGE_SECONDS)))
        return found

    def lines(self, origin: bytes | None) -> bytes:
        """:meth:`headers` as whole lines."""
        if self._everybody and origin is not None:
            origin = EVERYBODY.encode()
        return self._lines.get(origin, self._foreign) if origin is not None else self._foreign

    def _written(self, origin: bytes | None) -> bytes:
        return b"".join(b"%b: %b\r\n" % (n.encode(), v.encode()) for n, v in self.headers(origin))
