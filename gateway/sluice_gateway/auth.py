"""Who is calling, and which services that caller may see.

``dispatch`` asks first thing; ``services`` resolves names by what it gets. With ``auth.mode: none``
everybody is the tenant ``anonymous``, who sees public services only; ``tenants`` knows callers by
their keys. The tenant stands in every cache key.
"""

import hmac
from dataclasses import dataclass
from typing import Final, Protocol

from sluice_api import names
from sluice_gateway.keys import TenantScope
from sluice_gateway.limits import TenantLimits
from sluice_gateway.priority import Priority


class Rights:
    """What a tenant may call of what services let it. Compared by identity: new ones, new object.

    Args:
        own: namespaces whose services are the tenant's own.
        services: namespace and name of what it may call, a name of ``*`` for all of a namespace;
            None for no bounds.
    """

    __slots__ = ("own", "services")

    def __init__(self, own: frozenset[str], services: frozenset[tuple[str, str]] | None) -> None:
        self.own = own
        self.services = services

    def __repr__(self) -> str:
        bounds = "all" if self.services is None else len(self.services)
        return f"<Rights own {sorted(self.own)}, {bounds} services>"

    def reach(self, namespace: str, name: str) -> bool:
        """Whether the service is not out of bounds."""
        services = self.services
        return services is None or (namespace, name) in services or (namespace, "*") in services


NO_RIGHTS: Final = Rights(frozenset(), None)
"""Only what is open to everybody."""


@dataclass(frozen=True, slots=True, eq=False)
class Tenant:
    """A caller.

    Attributes:
        name: what access lists and cache keys hold.
        namespace: where a bare model name is looked up.
        wire_hash: what workers are told instead of the name.
        scope: the part of cache keys that keeps tenants apart.
        priority: the highest that its requests may claim.
        weight: its share of a service's work against other tenants who wait, a whole number.
        key: the id of the key it came with; empty without one.
        limits: None: it may use as much as it likes.
    """

    name: str
    namespace: str
    wire_hash: bytes
    scope: TenantScope
    priority: Priority = Priority.NORMAL
    weight: int = 1
    rights: Rights = NO_RIGHTS
    key: str = ""
    limits: TenantLimits | None = None


class Authenticator(Protocol):
    def identify(self, authorization: bytes | None) -> Tenant:
        """The caller behind the ``Authorization`` header. Raises ApiError ``unauthorized``."""
        ...


class Anonymous:
    """``auth.mode: none``. Credentials are not looked at: the OpenAI client always sends some."""

    def __init__(self, secret: bytes, limits: TenantLimits | None = None) -> None:
        name = names.ANONYMOUS_TENANT
        self._tenant = Tenant(
            name,
            names.DEFAULT_NAMESPACE,
            wire_hash(secret, name),
            TenantScope.of(name),
            limits=limits,
        )

    def __repr__(self) -> str:
        return "<Anonymous>"

    def identify(self, authorization: bytes | None) -> Tenant:
        return self._tenant


def wire_hash(secret: bytes, tenant: str) -> bytes:
    """A keyed hash, so that a worker's log tells tenants apart and names none."""
    return hmac.digest(secret, b"tenant\0" + tenant.encode(), "sha256")[:8].hex().encode()


def may_call(
    tenant: Tenant, namespace: str, name: str, *, public: bool, tenants: list[str]
) -> bool:
    """Whether the service's owner lets ``tenant`` in, and its own bounds reach so far."""
    rights = tenant.rights
    if not (public or namespace in rights.own or tenant.name in tenants):
        return False
    return rights.services is None or rights.reach(namespace, name)
