"""What the paged decoder hands to torch's kernel, and what it refuses before that does."""

from typing import Any

import pytest
import torch

from sluice_worker.engines.decoder.attention import LayerShape, Look, NotServed
from sluice_worker.engines.decoder.pages import PagedStore, check_device
from sluice_worker.engines.decoder.store import Row
from sluice_worker.models.errors import ModelRejected
from tests.support.decoding import flash_calls

SHAPES = {0: LayerShape(2, 16, 16)}
AMPERE = (8, 0)


def arguments() -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Of the kernel, for a step of two texts: a prompt, and one token of another."""
    store = PagedStore(SHAPES, room=2048, dtype=torch.float32, device=torch.device("cpu"))
    places = []
    for tokens in (300, 7):
        opened = store.open(list(range(tokens)), b"")
        assert opened is not None
        assert store.reserve(opened.place, tokens)
        places.append(opened.place)
    step = store.step([Row(places[0], 0, 300), Row(places[1], 6, 1)])
    query, key = torch.randn(301, 4, 16), torch.randn(301, 2, 16)
    with flash_calls() as calls:
        step.attend(0, query, key, key, Look(None, None))
    [call] = calls
    return call


@pytest.mark.skipif(torch.version.cuda is None, reason="this build of torch has no such kernel")
def test_the_kernel_that_is_installed_wants_all_that_it_gets() -> None:
    """Its first check, which needs no device: what it says after that is about the device."""
    positional, named = arguments()
    kernel = torch.ops.aten._flash_attention_forward.default
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match="both set or both not set"):
        kernel.redispatch(cuda, *positional[:4], None, *positional[5:], **named)
    with pytest.raises(RuntimeError) as caught:  # These tensors are on no GPU.
        kernel.redispatch(cuda, *positional, **named)
    assert "both set" not in str(caught.value)


def test_a_kernel_without_room_for_the_architecture_is_told() -> None:
    check_device(SHAPES, dtype=torch.bfloat16, capability=AMPERE)
    for shape in (LayerShape(2, 26, 26), LayerShape(2, 512, 512), LayerShape(2, 192, 128)):
        with pytest.raises(NotServed, match=f"got {shape.key_size} and {shape.value_size}"):
            check_device({0: shape}, dtype=torch.bfloat16, capability=AMPERE)


def test_numbers_and_devices_it_is_not_made_for_are_refused_by_the_field() -> None:
    with pytest.raises(ModelRejected, match=r"model\.dtype: got float32.*float16 or bfloat16"):
        check_device(SHAPES, dtype=torch.float32, capability=AMPERE)
    with pytest.raises(ModelRejected, match=r"hardware\.device: got .* 7\.5; .*hardware\.gpu"):
        check_device(SHAPES, dtype=torch.float16, capability=(7, 5))
