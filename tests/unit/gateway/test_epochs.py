"""Epochs: what they make void, that none is taken back, and that they tell nothing."""

from sluice_gateway.epochs import MAX_AGE_MS, Epochs
from sluice_gateway.keys import Keyring

OLD, NEW = bytes(range(32)), b"n" * 32
SCOPE = b"tenant:anna"


def test_only_what_was_thrown_away_has_an_epoch() -> None:
    epochs = Epochs(Keyring(OLD))
    assert not epochs and epochs.of("default/one", SCOPE) == b""
    at = epochs.advance(1000, epochs.fields("service", b"default/one"))
    assert epochs and at == 1000
    assert epochs.of("default/one", SCOPE) == b"1000.0"
    assert epochs.of("default/two", SCOPE) == b""
    epochs.advance(2000, epochs.fields("tenant", SCOPE))
    assert epochs.of("default/one", SCOPE) == b"1000.2000"
    assert epochs.of("default/two", SCOPE) == b"0.2000"
    assert epochs.of("default/two", b"tenant:bert") == b""


def test_an_epoch_only_rises() -> None:
    epochs = Epochs(Keyring(OLD))
    fields = epochs.fields("service", b"default/one")
    assert epochs.advance(1000, fields) == 1000
    assert epochs.advance(500, fields) == 1001, "also where a clock is behind"
    assert not epochs.raise_to(900, fields)
    assert epochs.raise_to(5000, fields)
    assert epochs.of("default/one", SCOPE) == b"5000.0"


def test_names_are_not_told_and_a_rotation_keeps_them() -> None:
    before, after = Epochs(Keyring(OLD)), Epochs(Keyring(NEW, OLD))
    (field,) = before.fields("service", b"default/one")
    assert b"one" not in field and len(field) == 64
    assert field in after.fields("service", b"default/one")
    assert before.fields("tenant", b"default/one") != [field]
    after.raise_to(7, [field])
    assert after.of("default/one", SCOPE) == b"7.0"


def test_what_others_lack_is_told_unless_it_is_too_old() -> None:
    epochs = Epochs(Keyring(OLD))
    now = MAX_AGE_MS + 1000
    epochs.raise_to(now, [b"young"])
    epochs.raise_to(999, [b"old"])
    assert epochs.missing({}, now) == {b"young": now}
    assert epochs.missing({b"young": now}, now) == {}
    assert epochs.missing({b"young": now - 1}, now) == {b"young": now}
