"""A GPU that is pretended: tensors say they are on `cuda`, a CPU computes them.

What would be refused on a real one is refused here: an operation on tensors of both places, numbers
read without being brought back. So where each tensor is made is tested without a GPU; kernels,
their numbers, graphs and speed are not.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

from sluice_worker.engines.decoder import graphs
from sluice_worker.engines.decoder.graphs import Replay

GPU = torch.device("cuda", 0)
_COPIES = ("aten::copy_", "aten::_to_copy")
"""What takes a tensor from one place to another."""
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Takes indices from either place."""
_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2")
"""The CPU must know numbers of the GPU to go on."""


_capturing = ContextVar("a graph is captured", default=False)


class _There(Tensor):
    """A tensor on the GPU; ``held`` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "_There":
        there: _There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
        )
        there.held = held
        return there

    def __repr__(self, **unused: Any) -> str:
        return f"<on the GPU: {self.held!r}>"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    """Also for what has no tensor yet to tell where it belongs. Of one thread."""

    def __enter__(self) -> "_Pretending":
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # Or torch.tensor asks the driver by itself.
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    name, in_place = _known(func)
    wanted = kwargs.get("device")
    tensors: list[Tensor] = []
    held = [_held(value, tensors) for value in args]
    named = {key: _held(value, tensors) for key, value in kwargs.items()}
    there = [isinstance(tensor, _There) for tensor in tensors]
    if wanted is None:
        goes_there = any(there)
        if goes_there and name not in _COPIES:
            _check(name, args, tensors)
    else:
        goes_there = torch.device(wanted).type == GPU.type
        named["device"] = torch.device("cpu")
    if _capturing.get() and (name in _READS or not all(there) or not goes_there):
        raise RuntimeError(f"{name}: not permitted while a graph is captured")
    answer = func(*held, **named)
    if in_place:
        return args[0]
    return _moved(answer) if goes_there else answer


def _check(name: str, args: Any, tensors: list[Tensor]) -> None:
    if name in _INDEXED:
        tensors = [args[0], *(each for each in args[2:] if isinstance(each, Tensor))]
    foreign = [each for each in tensors if not isinstance(each, _There) and each.dim()]
    if foreign or not any(isinstance(each, _There) for each in tensors):
        raise RuntimeError(
            f"{name}: tensors of both places; on the CPU are those of the shapes "
            f"{[tuple(tensor.shape) for tensor in foreign]}"
        )


def _held(value: Any, found: list[Tensor]) -> Any:
    """``value`` as the CPU takes it; ``found`` gets the tensors in it."""
    if isinstance(value, Tensor):
        found.append(value)
        return value.held if isinstance(value, _There) else value
    if isinstance(value, list | tuple):
        return [_held(each, found) for each in value]
    return value


def _moved(answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return _There(answer)
    if isinstance(answer, list | tuple):
        return tuple(_moved(each) for each in answer)
    return answer


@cache
def _known(func: Any) -> tuple[str, bool]:
    """An operation's name, and whether it works in place: it answers with its first argument."""
    first = func._schema.arguments[:1]
    in_place = bool(first and first[0].alias_info and first[0].alias_info.is_write)
    return func._schema.name, in_place


def capture_anew(compute: Replay) -> Replay:
    """What stands in for a graph: the same tensors, computed again."""
    capturing = _capturing.set(True)
    try:
        answer = compute().clone()
    finally:
        _capturing.reset(capturing)
    return lambda: answer.copy_(compute())


@contextmanager
def pretended_gpu() -> Iterator[Callable[[], None]]:
    """torch sees a GPU inside this context.

    Yields:
        what every other thread that computes must call first.
    """
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and torch remembers what it was told of one")
    answers: dict[str, Any] = {
        "is_available": True,
        "is_bf16_supported": True,
        "get_device_capability": (9, 0),
        "mem_get_info": (1 << 32, 1 << 32),
        "_lazy_init": None,
    }
    with pytest.MonkeyPatch.context() as patch, _Pretending():
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        patch.setattr(varlen, "_cudnn_version_and_major_capability", lambda index: (None, 9))
        # Where random numbers are drawn is not seen: the driver makes a GPU's generators.
        usual = torch.Generator
        patch.setattr(torch, "Generator", lambda device="cpu": usual())
        # Views of a wrapped tensor cannot be made in inference mode.
        patch.setattr(torch._C, "_InferenceMode", lambda mode: torch.no_grad())
        patch.setattr(graphs, "capture_cuda", capture_anew)
        torch._C._ensureCUDADeviceGuardSet()  # Where there is no driver, a guard that does nothing.
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield lambda: _Pretending().__enter__()
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
