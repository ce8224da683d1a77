"""Windows hold every token, are evenly full, and divide the say about tokens without a gap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.errors import ApiError
from sluice_worker.models.tokenizer import MAX_WINDOWS
from sluice_worker.models.windows import own_parts, windows


@given(st.integers(0, 3000), st.integers(30, 500), st.data())
def test_every_token_is_decided_once_and_with_context(
    tokens: int, room: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.none() | st.integers(0, room - 1))
    shared = room // 4 if overlap is None else overlap
    if -(-(tokens - shared) // (room - shared)) > MAX_WINDOWS:
        return
    parts = windows(tokens, room, overlap, where="input")
    own = own_parts(parts)
    assert [place for part in own for place in part] == list(range(tokens))
    if len(parts) == 1:
        assert tokens <= room
        return
    assert {len(part) for part in parts} == {room}
    for window, mine in zip(parts, own, strict=True):
        assert window.start <= mine.start <= mine.stop <= window.stop
        # At an inner edge at least half of what is shared lies beyond what is decided.
        if window.start > 0:
            assert mine.start - window.start >= shared // 2
        if window.stop < tokens:
            assert window.stop - mine.stop >= shared // 2


def test_no_window_more_than_needed() -> None:
    assert windows(100, 100, None, where="input") == [range(100)]
    assert windows(101, 100, 20, where="input") == [range(100), range(1, 101)]
    assert len(windows(180, 100, 20, where="input")) == 2
    assert len(windows(181, 100, 20, where="input")) == 3


def test_too_many_windows_are_refused() -> None:
    with pytest.raises(ApiError, match="129 windows of 100") as caught:
        windows(12_801, 100, 0, where="input[3]")
    assert (caught.value.code, caught.value.param) == ("input_too_long", "input[3]")
    with pytest.raises(ApiError, match="got 100, needs less than the 100") as caught:
        windows(500, 100, 100, where="input")
    assert caught.value.param == "parameters.stride"
