"""The keys file: which tenants there are, what each may call and how much, and their keys' hashes.

``sluice keys`` writes it, a Secret carries it, the gateway reads it whenever it changes. It holds
no key, so it may lie in a repository. Everything that is wrong is told with line, field, value and
what is allowed; of what might be a key, no value is ever told.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, Final

import msgspec
import yaml

from sluice_api import names, rates, strict_yaml
from sluice_api.rates import Rate, parse_rate

try:  # In C where that was built: a file may hold thousands of keys.
    from yaml import CSafeLoader as _Fast
except ImportError:
    from yaml import SafeLoader as _Fast  # type: ignore[assignment]

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
MAX_TENANTS: Final = 10_000
MAX_KEYS: Final = 50_000
MAX_LISTED: Final = 256
"""Namespaces, and services, of one tenant."""
EVERYTHING: Final = "*"
PRIORITIES: Final = ("high", "normal", "low")
MAX_WEIGHT: Final = 100
_MAX_SHOWN_BITS: Final = 128
_MAX_DEPTH: Final = 16

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SAFE: Final = re.compile(r"[ -~]{1,100}", re.ASCII)


class KeyFileError(ValueError):
    """The file cannot be used; the message says where, why, and what is allowed."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key of a tenant.

    Attributes:
        id: tells it in logs.
        sha256: of the whole key, 64 hexadecimal digits.
        name: for people: whose it is, what it is for.
        expires: from when on it is refused.
    """

    id: str
    sha256: str = field(repr=False)
    name: str = ""
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use in a time; None is no limit.

    Attributes:
        inputs: texts to be computed; answers from the cache are free.
        tokens: that workers computed, prompts included, charged when they are known.
    """

    requests: Rate | None = None
    inputs: Rate | None = None
    tokens: Rate | None = None


LIMIT_KINDS: Final = tuple(Limits.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class TenantEntry:
    """One tenant.

    Attributes:
        namespaces: whose services are its own; a bare model name is looked up in the first.
        services: what it may call of what services' ``access`` lets it: ``name`` in its first
            namespace, ``namespace/name``, ``namespace/*`` or ``*``.
        limits: None: those that the gateway has for everybody.
        priority: the highest that its requests may claim.
        weight: its share of a service's work, against other tenants who wait.
    """

    name: str
    namespaces: tuple[str, ...]
    services: tuple[str, ...] = (EVERYTHING,)
    limits: Limits | None = None
    keys: tuple[KeyEntry, ...] = ()
    priority: str = "normal"
    weight: int = 1


@dataclass(frozen=True, slots=True)
class KeyFile:
    tenants: tuple[TenantEntry, ...] = ()

    def tenant(self, name: str) -> TenantEntry | None:
        return next((tenant for tenant in self.tenants if tenant.name == name), None)

    def put(self, tenant: TenantEntry) -> "KeyFile":
        """With ``tenant`` in the place of the one of its name, or behind all others."""
        if self.tenant(tenant.name) is None:
            return KeyFile((*self.tenants, tenant))
        kept = (tenant if each.name == tenant.name else each for each in self.tenants)
        return KeyFile(tuple(kept))

    def without_key(self, identity: str) -> "KeyFile":
        """Without the key ``identity``. Raises KeyFileError when there is none."""
        kept = KeyFile(
            tuple(
                replace(tenant, keys=tuple(key for key in tenant.keys if key.id != identity))
                for tenant in self.tenants
            )
        )
        if kept == self:
            raise KeyFileError(f"there is no key {identity!r}. `sluice keys list` shows their ids.")
        return kept


# Reading ------------------------------------------------------------------------------------------


class _Loader(strict_yaml.Strict, _Fast):
    pass


class _Fault(Exception):
    def __init__(self, path: tuple[str | int, ...], message: str) -> None:
        self.path = path
        self.message = message


def read_key_file(text: bytes, source: str) -> KeyFile:
    """Read and check YAML or JSON. Raises :class:`KeyFileError`.

    Args:
        source: what messages call the file.
    """
    if len(text) > MAX_FILE_BYTES:
        raise KeyFileError(f"{source}: larger than {MAX_FILE_BYTES} bytes. Remove old keys.")
    try:
        is_json = text.lstrip()[:1] == b"{"
        given = msgspec.json.decode(text) if is_json else _load(text.decode())
    except msgspec.DecodeError as error:
        raise KeyFileError(f"{source}: {error}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{source}: not UTF-8 text.") from None
    except yaml.YAMLError as error:
        raise KeyFileError(f"{source}: {strict_yaml.told(error)}") from None
    except RecursionError:
        raise KeyFileError(f"{source}: it nests too deeply.") from None
    try:
        return _file(given)
    except _Fault as fault:
        where = f"{source}{_line_of(text, fault.path)}: {_shown_path(fault.path)}"
        raise KeyFileError(f"{where}{fault.message}") from None


def _load(text: str) -> Any:
    """What the YAML says. Raises yaml.YAMLError."""
    depth = 0
    # First without building anything: the loader in C nests as the text does, until it crashes.
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"it nests deeper than {_MAX_DEPTH}")
    return strict_yaml.load(text, _Loader)


def _line_of(text: bytes, path: tuple[str | int, ...]) -> str:
    try:
        return f" line {_line(yaml.compose(text, Loader=_Loader), path)}"
    except (yaml.YAMLError, RecursionError):  # JSON that is no YAML, such as with half characters.
        return ""


def _line(node: yaml.Node | None, path: tuple[str | int, ...]) -> int:
    """Where the field at ``path`` stands, or the innermost part of it that there is."""
    for step in path:
        below = None
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            below = node.value[step] if step < len(node.value) else None
        elif isinstance(node, yaml.MappingNode):
            below = next((value for key, value in node.value if key.value == step), None)
        if below is None:
            break
        node = below
    return node.start_mark.line + 1 if node is not None else 1


def _shown_path(path: tuple[str | int, ...]) -> str:
    shown = ""
    for step in path:
        shown += f"[{step}]" if isinstance(step, int) else f".{step}" if shown else step
    return f"{shown}: " if shown else ""


Path = tuple[str | int, ...]


def _file(given: Any) -> KeyFile:
    members = _members(given, (), {"tenants"})
    entries = _list(members.get("tenants", []), ("tenants",), MAX_TENANTS)
    tenants = tuple(_tenant(entry, ("tenants", index)) for index, entry in enumerate(entries))
    _no_name_twice(tenants)
    _no_key_twice(tenants)
    return KeyFile(tenants)


def _tenant(given: Any, path: Path) -> TenantEntry:
    known = {"name", "namespaces", "services", "limits", "priority", "weight", "keys"}
    members = _members(given, path, known)
    name = _text(members, "name", path, _NAME, "1 to 63 letters, digits and . _ -")
    at = (*path, "namespaces")
    if not members.get("namespaces"):
        raise _Fault(at, "required, and not given. A bare model name is looked up in the first.")
    namespaces = [
        _matching(value, (*at, index), _LABEL, "the name of a namespace")
        for index, value in enumerate(_list(members["namespaces"], at, MAX_LISTED))
    ]
    at = (*path, "services")
    listed = _list(members.get("services", [EVERYTHING]), at, MAX_LISTED)
    services = [_service(value, (*at, index)) for index, value in enumerate(listed)]
    limits = _limits(members["limits"], (*path, "limits")) if "limits" in members else None
    at = (*path, "keys")
    keys = [
        _key(entry, (*at, index))
        for index, entry in enumerate(_list(members.get("keys", []), at, MAX_KEYS))
    ]
    if name == names.ANONYMOUS_TENANT and keys:
        raise _Fault(at, f"{name!r} is who comes without a key. Give the tenant another name.")
    return TenantEntry(
        name,
        tuple(namespaces),
        tuple(services),
        limits,
        tuple(keys),
        _priority(members.get("priority", "normal"), (*path, "priority")),
        _weight(members.get("weight", 1), (*path, "weight")),
    )


def _priority(given: Any, path: Path) -> str:
    if given not in PRIORITIES:
        raise _Fault(path, f"got {_shown(given)}, needs one of {', '.join(PRIORITIES)}.")
    return str(given)


def _weight(given: Any, path: Path) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= MAX_WEIGHT:
        raise _Fault(path, f"got {_shown(given)}, needs a whole number from 1 to {MAX_WEIGHT}.")
    return given


def _service(given: Any, path: Path) -> str:
    form = "name, namespace/name, namespace/* or *"
    text = _matching(given, path, _SAFE, form)
    namespace, slash, name = text.rpartition("/")
    fits = _LABEL.fullmatch(name) or (name == EVERYTHING)
    if not fits or (slash and not _LABEL.fullmatch(namespace)):
        raise _Fault(path, f"got {text!r}, needs {form}.")
    return text


def _limits(given: Any, path: Path) -> Limits:
    found = {}
    for kind, text in _members(given, path, set(LIMIT_KINDS)).items():
        at = (*path, kind)
        try:
            found[kind] = parse_rate(_matching(text, at, _SAFE, rates.FORM))
        except ValueError as error:
            raise _Fault(at, f"got {text!r}, needs {error}.") from None
    return Limits(**found)


def _key(given: Any, path: Path) -> KeyEntry:
    members = _members(given, path, {"id", "sha256", "name", "expires"})
    identity = _text(members, "id", path, _NAME, "1 to 63 letters, digits and . _ -")
    hashed, at = members.get("sha256"), (*path, "sha256")
    if not isinstance(hashed, str) or not _SHA256.fullmatch(hashed):
        # Not told: it might be the key itself.
        kind = f"{len(hashed)} characters" if isinstance(hashed, str) else _kind(hashed)
        raise _Fault(
            at,
            f"got {kind}, needs the 64 hexadecimal digits (0-9, a-f) of the key's SHA-256 as text."
            " `sluice keys create` writes them.",
        )
    name = _matching(members.get("name", "-"), (*path, "name"), _SAFE, "1 to 100 ASCII characters")
    expires = None
    if members.get("expires") is not None:
        expires = _moment(members["expires"], (*path, "expires"))
    return KeyEntry(identity, hashed, name if "name" in members else "", expires)


def _moment(given: Any, path: Path) -> datetime:
    form = "a moment such as 2027-01-31T18:00:00Z, or a day, which it then is not good on any more"
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            raise _Fault(path, f"got {_shown(given)}, needs {form}.") from None
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise _Fault(path, f"got {given.isoformat()} without a zone, needs {form}.")
        try:
            return given.astimezone(UTC)
        except OverflowError:
            raise _Fault(
                path,
                f"got {given.isoformat()}, in UTC beyond the years that there are; needs {form}.",
            ) from None
    if isinstance(given, date):
        return datetime(given.year, given.month, given.day, tzinfo=UTC)
    raise _Fault(path, f"got {_shown(given)}, needs {form}.")


def _members(given: Any, path: Path, known: set[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        allowed = ", ".join(sorted(known))
        raise _Fault(path, f"got {_kind(given)}, needs a mapping with {allowed}.")
    for name in given:
        if name not in known:
            word = name if isinstance(name, str) else ""
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed {', '.join(sorted(known))}."
            shown = word if _NAME.fullmatch(word) and len(word) < 40 else "…"
            raise _Fault((*path, shown), f"this field does not exist; {hint}")
    return {name: value for name, value in given.items() if value is not None}


def _list(given: Any, path: Path, most: int) -> list[Any]:
    if not isinstance(given, list):
        raise _Fault(path, f"got {_kind(given)}, needs a list.")
    if len(given) > most:
        raise _Fault(path, f"got {len(given)} entries, at most {most} are allowed.")
    return given


def _text(members: dict[str, Any], name: str, path: Path, form: re.Pattern[str], words: str) -> str:
    if name not in members:
        raise _Fault((*path, name), f"required, and not given. It is {words}.")
    return _matching(members[name], (*path, name), form, words)


def _matching(given: Any, path: Path, form: re.Pattern[str], words: str) -> str:
    if not isinstance(given, str) or not form.fullmatch(given):
        quotes = "" if isinstance(given, (str, dict, list)) else " in quotes"
        raise _Fault(path, f"got {_shown(given)}, needs {words}{quotes}.")
    return given


def _no_name_twice(tenants: tuple[TenantEntry, ...]) -> None:
    seen: set[str] = set()
    for index, tenant in enumerate(tenants):
        if tenant.name in seen:
            path = ("tenants", index, "name")
            raise _Fault(path, f"{tenant.name!r} is there twice. Put their keys together.")
        seen.add(tenant.name)


def _no_key_twice(tenants: tuple[TenantEntry, ...]) -> None:
    """By id and by hash: a key belongs to one tenant, and a log line to one key."""
    for name, told in (("id", "another key has it"), ("sha256", "it is another entry's key too")):
        seen: set[str] = set()
        for path, key in _keys(tenants):
            value = getattr(key, name)
            if value in seen:
                raise _Fault((*path, name), f"{told}. Remove one of the two.")
            seen.add(value)
        if len(seen) > MAX_KEYS:
            raise _Fault(("tenants",), f"hold {len(seen)} keys, at most {MAX_KEYS} are allowed.")


def _keys(tenants: tuple[TenantEntry, ...]) -> Iterator[tuple[Path, KeyEntry]]:
    for index, tenant in enumerate(tenants):
        for number, key in enumerate(tenant.keys):
            yield ("tenants", index, "keys", number), key


def _shown(value: Any) -> str:
    """A value as a message shows it; what might be a key, or is no scalar, is only described."""
    if isinstance(value, str):
        long = len(value) > 40 or value.startswith("sk-")
        return f"a text of {len(value)} characters" if long else repr(value)
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:
        return "a number that is too long to be told"  # Python refuses to write some of them.
    return _kind(value) if isinstance(value, (dict, list)) or value is None else str(value)[:40]


def _kind(value: Any) -> str:
    words: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return words.get(type(value), "a single value")


# Writing ------------------------------------------------------------------------------------------

HEAD: Final = "# Written by `sluice keys`. Holds hashes only; no key can be made from it.\n"


def write_key_file(content: KeyFile) -> str:
    """``content`` as YAML: what :func:`read_key_file` reads as the same."""
    tenants = [_written_tenant(tenant) for tenant in content.tenants]
    return HEAD + yaml.safe_dump({"tenants": tenants}, sort_keys=False, width=200)


def _written_tenant(tenant: TenantEntry) -> dict[str, Any]:
    written: dict[str, Any] = {"name": tenant.name, "namespaces": list(tenant.namespaces)}
    if tenant.services != (EVERYTHING,):
        written["services"] = list(tenant.services)
    if tenant.limits is not None:
        written["limits"] = _written_limits(tenant.limits)
    if tenant.priority != "normal":
        written["priority"] = tenant.priority
    if tenant.weight != 1:
        written["weight"] = tenant.weight
    written["keys"] = [_written_key(key) for key in tenant.keys]
    return written


def _written_limits(limits: Limits) -> dict[str, str]:
    rated: dict[str, Rate | None] = {kind: getattr(limits, kind) for kind in LIMIT_KINDS}
    return {kind: rate.text for kind, rate in rated.items() if rate is not None}


def _written_key(key: KeyEntry) -> dict[str, Any]:
    written: dict[str, Any] = {"id": key.id, "sha256": key.sha256}
    if key.name:
        written["name"] = key.name
    if key.expires is not None:
        written["expires"] = key.expires.strftime("%Y-%m-%dT%H:%M:%SZ")
    return written
