"""Room for keys and values: shared beginnings, tenants apart, what is kept and what is let go."""

import random

import pytest
import torch

from sluice_worker.engines.decoder.attention import LayerShape
from sluice_worker.engines.decoder.pages import PagedStore
from sluice_worker.engines.decoder.slots import SlotStore
from sluice_worker.engines.decoder.store import Store, block_names

SHAPES = {0: LayerShape(2, 4, 4)}
TEXT = list(range(100, 148))


def slots(room: int = 400, *, count: int = 4) -> SlotStore:
    return SlotStore(SHAPES, slots=count, length=64, room=room)


def pages(room: int = 400) -> PagedStore:
    return PagedStore(
        SHAPES,
        room=room,
        dtype=torch.float32,
        device=torch.device("cpu"),
        page_tokens=16,
    )


def computed(store: Store, ids: list[int], salt: bytes = b"") -> tuple[int, int]:
    """Open a place for ``ids`` and let all of them be computed."""
    opened = store.open(ids, salt)
    assert opened is not None
    assert store.reserve(opened.place, len(ids))
    store.record(opened.place, ids, len(ids))
    return opened


@pytest.mark.parametrize("store", [slots(), pages()], ids=repr)
def test_a_beginning_is_found_again_by_the_same_tenant_alone(store: Store) -> None:
    place, cached = computed(store, TEXT)
    assert cached == 0
    store.close(place)
    assert store.used == 0
    again, cached = computed(store, [*TEXT, 1])
    assert cached == 48
    other, cached = computed(store, [*TEXT, 1], b"other")
    assert cached == 0
    part, cached = computed(store, [*TEXT[:20], 7])
    assert cached == 16
    for place in (again, other, part):
        store.close(place)


@pytest.mark.parametrize("store", [slots(), pages()], ids=repr)
def test_one_token_is_always_left_to_compute(store: Store) -> None:
    store.close(computed(store, TEXT)[0])
    _, cached = computed(store, TEXT)
    assert cached == 32


@pytest.mark.parametrize("store", [slots(room=96), pages(room=96)], ids=repr)
def test_an_open_place_is_never_hurt(store: Store) -> None:
    first, _ = computed(store, TEXT)
    second, _ = computed(store, [2] * 48)
    assert not store.reserve(first, 49)
    store.close(second)
    assert store.reserve(first, 64)
    assert store.used == 64


@pytest.mark.parametrize("store", [slots(room=96), pages(room=96)], ids=repr)
def test_what_is_kept_gives_way_to_what_is_asked_for(store: Store) -> None:
    store.close(computed(store, TEXT)[0])
    store.close(computed(store, [3] * 48)[0])
    place, cached = computed(store, [4] * 60)
    assert cached == 0
    store.close(place)
    assert computed(store, [*TEXT, 1])[1] < 48  # The longest unused went first.


def test_a_shared_beginning_is_copied_while_its_owner_goes_on() -> None:
    store = slots()
    first, _ = computed(store, TEXT)
    for tensor in store.layers[0]:
        tensor[first, :48] = torch.randn(48, 2, 4)
    second, cached = computed(store, [*TEXT, 1])
    assert second != first
    assert cached == 48
    for tensor in store.layers[0]:
        assert torch.equal(tensor[second, :48], tensor[first, :48])


def test_a_small_shared_beginning_does_not_cost_a_long_memory() -> None:
    store = slots()
    store.close(computed(store, TEXT)[0])
    store.close(computed(store, [*TEXT[:16], 9])[0])
    assert computed(store, [*TEXT, 1])[1] == 48


def test_cleared_memory_goes_back_to_the_system() -> None:
    store = SlotStore({0: LayerShape(8, 64, 64)}, slots=2, length=4096, room=4096)
    ids = [5] * 4000
    place, _ = computed(store, ids)
    for tensor in store.layers[0]:
        tensor[place] = 1.0
    before = _resident()
    store.close(place)
    store._clear(place)
    assert before - _resident() > 12 * 2**20  # Of 2 · 4096 · 8 · 64 · 4 bytes.


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_pages_are_shared_and_counted() -> None:
    store = pages()
    first, _ = computed(store, TEXT)
    second, cached = computed(store, [*TEXT, 1])
    assert cached == 48
    assert store.tables[second][:3] == store.tables[first]
    assert store.used == 64
    store.close(first)
    assert store.used == 64
    store.close(second)
    assert store.used == 0


def test_names_of_blocks_cover_all_that_stands_before() -> None:
    chance = random.Random(3)
    ids = [chance.randrange(1000) for _ in range(64)]
    names = list(block_names(ids, b"", 16))
    assert len(names) == 4
    assert list(block_names(ids, b"", 16, names[:2])) == names[2:]
    changed = list(block_names([*ids[:15], ids[15] + 1, *ids[16:]], b"", 16))
    assert not set(names) & set(changed)
    assert not set(names) & set(block_names(ids, b"salt", 16))
