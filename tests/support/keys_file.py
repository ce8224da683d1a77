"""A keys file that a test writes: tenants by name, and the keys they were given."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from sluice_api.api_keys import NewKey, make_key
from sluice_api.key_file import KeyEntry, KeyFile, Limits, TenantEntry, write_key_file
from sluice_api.rates import parse_rate


class KeysFile:
    """Its content is changed here and reaches the disk in one step, with :meth:`write`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = KeyFile()
        self.made: list[NewKey] = []

    def write(self) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(write_key_file(self.content))
        draft.replace(self.path)

    def tenant(
        self,
        name: str,
        namespace: str | None = None,
        services: tuple[str, ...] = ("*",),
        **rates: str,
    ) -> None:
        """Add a tenant, or change it; ``rates`` as :class:`Limits` has them."""
        limits = Limits(**{kind: parse_rate(text) for kind, text in rates.items()})
        before = self.content.tenant(name)
        keys = before.keys if before is not None else ()
        entry = TenantEntry(name, (namespace or name,), services, limits, keys)
        self.content = self.content.put(entry)

    def key(self, tenant: str, expires: datetime | None = None) -> NewKey:
        """Give the tenant one more key."""
        key = make_key()
        self.made.append(key)
        entry = self.content.tenant(tenant)
        assert entry is not None
        kept = KeyEntry(key.id, key.sha256, f"{tenant}'s", expires)
        self.content = self.content.put(replace(entry, keys=(*entry.keys, kept)))
        return key

    def expire(self, key: NewKey, end: datetime) -> None:
        """Let a key end, which is a whole second: the file holds no other."""
        for tenant in self.content.tenants:
            keys = [
                replace(each, expires=end) if each.id == key.id else each for each in tenant.keys
            ]
            self.content = self.content.put(replace(tenant, keys=tuple(keys)))

    def revoke(self, key: NewKey) -> None:
        self.content = self.content.without_key(key.id)


def bearer(key: NewKey | str) -> dict[str, str]:
    """The header that shows a key, for the clients of these tests."""
    return {"authorization": f"Bearer {key if isinstance(key, str) else key.text}"}
