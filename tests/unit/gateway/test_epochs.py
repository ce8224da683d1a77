"""Epochs: what they make void, that none is taken back, how many are kept, what they tell."""

import random

import pytest

from sluice_gateway import epochs as epochs_module
from sluice_gateway.cache import MAX_TTL_SECONDS
from sluice_gateway.epochs import MAX_AGE_MS, MAX_KEPT, Epochs
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


def test_an_epoch_is_forgotten_only_when_everything_before_it_has_expired() -> None:
    assert MAX_AGE_MS / 1000 > 2 * MAX_TTL_SECONDS, "fresh for that long, and stale once more"
    epochs = Epochs(Keyring(OLD))
    (field,) = epochs.fields("service", b"default/one")
    epochs.raise_to(1000, [field])
    epochs.prune(MAX_AGE_MS + 999)
    assert epochs.of("default/one", SCOPE) == b"1000.0"
    version = epochs.version
    epochs.prune(MAX_AGE_MS + 1000)
    assert not epochs and field not in epochs and epochs.of("default/one", SCOPE) == b""
    assert epochs.version > version


def test_the_oldest_of_too_many_become_one_of_everything() -> None:
    epochs = Epochs(Keyring(OLD))
    for number in range(MAX_KEPT):
        epochs.advance(1000 + number, epochs.fields("service", b"default/%d" % number))
    epochs.prune(50_000)
    assert repr(epochs) == f"<Epochs {MAX_KEPT}>"
    epochs.advance(40_000, epochs.fields("tenant", SCOPE))
    epochs.prune(50_000)
    assert repr(epochs) == f"<Epochs {MAX_KEPT // 2}>"
    floor = 1000 + MAX_KEPT // 2 + 2
    assert epochs.of("default/0", b"tenant:bert") == b"%d.%d" % (floor, floor)
    assert epochs.of("default/never", SCOPE) == b"%d.40000" % floor
    assert epochs.of("default/9999", b"tenant:bert") == b"10999.%d" % floor
    assert epochs.advance(5, epochs.fields("service", b"default/0")) == floor + 1


def test_what_was_thrown_away_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs_module, "MAX_KEPT", 8)
    chance = random.Random(1)
    gateways = [Epochs(Keyring(OLD)), Epochs(Keyring(NEW, OLD))]
    void: dict[str, set[bytes]] = {f"default/{number}": set() for number in range(30)}
    for step in range(2000):
        name, gateway = chance.choice(list(void)), chance.choice(gateways)
        void[name].update(each.of(name, SCOPE) for each in gateways)
        fields = gateway.fields("service", name.encode())
        gateway.advance(1000 + step + chance.randrange(20), fields)
        gateway.prune(2000 + step)
        for one, other in (gateways, gateways[::-1]):  # Each hears what the other lacks.
            for field, at in one.missing({}, 2000 + step).items():
                other.raise_to(at, [field])
            other.prune(2000 + step)
        for each in gateways:
            assert each.of(name, SCOPE) not in void[name]
            assert len(each.missing({}, 2000 + step)) <= 8


def test_what_an_epoch_of_everything_stands_for_is_not_told_again() -> None:
    one, other = Epochs(Keyring(OLD)), Epochs(Keyring(OLD))
    for each in (one, other):
        each.advance(1000, each.fields("service", b"default/one"))
    (everything,) = one.fields("everything", b"")
    one.raise_to(2000, [everything])
    assert one.missing({}, 3000) == {everything: 2000}
    other.raise_to(2000, [everything])
    assert other.missing({everything: 2000}, 3000) == {}
    assert other.of("default/one", SCOPE) == b"2000.2000"
