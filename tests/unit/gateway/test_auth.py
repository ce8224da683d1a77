"""Without credentials there is one tenant, which sees what is public; rights bound the others."""

import pytest

from sluice_gateway.auth import NO_RIGHTS, Anonymous, Rights, Tenant, may_call, wire_hash
from sluice_gateway.keys import TenantScope


def tenant(name: str, rights: Rights = NO_RIGHTS) -> Tenant:
    return Tenant(name, "home", b"", TenantScope.of(name), rights=rights)


def test_everybody_is_anonymous() -> None:
    authenticator = Anonymous(b"s" * 32)
    found = authenticator.identify(None)
    assert authenticator.identify(b"Bearer sk-x") is found
    assert (found.name, found.namespace) == ("anonymous", "default")
    assert b"anonymous" not in found.wire_hash


def test_the_anonymous_own_no_namespace() -> None:
    found = Anonymous(b"s" * 32).identify(None)
    assert may_call(found, "default", "m", public=True, tenants=[])
    assert not may_call(found, "default", "m", public=False, tenants=["team"])
    assert may_call(found, "default", "m", public=False, tenants=["anonymous"])


@pytest.mark.parametrize(
    ("namespace", "public", "tenants", "lets_in"),
    [
        ("home", False, [], True),
        ("away", False, [], False),
        ("away", True, [], True),
        ("away", False, ["team"], True),
        ("away", False, ["other"], False),
    ],
)
def test_a_service_lets_in_its_namespaces_tenant_and_who_it_names(
    namespace: str, public: bool, tenants: list[str], lets_in: bool
) -> None:
    own = tenant("team", Rights(frozenset({"home"}), None))
    assert may_call(own, namespace, "m", public=public, tenants=tenants) == lets_in


def test_bounds_take_away_and_never_add() -> None:
    bounds = frozenset({("home", "m"), ("away", "*")})
    bound = tenant("team", Rights(frozenset({"home"}), bounds))
    assert may_call(bound, "home", "m", public=False, tenants=[])
    assert not may_call(bound, "home", "other", public=True, tenants=["team"])
    assert may_call(bound, "away", "any", public=True, tenants=[])
    assert not may_call(bound, "away", "any", public=False, tenants=[])
    assert not may_call(bound, "third", "m", public=True, tenants=["team"])


def test_wire_hash_is_keyed() -> None:
    assert wire_hash(b"a" * 32, "t") != wire_hash(b"b" * 32, "t")
    assert wire_hash(b"a" * 32, "t") == wire_hash(b"a" * 32, "t") != wire_hash(b"a" * 32, "u")
