"""Edits of a keys file: what ``sluice keys`` does. Times are arguments; only :func:`save` writes.

The file holds hashes only, so it may lie in a repository; a key is shown once, by whoever makes it.
The gateway takes a new file over while it runs (``docs/access.md``).
"""

import base64
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import yaml

from sluice_api import names
from sluice_api.api_keys import NewKey
from sluice_api.key_file import (
    LIMIT_KINDS,
    KeyEntry,
    KeyFile,
    KeyFileError,
    Limits,
    TenantEntry,
    read_key_file,
    write_key_file,
)
from sluice_api.quantities import parse_duration
from sluice_api.rates import Rate, parse_rate

ENTRY: Final = "keys.yaml"
"""The entry of the Secret that the chart mounts."""

_DAYS: Final = re.compile(r"([1-9][0-9]{0,4})d", re.ASCII)


def load(path: Path, *, may_be_missing: bool = False) -> KeyFile:
    """Read a keys file. Raises KeyFileError."""
    try:
        return read_key_file(path.read_bytes(), str(path))
    except FileNotFoundError:
        if may_be_missing:
            return KeyFile()
        told = f"{path}: there is no such file. `sluice keys create` makes it."
        raise KeyFileError(told) from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}.") from None


def save(path: Path, content: KeyFile) -> None:
    """Write the file whole or not at all, for its owner alone if it is new. Raises KeyFileError."""
    text = checked(content, path)
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(draft, mode)
        os.replace(draft, path)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}.") from None


def checked(content: KeyFile, path: Path) -> str:
    """``content`` as text that the gateway will read. Raises KeyFileError."""
    text = write_key_file(content)
    read_key_file(text.encode(), str(path))
    return text


def with_key(
    content: KeyFile, tenant: str, key: NewKey, name: str, end: datetime | None
) -> KeyFile:
    """``content`` with one more key of a tenant that is there, good until ``end``."""
    entry = content.tenant(tenant)
    assert entry is not None
    return content.put(replace(entry, keys=(*entry.keys, KeyEntry(key.id, key.sha256, name, end))))


def with_tenant(
    content: KeyFile,
    name: str,
    namespaces: Sequence[str],
    services: Sequence[str],
    rates: dict[str, str],
    priority: str = "",
    weight: int | None = None,
) -> KeyFile:
    """``content`` with the tenant, new or changed by what is given. Raises KeyFileError."""
    before = content.tenant(name)
    if before is None and not namespaces:
        raise KeyFileError(
            f"--namespace: required, because {name!r} is a new tenant. Services of its namespaces"
            " are its own; a bare model name is looked up in the first."
        )
    entry = before or TenantEntry(name, ())
    if namespaces:
        entry = replace(entry, namespaces=tuple(namespaces))
    if services:
        entry = replace(entry, services=tuple(services))
    if any(rates.values()):
        limits = entry.limits or Limits()
        for kind in LIMIT_KINDS:
            if rates.get(kind):
                limits = replace(limits, **{kind: _rate(kind, rates[kind])})
        entry = replace(entry, limits=limits)
    if priority:
        entry = replace(entry, priority=priority)
    if weight is not None:
        entry = replace(entry, weight=weight)
    return content.put(entry)


def parse_expiry(text: str, now: datetime) -> datetime:
    """When a key ends that is to last for ``90d`` or ``12h``, or until a day or a moment.

    Raises KeyFileError when that cannot be read, or is over.
    """
    days = _DAYS.fullmatch(text)
    try:
        if days is not None:
            end = now + timedelta(days=int(days[1]))
        elif text[-1:].isalpha() and text[-1] != "Z":
            end = now + timedelta(seconds=parse_duration(text))
        else:
            end = datetime.fromisoformat(text)
            if end.tzinfo is None and len(text) > len("2027-01-31"):
                raise ValueError
            end = end.replace(tzinfo=end.tzinfo or UTC)
    except (ValueError, OverflowError):
        raise KeyFileError(
            f"--expires: got {text!r}, needs a time such as 90d or 12h, a day such as 2027-01-31,"
            " or a moment with its zone such as 2027-01-31T18:00:00Z."
        ) from None
    if end <= now:
        raise KeyFileError(f"--expires: got {text!r}, which is over. Give a time to come.")
    return end.astimezone(UTC).replace(microsecond=0)


def table(content: KeyFile, now: datetime) -> str:
    """Every key in a line, without anything that could be one."""
    rows = [("TENANT", "ID", "STATE", "EXPIRES", "NAME")]
    for tenant in content.tenants:
        for key in tenant.keys:
            end = key.expires.strftime("%Y-%m-%dT%H:%M:%SZ") if key.expires else "never"
            state = "expired" if key.expires is not None and key.expires <= now else "good"
            rows.append((tenant.name, key.id, state, end, key.name or "-"))
        if not tenant.keys:
            rows.append((tenant.name, "-", "no keys", "-", "-"))
    return _columns(rows)


def secret_manifest(text: str, name: str, namespace: str) -> str:
    """The Secret that carries a keys file to the gateways, for ``kubectl apply -f -``."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {names.APP_NAME: names.MANAGER, names.COMPONENT: "gateway"},
        },
        "type": "Opaque",
        "data": {ENTRY: base64.b64encode(text.encode()).decode()},
    }
    return yaml.safe_dump(secret, sort_keys=False, width=2**20)


def _rate(kind: str, text: str) -> Rate:
    try:
        return parse_rate(text)
    except ValueError as error:
        raise KeyFileError(f"--{kind}: got {text!r}, needs {error}.") from None


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
