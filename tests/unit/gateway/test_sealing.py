"""What is sealed opens under its own name, with the secret, and no nonce is used twice."""

import os

import pytest

from sluice_gateway import sealing
from sluice_gateway.keys import Keyring
from sluice_gateway.sealing import OVERHEAD, Sealer

SECRET = bytes(range(32))


def sealer(secret: bytes = SECRET) -> Sealer:
    return Sealer(Keyring(secret).sealing[0])


def front(value: bytes) -> bytes:
    """Salt and counter: what must never come twice."""
    return value[1:25]


def test_another_process_with_the_secret_opens_it() -> None:
    value = sealer().seal(b"name", b"plain")
    assert len(value) == len(b"plain") + OVERHEAD
    assert sealer().open(b"name", value) == b"plain"
    assert sealer().open(b"other", value) is None
    assert sealer(bytes(32)).open(b"name", value) is None


def test_no_two_seals_share_key_and_nonce() -> None:
    one, two = sealer(), sealer()
    fronts = {front(each.seal(b"n", b"")) for each in (one, two) for _ in range(1000)}
    assert len(fronts) == 2000


def test_a_used_up_salt_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_MAX_SEALS", 3)
    one = sealer()
    values = [one.seal(b"n", b"plain") for _ in range(10)]
    assert len({front(value) for value in values}) == 10
    assert len({front(value)[:16] for value in values}) == 4
    assert {sealer().open(b"n", value) for value in values} == {b"plain"}


def test_a_forked_process_begins_a_salt_of_its_own() -> None:
    one = sealer()
    one.seal(b"n", b"")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, one.seal(b"n", b""))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 1000)
    os.close(reading)
    os.close(writing)
    assert front(theirs)[:16] != front(one.seal(b"n", b""))[:16]


def test_forged_salts_do_not_fill_the_memory() -> None:
    one = sealer()
    value = one.seal(b"n", b"plain")
    for _ in range(1000):
        assert one.open(b"n", value[:1] + os.urandom(16) + value[17:]) is None
    assert repr(one) == "<Sealer 1 sealed, 256 keys known>"
    assert one.open(b"n", value) == b"plain"
