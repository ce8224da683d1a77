"""Without credentials there is one tenant, and it sees what is public."""

from sluice_gateway.auth import Anonymous, may_call, wire_hash


def test_everybody_is_anonymous() -> None:
    authenticator = Anonymous(b"s" * 32)
    tenant = authenticator.identify(None)
    assert authenticator.identify(b"Bearer sk-x") is tenant
    assert (tenant.name, tenant.namespace) == ("anonymous", "default")
    assert b"anonymous" not in tenant.wire_hash


def test_access() -> None:
    tenant = Anonymous(b"s" * 32).identify(None)
    assert may_call(tenant, public=True, tenants=[])
    assert not may_call(tenant, public=False, tenants=["team"])
    assert may_call(tenant, public=False, tenants=["anonymous"])


def test_wire_hash_is_keyed() -> None:
    assert wire_hash(b"a" * 32, "t") != wire_hash(b"b" * 32, "t")
    assert wire_hash(b"a" * 32, "t") == wire_hash(b"a" * 32, "t") != wire_hash(b"a" * 32, "u")
