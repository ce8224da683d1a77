"""Who is calling, and which services that caller may see.

``auth.mode: none`` is the only mode of this version: everybody is the tenant ``anonymous``, who
sees public services only. The tenant stands in every cache key already, so that adding keys or
tokens changes nothing below. Called first by ``dispatch``.
"""

import hmac
from dataclasses import dataclass
from typing import Protocol

from sluice_api import names
from sluice_gateway.keys import TenantScope
from sluice_gateway.priority import Priority


@dataclass(frozen=True, slots=True)
class Tenant:
    """A caller.

    Attributes:
        name: what access lists and cache keys hold.
        namespace: where a bare model name is looked up.
        wire_hash: what workers are told instead of the name.
        scope: the part of cache keys that keeps tenants apart.
        priority: the highest that its requests may claim.
        weight: its share of a service's work against other tenants who wait, a whole number.
    """

    name: str
    namespace: str
    wire_hash: bytes
    scope: TenantScope
    priority: Priority = Priority.NORMAL
    weight: int = 1


class Authenticator(Protocol):
    def identify(self, authorization: bytes | None) -> Tenant:
        """The caller behind the ``Authorization`` header. Raises ApiError ``unauthorized``."""
        ...


class Anonymous:
    """``auth.mode: none``. Credentials are not looked at: the OpenAI client always sends some."""

    def __init__(self, secret: bytes) -> None:
        name = names.ANONYMOUS_TENANT
        self._tenant = Tenant(
            name, names.DEFAULT_NAMESPACE, wire_hash(secret, name), TenantScope.of(name)
        )

    def identify(self, authorization: bytes | None) -> Tenant:
        return self._tenant


def wire_hash(secret: bytes, tenant: str) -> bytes:
    """A keyed hash, so that a worker's log tells tenants apart and names none."""
    return hmac.digest(secret, b"tenant\0" + tenant.encode(), "sha256")[:8].hex().encode()


def may_call(tenant: Tenant, *, public: bool, tenants: list[str]) -> bool:
    return public or tenant.name in tenants
