"""A function whose arguments have the types that configurations give values to."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from toy_methods import Prompt


@runtime_checkable
class Way(Protocol):
    """A strategy, of which `Straight` is one."""

    def go(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Straight:
    steps: int = 1

    def go(self) -> int:
        return self.steps


@runtime_checkable
class Countable(Protocol):
    """What plain values have, too."""

    def count(self, value: Any, /) -> int: ...


def typed(
    *,
    count: int = 1,
    share: float = 0.5,
    name: str = "a",
    flag: bool = False,
    maybe: int | None = None,
    either: str | Sequence[str] = "a",
    lengths: Mapping[str, int] | None = None,
    things: Sequence[Any] = (),
    function: Callable[[], int] | int | None = None,
    way: Way | None = None,
    straight: Straight = Straight(),
    countable: Countable = "aa",
    anything: Any = None,
    untyped=None,
) -> dict[str, Any]:
    """Returns what it was given."""
    return {**locals()}


def a_name() -> str:
    return "a"


def a_count() -> int:
    return 3


def unsaid():
    return "a"


def hidden(prompt: "Prompt | None" = None, count: int = 1) -> None:
    """Has an annotation that only a type checker can read."""
