"""Who may ask the metrics API: the API server alone, on behalf of a user it names.

The API server proves itself with a client certificate; which authority signs it and which names
are good stands in a ConfigMap that every extension server may read. The user was authorised by the
API server before it passed the request on.
"""

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sluice_operator.state import Object

CONFIG_NAMESPACE: Final = "kube-system"
CONFIG_NAME: Final = "extension-apiserver-authentication"


class NotConfigured(ValueError):
    """The ConfigMap does not say whom to trust; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class FrontProxy:
    """Whom to trust.

    Attributes:
        authority: PEM.
        names: common names that are good; empty allows any that the authority signed.
        user_headers: lower case; the first one that is there names the user.
    """

    authority: str
    names: frozenset[str]
    user_headers: tuple[str, ...]

    def user(self, certificate: Mapping[str, Any] | None, headers: Mapping[str, str]) -> str | None:
        """The user on whose behalf is asked; None when the peer is not the API server.

        Args:
            certificate: of the peer, verified by TLS, as ``ssl`` shows it; None without one.
            headers: case-insensitive.
        """
        if not certificate or (self.names and not self.names & _common_names(certificate)):
            return None
        return next((headers[name] for name in self.user_headers if headers.get(name)), None)


def read(config_map: Object) -> FrontProxy:
    """What the ConfigMap says. Raises :class:`NotConfigured`."""
    data = config_map.get("data") or {}
    authority = str(data.get("requestheader-client-ca-file") or "")
    if not authority:
        raise NotConfigured(
            f"{CONFIG_NAMESPACE}/{CONFIG_NAME} has no requestheader-client-ca-file:"
            " the API server's aggregation layer is not set up"
        )
    try:
        ssl.create_default_context(cadata=authority)
    except ssl.SSLError as error:
        raise NotConfigured(f"requestheader-client-ca-file is not a certificate: {error}") from None
    user_headers = _list(data.get("requestheader-username-headers")) or ("X-Remote-User",)
    return FrontProxy(
        authority=authority,
        names=frozenset(_list(data.get("requestheader-allowed-names"))),
        user_headers=tuple(name.lower() for name in user_headers),
    )


def _list(text: str | None) -> tuple[str, ...]:
    try:
        return tuple(str(item) for item in json.loads(text or "[]"))
    except (ValueError, TypeError):
        # Guessing would open the door to whoever the authority has signed.
        raise NotConfigured(f"{CONFIG_NAMESPACE}/{CONFIG_NAME}: {text!r} is not a list") from None


def _common_names(certificate: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(
        value
        for name in certificate.get("subject", ())
        for attribute, value in name
        if attribute == "commonName"
    )
