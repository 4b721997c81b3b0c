"""What is on: counted, locked, and undone in reverse order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, cast

from typing_extensions import Self

from rcnn_ext import torchvision_compat
from rcnn_ext.accelerate import detection, operators
from rcnn_ext.errors import UserError

Level = Literal["operators", "models"]
LEVELS: tuple[Level, ...] = ("operators", "models")

_Function = TypeVar("_Function", bound=Callable[..., Any])

_lock = threading.RLock()
_installers: dict[Level, Callable[[], Callable[[], None]]] = {
    "operators": operators.install,
    "models": detection.install,
}
# How many holders each level has, and how each is undone.
_holders: dict[Level, int] = dict.fromkeys(LEVELS, 0)
_undo: dict[Level, Callable[[], None]] = {}
_inexact_holders = 0


def check_level(level: object, where: str = "accelerate: level") -> Level:
    """Return the level, or raise a :class:`UserError` that says where it was given."""
    for known in LEVELS:
        if level == known:
            return known
    raise UserError(f"{where}: expected {' or '.join(map(repr, LEVELS))}, got {level!r}")


def _levels(level: Level) -> tuple[Level, ...]:
    """Return the levels that one includes, itself last."""
    return LEVELS[: LEVELS.index(level) + 1]


def _hold(level: Level, exact: bool) -> None:
    global _inexact_holders
    with _lock:
        held: list[Level] = []
        try:
            for each in _levels(level):
                if not _holders[each]:
                    _undo[each] = _installers[each]()
                _holders[each] += 1
                held.append(each)
        except BaseException:
            _release_levels(held)
            raise
        _inexact_holders += not exact
        operators.mode.exact = not _inexact_holders


def _release(level: Level, exact: bool) -> None:
    global _inexact_holders
    with _lock:
        _inexact_holders -= not exact
        operators.mode.exact = not _inexact_holders
        _release_levels(_levels(level))


def _release_levels(levels: tuple[Level, ...] | list[Level]) -> None:
    for each in reversed(levels):
        _holders[each] -= 1
        if not _holders[each]:
            _undo.pop(each)()


class Acceleration:
    """torchvision accelerated: what :func:`accelerate` returns.

    It is on from its creation until :meth:`undo`, or until the end of a ``with`` statement over it.
    As a decorator it is on during calls of the function only. It may be used again.

    Args:
        level: As for :func:`accelerate`.
        exact: As for :func:`accelerate`.
    """

    def __init__(self, level: Level = "operators", exact: bool = True) -> None:
        self.level = check_level(level)
        self.exact = exact
        self._depth = 0
        self._enter()
        # The first `with` takes over what the creation began.
        self._begun = True

    def _enter(self) -> None:
        with _lock:
            _hold(self.level, self.exact)
            self._depth += 1

    def _leave(self) -> None:
        with _lock:
            if self._depth:
                self._depth -= 1
                _release(self.level, self.exact)

    def undo(self) -> None:
        """Bring torchvision's own code back, unless others hold it accelerated; harmless twice."""
        with _lock:
            self._begun = False
            while self._depth:
                self._leave()

    @property
    def active(self) -> bool:
        """Whether this object holds torchvision accelerated."""
        return self._depth > 0

    def __enter__(self) -> Self:
        with _lock:
            if self._begun:
                self._begun = False
            else:
                self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def __call__(self, function: _Function) -> _Function:
        """Decorate a function, coroutine or generator: torchvision is accelerated while it runs."""
        if not callable(function):
            raise UserError(
                f"accelerate: expected a function to decorate, got {type(function).__name__}"
            )
        self.undo()
        return decorated(function, functools.partial(held, self.level, self.exact))

    def __repr__(self) -> str:
        state = "on" if self.active else "off"
        return f"<Acceleration level={self.level!r} exact={self.exact} {state}>"


@contextlib.contextmanager
def held(level: Level, exact: bool) -> Iterator[None]:
    """Accelerate torchvision for a block of code."""
    """Accelerate torchvision for a block of code."""
    _hold(level, exact)
    try:
        yield
    finally:
        _release(level, exact)


def decorated(
    function: _Function, context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> _Function:
    """Return a function that runs in a context; a coroutine or generator, until it ends."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with context():
                return await function(*args, **kwargs)

        return cast(_Function, coroutine)
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def async_generator(*args: Any, **kwargs: Any) -> Any:
            with context():
                async for value in function(*args, **kwargs):
                    yield value

        return cast(_Function, async_generator)
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            with context():
                return (yield from function(*args, **kwargs))

        return cast(_Function, generator)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with context():
            return function(*args, **kwargs)

    return cast(_Function, call)


@dataclasses.dataclass(frozen=True)
class Status:
    """State of the acceleration in this process.

    Attributes:
        level: The highest level that is on, or ``None``.
        exact: Whether inputs with deliberately different results go to torchvision's kernels.
        operators: Operators of torchvision that have a kernel here, by type of device.
        compat: Why :mod:`rcnn_ext.torchvision_compat` defined torchvision's operators, or ``None``
            where torchvision's own binary runs.
    """

    level: Level | None
    exact: bool
    operators: dict[str, tuple[str, ...]]
    compat: str | None


def status() -> Status:
    """Return what is accelerated in this process, and what can be."""
    torchvision_compat.install()
    import torchvision  # noqa: F401 - registers the operators

    with _lock:
        held = [level for level in LEVELS if _holders[level]]
        return Status(
            level=held[-1] if held else None,
            exact=operators.mode.exact,
            operators={kind: operators.replaceable(kind) for kind in ("cpu", "cuda")},
            compat=torchvision_compat.reason(),
        )
