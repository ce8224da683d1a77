"""What each of our functions costs with all that it calls, in instructions.

``path`` asks with ``--costs``. One function at a time is replaced by one that reads the counter
before and after it, so that no function pays for the counting of another. What C code has got hold
of before (callbacks of parsers, functions in caches) is not found.
"""

import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import FrameType, FunctionType, ModuleType
from typing import Any, Final

PACKAGES: Final = ("sluice_api", "sluice_gateway")


async def inclusive(
    run: Callable[[], Awaitable[None]], read: Callable[[], int]
) -> list[tuple[str, float, int]]:
    """Name, instructions and calls of each function during ``run``; the dearest first.

    Args:
        read: how many instructions there have been so far.
    """
    found = []
    bare = _Counted(lambda: None, read)
    for _ in range(1_000):
        bare.call()
    own = bare.instructions / bare.calls
    for name, function in await _called(run):
        counted = _Counted(function, read)
        places = list(_places(function))
        for owner, attribute in places:
            setattr(owner, attribute, counted.call)
        try:
            await run()
        finally:
            for owner, attribute in places:
                setattr(owner, attribute, function)
        if counted.calls:
            found.append((name, counted.instructions - own * counted.calls, counted.calls))
    return sorted(found, key=lambda each: -each[1])


class _Counted:
    def __init__(self, function: Callable[..., Any], read: Callable[[], int]) -> None:
        self.instructions = self.calls = 0

        def call(*arguments: Any, **more: Any) -> Any:
            before = read()
            try:
                return function(*arguments, **more)
            finally:
                self.instructions += read() - before
                self.calls += 1

        self.call = call


async def _called(run: Callable[[], Awaitable[None]]) -> list[tuple[str, FunctionType]]:
    """The functions and methods of ours that ``run`` calls."""
    codes = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        await run()
    finally:
        sys.setprofile(None)
    named = {
        function.__code__: function
        for owner in _owners()
        for function in vars(owner).values()
        if isinstance(function, FunctionType)
    }
    functions = [named[code] for code in codes if code in named]
    return [(f"{f.__module__.split('.', 1)[-1]}.{f.__qualname__}", f) for f in functions]


def _places(function: FunctionType) -> Iterable[tuple[Any, str]]:
    """Where it is looked for: in its module or class, and in the modules that import it."""
    for owner in _owners():
        for attribute, value in list(vars(owner).items()):
            if value is function:
                yield owner, attribute


def _owners() -> Iterator[ModuleType | type]:
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in PACKAGES:
            yield module
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name:
                    yield value
