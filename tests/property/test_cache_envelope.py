"""No change to a sealed value is ever accepted, and nothing thrown at the reader makes it fail."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sluice_api.call import Item
from sluice_gateway.envelope import Entry, seal, unseal
from sluice_gateway.keys import Keyring
from sluice_gateway.sealing import Sealer

OURS = Sealer(Keyring(bytes(range(32))).sealing[0])

keys = st.binary(min_size=32, max_size=32)
items = st.builds(
    Item,
    st.binary(max_size=300) | st.binary(min_size=1, max_size=9).map(lambda text: text * 400),
    st.integers(0, 2**32 - 1),
)


@given(keys, items, st.floats(1, 1e9))
def test_round_trip(key: bytes, item: Item, lifetime: float) -> None:
    entry = Entry(item, 1000.0, 1000.0 + lifetime / 2, 1000.0 + lifetime, 0.5)
    assert unseal(OURS, key, seal(OURS, key, entry), 1000.0) == entry


@settings(max_examples=1000)
@given(keys, keys, items, st.data())
def test_no_mutation_is_accepted(key: bytes, other: bytes, item: Item, data: st.DataObject) -> None:
    value = seal(OURS, key, Entry(item, 0.0, 5.0, 10.0))
    assert value is not None
    if data.draw(st.booleans(), label="splice"):
        start = data.draw(st.integers(0, len(value)))
        end = data.draw(st.integers(start, len(value)))
        mutated = value[:start] + data.draw(st.binary(max_size=40)) + value[end:]
        assume(mutated != value)
        assert not isinstance(unseal(OURS, key, mutated, 1.0), Entry)
    else:
        assume(other != key)
        assert unseal(OURS, other, value, 1.0) == "not_proven"


@settings(max_examples=300)
@given(keys, st.binary(max_size=400) | st.integers() | st.text() | st.lists(st.binary()))
def test_nothing_made_up_is_accepted(key: bytes, value: object) -> None:
    assert not isinstance(unseal(OURS, key, value, 1.0), Entry)
