"""Callers by their keys: who is let in, for how long, and what a new file changes."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.api_keys import NewKey, make_key
from sluice_api.errors import ApiError
from sluice_api.key_file import (
    KeyEntry,
    KeyFile,
    KeyFileError,
    Limits,
    TenantEntry,
    write_key_file,
)
from sluice_gateway import tenants
from sluice_gateway.priority import Priority
from sluice_gateway.tenants import Keys
from tests.support.stub_worker import until


def entry(
    name: str, *keys: NewKey, expires: datetime | None = None, **fields: object
) -> TenantEntry:
    found = tuple(KeyEntry(key.id, key.sha256, "", expires) for key in keys)
    return TenantEntry(name, (name,), keys=found, **fields)  # type: ignore[arg-type]


def bearer(key: NewKey) -> bytes:
    return b"Bearer " + key.text.encode()


class File:
    """A keys file and what reads it."""

    def __init__(self, path: Path, *entries: TenantEntry) -> None:
        self.path = path
        self.changes: list[set[str]] = []
        self.refusals = 0
        self.limits: list[tuple[str, Limits | None]] = []
        self.write(*entries)
        self.keys = Keys(
            path,
            secret=b"s" * 32,
            limits_of=lambda name, limits: self.limits.append((name, limits)),
            changed=self.changes.append,
            refused=self._refused,
        )
        self.keys.begin()

    def write(self, *entries: TenantEntry) -> None:
        self.write_text(write_key_file(KeyFile(entries)))

    def write_text(self, text: str) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self.path)

    def _refused(self) -> None:
        self.refusals += 1

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.keys.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def lets_in(self, key: NewKey) -> bool:
        try:
            self.keys.identify(bearer(key))
        except ApiError:
            return False
        return True


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., File]:
    return lambda *entries: File(tmp_path / "keys.yaml", *entries)


def test_a_key_is_its_tenant(make: Callable[..., File]) -> None:
    one, two, other = make_key(), make_key(), make_key()
    keys = make(entry("search", one, two), entry("support", other)).keys
    first, second, third = (keys.identify(bearer(key)) for key in (one, two, other))
    assert (first.name, first.namespace, first.key) == ("search", "search", one.id)
    assert (second.name, second.key) == ("search", two.id)
    assert first.rights is second.rights and first.scope == second.scope
    assert third.name == "support" and third.scope != first.scope
    assert third.wire_hash != first.wire_hash == second.wire_hash
    assert keys.identify(bearer(one)) is first, "the second time from the dict"


def test_what_a_tenant_may_claim_in_a_queue(make: Callable[..., File]) -> None:
    urgent, usual = make_key(), make_key()
    keys = make(entry("search", urgent, priority="high", weight=7), entry("lab", usual)).keys
    found = [keys.identify(bearer(key)) for key in (urgent, usual)]
    assert [(each.priority, each.weight) for each in found] == [
        (Priority.HIGH, 7),
        (Priority.NORMAL, 1),
    ]


@pytest.mark.parametrize(
    ("header", "message", "challenge"),
    [
        (None, "No API key came", 'Bearer realm="sluice"'),
        (b"", "holds no Bearer key", 'error="invalid_request"'),
        (b"Bearer", "holds no Bearer key", 'error="invalid_request"'),
        (b"Bearer  ", "holds no Bearer key", 'error="invalid_request"'),
        (b"Basic KEY", "holds no Bearer key", 'error="invalid_request"'),
        (b"KEY", "holds no Bearer key", 'error="invalid_request"'),
        (b"Bearer KEYx", "not known", 'error="invalid_token"'),
        (b"Bearer KE", "not known", 'error="invalid_token"'),
        (b"Bearer " + b"x" * 20_000, "not known", 'error="invalid_token"'),
        (b"Bearer KEY KEY", "not known", 'error="invalid_token"'),
        (b"Bearer \xff\x00' OR 1=1 --", "not known", 'error="invalid_token"'),
    ],
)
def test_who_is_not_let_in_is_told_why(
    make: Callable[..., File], header: bytes | None, message: str, challenge: str
) -> None:
    key = make_key()
    keys = make(entry("t", key)).keys
    given_header = header.replace(b"KEY", key.text.encode()) if header is not None else None
    with pytest.raises(ApiError, match=message) as refused:
        keys.identify(given_header)
    assert refused.value.code == "unauthorized"
    assert key.text not in str(refused.value)
    ((name, value),) = refused.value.headers
    assert name == "www-authenticate" and value.endswith(challenge)


def test_the_scheme_has_no_case_and_spaces_do_not_count(make: Callable[..., File]) -> None:
    key = make_key()
    keys = make(entry("t", key)).keys
    for header in (b"bearer %b", b"BEARER %b", b"Bearer  %b", b"Bearer %b "):
        assert keys.identify(header % key.text.encode()).name == "t"


@given(st.binary(max_size=200))
def test_no_other_header_is_let_in(header: bytes) -> None:
    key = make_key()
    keys = Keys(
        Path("none"),
        secret=b"s" * 32,
        limits_of=lambda name, limits: None,
        changed=lambda names: None,
        refused=lambda: None,
    )
    keys._apply(KeyFile((entry("t", key),)), 0.0)
    for each in (header, b"Bearer " + header, bearer(key) + header[:1] + b"x"):
        with pytest.raises(ApiError, match=r"key|Key"):
            keys.identify(each)


def test_an_expired_key_says_so_and_ends_while_it_is_in_use(make: Callable[..., File]) -> None:
    old, young = make_key(), make_key()
    now = time.time()
    past, soon = (datetime.fromtimestamp(now + delta, UTC) for delta in (-60, 60))
    file = make(entry("a", old, expires=past), entry("b", young, expires=soon))
    with pytest.raises(ApiError, match="has expired") as refused:
        file.keys.identify(bearer(old))
    assert refused.value.code == "unauthorized"
    assert len(file.keys) == 1
    assert file.lets_in(young)
    file.keys._end_lives(now + 61)
    with pytest.raises(ApiError, match="has expired"):
        file.keys._recognise(bearer(young), now + 61)


async def test_expiry_needs_no_new_file(make: Callable[..., File]) -> None:
    key = make_key()
    # Written in whole seconds.
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    file = make(entry("t", key, expires=end))
    async with file.followed():
        assert file.lets_in(key)
        await until(lambda: not file.lets_in(key), 10, "expired")
        assert time.time() >= end.timestamp()


async def test_a_new_file_holds_at_once(make: Callable[..., File]) -> None:
    one, two = make_key(), make_key()
    file = make(entry("t", one))
    async with file.followed():
        assert file.lets_in(one) and not file.lets_in(two)
        file.write(entry("t", two))
        await until(lambda: file.lets_in(two) and not file.lets_in(one), 10, "the new file")
    assert file.changes == [{"t"}, {"t"}]


@pytest.mark.parametrize(
    "text",
    [
        "tenants: [",
        "tenants: [{name: t}]",
        "",
        "tenants: [{name: t, namespaces: [n], keys: [{id: a, sha256: "
        f"{'ab' * 32}, expires: 9999-12-31T23:59:59-01:00}}]}}]",
    ],
)
async def test_a_file_that_cannot_be_used_keeps_the_last_good_one(
    make: Callable[..., File], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    key, new = make_key(), make_key()
    file = make(entry("t", key))
    async with file.followed():
        file.write_text(text)
        await until(lambda: file.refusals == 1, 10, "refused")
        assert file.lets_in(key)
        assert file.keys.failing
        read_at = file.keys.read_at
        file.path.unlink()
        await until(lambda: file.refusals == 2, 10, "gone")
        assert file.keys.read_at == read_at and file.lets_in(key)
        file.write(entry("t", new))
        await until(lambda: file.lets_in(new) and not file.lets_in(key), 10, "good again")
        assert not file.keys.failing and file.keys.read_at > read_at
    told = [record for record in caplog.records if "not usable" in record.message]
    assert len(told) == 2 and told[0].levelname == "ERROR"


async def test_a_mounted_secret_changes_by_its_links(tmp_path: Path) -> None:
    """As the kubelet does it: the file is a link through ..data, which is replaced."""
    one, two = make_key(), make_key()
    for folder, key in (("first", one), ("second", two)):
        (tmp_path / folder).mkdir()
        content = write_key_file(KeyFile((entry("t", key),)))
        (tmp_path / folder / "keys.yaml").write_text(content)
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    keys = Keys(
        tmp_path / "keys.yaml",
        secret=b"s" * 32,
        limits_of=lambda name, limits: None,
        changed=lambda names: None,
        refused=lambda: None,
    )
    keys.begin()
    assert keys.identify(bearer(one)).key == one.id
    running = asyncio.create_task(keys.run())
    (tmp_path / "..data_tmp").symlink_to("second")
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
    await until(lambda: keys.files == 2, 10, "the new link")
    running.cancel()
    assert keys.identify(bearer(two)).key == two.id


def test_rights_are_new_ones_only_where_they_changed(make: Callable[..., File]) -> None:
    one, two = make_key(), make_key()
    file = make(entry("a", one), entry("b", two))
    before = [file.keys.identify(bearer(key)).rights for key in (one, two)]
    bounded = TenantEntry("b", ("b",), ("m",), keys=entry("b", two).keys)
    file.keys._apply(KeyFile((entry("a", one), bounded)), 0.0)
    after = [file.keys.identify(bearer(key)).rights for key in (one, two)]
    assert after[0] is before[0] and after[1] is not before[1]
    assert after[1].services == {("b", "m")}


def test_headers_that_are_remembered_are_bounded(
    make: Callable[..., File], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "MAX_SEEN", 10)
    key = make_key()
    keys = make(entry("t", key)).keys
    for spaces in range(50):
        keys.identify(b"Bearer " + b" " * spaces + key.text.encode())
        assert len(keys._seen) <= 10


def test_a_long_header_is_not_remembered(make: Callable[..., File]) -> None:
    key = make_key()
    keys = make(entry("t", key)).keys
    assert keys.identify(b"Bearer" + b" " * 20_000 + key.text.encode()).key == key.id
    assert not keys._seen
    keys.identify(bearer(key))
    assert list(keys._seen) == [bearer(key)]


def test_limits_of_the_file_and_of_everybody(make: Callable[..., File]) -> None:
    file = make(entry("a", limits=Limits()), entry("b"))
    assert file.limits == [("a", Limits()), ("b", None)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tenants: [", r"line \d"),
        ("tenants: [{name: anonymous, namespaces: [n]}]", "whom --auth keys does not let in"),
        (None, "--keys-file must name a file that can be read"),
    ],
)
def test_the_first_file_must_be_good(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "keys.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(KeyFileError, match=told) as refused:
        tenants.load(path)
    assert str(path) in str(refused.value)
