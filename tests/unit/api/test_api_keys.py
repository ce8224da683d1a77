"""A key is random, recognisable and kept only as a hash."""

import hashlib
import re

from sluice_api.api_keys import digest, is_whole, make_key


def test_a_key_has_its_id_and_256_random_bits() -> None:
    keys = {make_key().text for _ in range(200)}
    assert len(keys) == 200
    key = make_key()
    assert re.fullmatch(r"sk-sluice-[a-z0-9]{8}-[0-9A-Za-z]{49}", key.text)
    assert key.text.startswith(f"sk-sluice-{key.id}-")
    assert 62**43 > 2**256


def test_only_the_hash_is_kept() -> None:
    key = make_key()
    assert key.sha256 == hashlib.sha256(key.text.encode()).hexdigest()
    assert digest(key.text.encode()).hex() == key.sha256


def test_a_changed_letter_shows() -> None:
    text = make_key().text
    assert is_whole(text)
    assert not is_whole(text[:-1])
    for index in range(10, len(text)):
        other = "a" if text[index] != "a" else "b"
        assert not is_whole(text[:index] + other + text[index + 1 :]), index
    assert not is_whole("sk-proj-" + text.removeprefix("sk-sluice-"))
