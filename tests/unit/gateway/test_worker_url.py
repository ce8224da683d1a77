"""URLs of workers: what can be connected to is taken apart, what cannot is refused and why."""

import pytest

from sluice_gateway.worker_url import split_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:80", ("127.0.0.1", 80)),
        ("http://[::1]:8080/", ("::1", 8080)),
        ("http://my_worker-1.default.svc.:65535", ("my_worker-1.default.svc.", 65535)),
        (f"http://{'a' * 63}:1", ("a" * 63, 1)),
    ],
)
def test_host_and_port(url: str, address: tuple[str, int]) -> None:
    assert split_url(url) == address


@pytest.mark.parametrize(
    ("url", "told"),
    [
        *((bad, "http://HOST:PORT") for bad in ("https://a:1", "http://a", "a:1", "http://a:b")),
        *((bad, "http://HOST:PORT") for bad in ("http://a:1/x", "http://:1", "http://a:²")),
        ("http://a:99999", "port 99999 is not from 1 to 65535"),
        ("http://a:0", "port 0 is not"),
        ("http://a..b:9000", r"'http://a\.\.b:9000': 'a\.\.b' is no host"),
        ("http://.a:1", "is no host"),
        (f"http://{'a' * 64}:1", "is no host"),
        (f"http://{'a.' * 127}b:1", "is no host"),
        ("http://[::1:1", "is no host"),
        ("http://::1:1", "is no host"),
        ("http://[a]:1", "is no host"),
        ("http://a b:1", "is no host"),
        ("http://a\x00:1", "is no host"),
    ],
)
def test_what_is_no_worker_is_refused(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        split_url(url)
