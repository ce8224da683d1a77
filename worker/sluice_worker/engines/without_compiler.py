"""transformers' models without torch's compiler.

Whatever model of transformers is imported, torch's compiler, its symbolic algebra and distributed
tensors are imported with it: half of the time until a model can be built, and 100 MiB. No engine
compiles or distributes anything (``docs/decisions/0036``), so everything that makes transformers
import models happens within :func:`without_compiler`.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import torch
import transformers.utils
from transformers.utils import import_utils

_COMPILER: Final = "torch._dynamo"
_GETITEM: Final = f"{_COMPILER}._trace_wrapped_higher_order_op"


def _unchanged(function: Any = None, *_: object, **__: object) -> Any:
    """Decorates nothing, with or without arguments of its own."""
    return function if function is not None else _unchanged


class _Compiler(ModuleType):
    """Stands for the compiler: what marks functions for it changes nothing.

    Anything else is the real one's, which is imported then.
    """

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self.__path__ = []  # A package, though of one module.

    allow_in_graph = assume_constant_result = disable = staticmethod(_unchanged)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(_COMPILER), name)


class TransformGetItemToIndex:
    """Stands for the compiler's class of that name, of which masks are made with ``vmap``."""

    def __new__(cls) -> Any:
        return _real(_GETITEM).TransformGetItemToIndex()


def _real(name: str) -> Any:
    _leave()
    return importlib.import_module(name)


def _leave() -> None:
    """Let the next one who imports the compiler have it."""
    if isinstance(sys.modules.get(_COMPILER), _Compiler):
        del sys.modules[_COMPILER], sys.modules[_GETITEM]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within it, transformers is imported as if torch had no compiler and nothing distributed.

    What was imported stays so; the compiler itself can be imported as ever afterwards.
    """
    if _COMPILER in sys.modules:  # Too late to save anything, or within another one.
        yield
        return
    stands: list[tuple[Any, str, Callable[..., Any]]] = [(torch.compiler, "disable", _unchanged)]
    for module in (import_utils, transformers.utils):
        stands.append((module, "is_torch_distributed_available", _no))
        stands.append((module, "is_torch_flex_attn_available", _no))
    before = [getattr(owner, name) for owner, name, _ in stands]
    masks = ModuleType(_GETITEM)
    masks.__dict__["TransformGetItemToIndex"] = TransformGetItemToIndex
    sys.modules |= {_COMPILER: _Compiler(), _GETITEM: masks}
    try:
        for owner, name, stand in stands:
            setattr(owner, name, stand)
        yield
    finally:
        for (owner, name, _), usual in zip(stands, before, strict=True):
            setattr(owner, name, usual)
        _leave()


def _no() -> bool:
    return False
