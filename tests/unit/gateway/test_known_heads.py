"""Heads that were read before are not parsed anew; ``tests/property`` has what they mean."""

from sluice_gateway.head import Head
from sluice_gateway.known_heads import KNOWN_BYTES, read_head


def head(line: bytes) -> Head:
    return read_head(b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n%b\r\n\r\n" % line)


def test_equal_bytes_are_parsed_once() -> None:
    assert head(b"x-a: 1") is head(b"x-a: 1")
    assert head(b"x-a: 1") is not head(b"x-a: 2")


def test_a_long_head_is_not_kept() -> None:
    long = b"x-note: " + b"n" * KNOWN_BYTES
    assert head(long) is not head(long) and head(long) == head(long)
