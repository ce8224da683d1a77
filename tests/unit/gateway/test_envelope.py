"""A sealed value opens under its own key and secret, in time and unchanged, or not at all."""

import base64
import random
import struct
import zlib

import pytest

from sluice_api.call import Item
from sluice_gateway.envelope import MAX_ENTRY_BYTES, Opened, seal, unseal
from sluice_gateway.keys import Keyring

MAC = Keyring(bytes(range(32))).proving[0]
FOREIGN = Keyring(bytes(range(1, 33))).proving[0]
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ITEM = Item(b'{"label":"spam","tokens":7}', 7)
CREATED, EXPIRES, NOW = 1000.0, 2000.0, 1500.0


def sealed(item: Item = ITEM) -> bytes:
    value = seal(MAC, KEY, item, CREATED, EXPIRES)
    assert value is not None
    return value


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 5000, 200_000])
def test_what_is_sealed_opens_unchanged(size: int) -> None:
    item = Item(b"x" * size, 2**32 - 1)
    assert unseal(MAC, KEY, sealed(item), NOW) == Opened(item, CREATED, EXPIRES)


def test_long_text_that_shrinks_is_compressed_and_a_vector_is_not() -> None:
    assert len(sealed(Item(b'{"label":"spam","score":0.1}' * 100, 1))) < 200
    vector = base64.b64encode(random.Random(0).randbytes(1536))
    assert vector in sealed(Item(vector, 1))


def test_another_key_or_secret_does_not_open_it() -> None:
    assert unseal(MAC, OTHER_KEY, sealed(), NOW) == "not_proven"
    assert unseal(FOREIGN, KEY, sealed(), NOW) == "not_proven"


def test_it_holds_until_its_end_and_no_longer() -> None:
    assert isinstance(unseal(MAC, KEY, sealed(), EXPIRES - 0.001), Opened)
    assert unseal(MAC, KEY, sealed(), EXPIRES) == "expired"


def test_every_prefix_and_every_extension_is_refused() -> None:
    value = sealed()
    for length in range(len(value)):
        assert unseal(MAC, KEY, value[:length], NOW) in ("truncated", "not_proven", "format")
    assert unseal(MAC, KEY, value + b"\0", NOW) == "not_proven"


def test_every_single_bit_counts() -> None:
    value = sealed()
    for position in range(len(value) * 8):
        flipped = bytearray(value)
        flipped[position // 8] ^= 1 << position % 8
        assert unseal(MAC, KEY, bytes(flipped), NOW) in ("not_proven", "format")


@pytest.mark.parametrize("value", [1, 1.5, "text", True, [b"x"], {b"a": b"b"}, ValueError("no")])
def test_a_reply_of_another_type_is_refused(value: object) -> None:
    assert unseal(MAC, KEY, value, NOW) == "wrong_type"


def test_another_format_is_told_apart_from_a_forgery() -> None:
    assert unseal(MAC, KEY, b"\x00" + sealed()[1:], NOW) == "format"


def test_too_large_is_neither_sealed_nor_opened() -> None:
    assert seal(MAC, KEY, Item(b"x" * MAX_ENTRY_BYTES, 1), CREATED, EXPIRES) is None
    assert unseal(MAC, KEY, bytes(MAX_ENTRY_BYTES + 1), NOW) == "too_large"


@pytest.mark.parametrize("tokens", [-1, 2**32])
def test_a_count_that_the_layout_cannot_hold_is_not_sealed(tokens: int) -> None:
    assert seal(MAC, KEY, Item(b"{}", tokens), CREATED, EXPIRES) is None


@pytest.mark.parametrize("plain", [b"x" * (MAX_ENTRY_BYTES + 1), b"x" * 50_000_000])
def test_a_proven_bomb_does_not_explode(plain: bytes) -> None:
    payload = zlib.compress(plain, 9)
    body = struct.pack(">BBIddI", 1, 1, 1, CREATED, EXPIRES, len(payload)) + payload
    assert unseal(MAC, KEY, body + MAC(KEY + body), NOW) == "too_large"


def test_a_proven_value_with_broken_compression_is_refused() -> None:
    body = struct.pack(">BBIddI", 1, 1, 1, CREATED, EXPIRES, 4) + b"oops"
    assert unseal(MAC, KEY, body + MAC(KEY + body), NOW) == "too_large"
