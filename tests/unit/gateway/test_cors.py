"""Which pages may call, and how that is said; how many connections there can be."""

import resource
import sys
from collections.abc import Iterator

import pytest

from sluice_api.key_file import LIMIT_KINDS, Limits
from sluice_api.rates import parse_rate
from sluice_gateway import descriptors
from sluice_gateway.cors import EXPOSED, Cors
from sluice_gateway.limits import Bucket, Sharing, TenantLimits

PAGE = b"https://app.example.com"
EVIL = b"https://app.example.com.evil.example.com"


def test_named_origins_are_echoed_and_others_are_not() -> None:
    cors = Cors((PAGE.decode(), "http://localhost:3000"))
    assert cors.lines(PAGE) == (
        b"vary: Origin\r\naccess-control-allow-origin: https://app.example.com\r\n"
        b"access-control-expose-headers: %b\r\n" % ", ".join(EXPOSED).encode()
    )
    for other in (EVIL, b"null", b"", PAGE.upper(), PAGE + b":443", None):
        assert cors.lines(other) == b"vary: Origin\r\n"


def test_a_page_may_read_what_is_left_of_every_limit() -> None:
    limits = TenantLimits(
        "search",
        Limits(**{kind: parse_rate("1/s:1") for kind in LIMIT_KINDS}),
        lambda kind, rate: Bucket(rate, Sharing(1), 0.0),
    )
    of_requests = limits.take_request(0.0).decode().split("\r\n")[:-1]
    names = {line.partition(":")[0] for line in of_requests}
    assert len(names) == 3
    for kind in LIMIT_KINDS:
        assert {name.replace("requests", kind) for name in names} <= set(EXPOSED)


def test_everybody_is_not_told_of_by_name_and_gets_no_credentials() -> None:
    cors = Cors(("*",), credentials=True)
    for origin in (PAGE, b"null"):
        assert cors.lines(origin).startswith(b"access-control-allow-origin: *\r\n")
        assert b"credentials" not in cors.lines(origin)
    assert cors.lines(None) == b""


def test_credentials_only_for_who_is_named() -> None:
    cors = Cors((PAGE.decode(),), credentials=True)
    assert b"access-control-allow-credentials: true\r\n" in cors.lines(PAGE)
    assert b"credentials" not in cors.lines(EVIL)


def test_no_line_can_be_slipped_in() -> None:
    for cors in (Cors(("*",)), Cors((PAGE.decode(),))):
        assert b"evil" not in cors.lines(PAGE + b"\r\nset-cookie: evil")


@pytest.mark.parametrize("origins", [("*",), (PAGE.decode(),)])
def test_nothing_is_remembered_of_who_asks(origins: tuple[str, ...]) -> None:
    cors = Cors(origins)
    origin = bytes(range(256)) * 100
    known = sys.getrefcount(origin)
    cors.lines(origin)
    assert sys.getrefcount(origin) == known


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """The bounds of this process, given back afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_connections_as_files_may_be_open(files: tuple[int, int]) -> None:
    hard = files[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    wanted = min(1000, (hard - descriptors.KEPT) // 2)
    assert descriptors.connections(wanted) == wanted
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 2 * wanted + descriptors.KEPT
    assert descriptors.connections(10**7) <= (hard - descriptors.KEPT) // 2
