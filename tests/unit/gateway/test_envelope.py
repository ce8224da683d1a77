"""A sealed value opens under its own key and secret, in time and unchanged, or not at all."""

import base64
import random
import zlib

import pytest

from sluice_api.call import Item
from sluice_gateway.envelope import _HEADER, MAX_ENTRY_BYTES, Entry, seal, unseal
from sluice_gateway.keys import Keyring
from sluice_gateway.sealing import Sealer

OURS = Sealer(Keyring(bytes(range(32))).sealing[0])
FOREIGN = Sealer(Keyring(bytes(range(1, 33))).sealing[0])
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ITEM = Item(b'{"label":"spam","tokens":7}', 7)
CREATED, FRESH, EXPIRES, NOW = 1000.0, 1200.0, 2000.0, 1500.0


def entry(item: Item = ITEM) -> Entry:
    return Entry(item, CREATED, FRESH, EXPIRES, 0.25)


def sealed(item: Item = ITEM) -> bytes:
    value = seal(OURS, KEY, entry(item))
    assert value is not None
    return value


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 5000, 200_000])
def test_what_is_sealed_opens_unchanged(size: int) -> None:
    item = Item(b"x" * size, 2**32 - 1)
    assert unseal(OURS, KEY, sealed(item), NOW) == entry(item)


def test_long_text_that_shrinks_is_compressed_and_a_vector_is_not() -> None:
    assert len(sealed(Item(b'{"label":"spam","score":0.1}' * 100, 1))) < 200
    vector = base64.b64encode(random.Random(0).randbytes(1536))
    assert len(sealed(Item(vector, 1))) > len(vector)


def test_nothing_of_it_can_be_read_and_no_two_seals_are_alike() -> None:
    text = b'{"label":"very secret indeed","tokens":7}'
    values = {sealed(Item(text, 7)) for _ in range(100)}
    assert len(values) == 100
    assert not any(b"secret" in value or b"label" in value for value in values)


def test_another_key_or_secret_does_not_open_it() -> None:
    assert unseal(OURS, OTHER_KEY, sealed(), NOW) == "not_proven"
    assert unseal(FOREIGN, KEY, sealed(), NOW) == "not_proven"


def test_it_holds_until_its_end_and_no_longer() -> None:
    assert isinstance(unseal(OURS, KEY, sealed(), EXPIRES - 0.001), Entry)
    assert unseal(OURS, KEY, sealed(), EXPIRES) == "expired"


def test_every_prefix_and_every_extension_is_refused() -> None:
    value = sealed()
    for length in range(len(value)):
        assert unseal(OURS, KEY, value[:length], NOW) in ("truncated", "not_proven", "format")
    assert unseal(OURS, KEY, value + b"\0", NOW) == "not_proven"


def test_every_single_bit_counts() -> None:
    value = sealed()
    for position in range(len(value) * 8):
        flipped = bytearray(value)
        flipped[position // 8] ^= 1 << position % 8
        assert unseal(OURS, KEY, bytes(flipped), NOW) in ("not_proven", "format")


@pytest.mark.parametrize("value", [1, 1.5, "text", True, [b"x"], {b"a": b"b"}, ValueError("no")])
def test_a_reply_of_another_type_is_refused(value: object) -> None:
    assert unseal(OURS, KEY, value, NOW) == "wrong_type"


def test_another_format_is_told_apart_from_a_forgery() -> None:
    assert unseal(OURS, KEY, b"\x00" + sealed()[1:], NOW) == "format"


def test_too_large_is_neither_sealed_nor_opened() -> None:
    assert seal(OURS, KEY, entry(Item(b"x" * MAX_ENTRY_BYTES, 1))) is None
    assert unseal(OURS, KEY, bytes(MAX_ENTRY_BYTES + 1), NOW) == "too_large"


@pytest.mark.parametrize("tokens", [-1, 2**32])
def test_a_count_that_the_layout_cannot_hold_is_not_sealed(tokens: int) -> None:
    assert seal(OURS, KEY, entry(Item(b"{}", tokens))) is None


def made_by_us(payload: bytes) -> bytes:
    """A value whose payload is said to be compressed."""
    return OURS.seal(KEY, _HEADER.pack(1, 1, CREATED, FRESH, EXPIRES, 0.0) + payload)


@pytest.mark.parametrize("plain", [b"x" * (MAX_ENTRY_BYTES + 1), b"x" * 50_000_000])
def test_a_proven_bomb_does_not_explode(plain: bytes) -> None:
    assert unseal(OURS, KEY, made_by_us(zlib.compress(plain, 9)), NOW) == "too_large"


def test_a_proven_value_with_broken_compression_is_refused() -> None:
    assert unseal(OURS, KEY, made_by_us(b"oops"), NOW) == "too_large"
