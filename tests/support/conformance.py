"""What the conformance suite counts: cases, each a distinct pair of a route and a behaviour."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Cases(dict[tuple[str, str], F], Generic[F]):
    """The cases of one file, by route and behaviour; a pair that is there already is an error."""

    def case(self, route: str, behaviour: str) -> Callable[[F], F]:
        """Make a case of a function."""

        def add(function: F) -> F:
            assert (route, behaviour) not in self, f"{route} {behaviour} is a case already"
            self[route, behaviour] = function
            return function

        return add
