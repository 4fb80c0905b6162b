"""A result that is not known yet, and calls back as soon as it is: a future would wait for a turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from functions.telemetry import logger

T = TypeVar("T")


class Pending(Generic[T]):
    """To be set once. Belongs to one event loop; can be awaited, several times."""

    __slots__ = ("_callbacks", "_result")

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._callbacks: list[Callable[[Pending[T]], object]] | None = []
        self._result: T

    def done(self) -> bool:
        """Whether the result is known."""
        return self._callbacks is None

    def result(self) -> T:
        """What is known. Raises AttributeError before."""
        return self._result

    def set_result(self, result: T) -> None:
        """Tell everybody who asked. What a callback raises is logged; the others are called all the same."""
        if self._callbacks is None:
            raise RuntimeError("the result is known already")
        self._result = result
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks:
            try:
                callback(self)
            except Exception:  # noqa: BLE001 - it is not the sender's fault
                logger.exception("a callback failed")

    def add_done_callback(self, callback: Callable[[Pending[T]], object]) -> None:
        """Call back with this object as soon as the result is known, at once if it is known already."""
        if self._callbacks is None:
            callback(self)
        else:
            self._callbacks.append(callback)

    def __await__(self) -> Generator[Any, None, T]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.add_done_callback(lambda _: None if future.done() else future.set_result(None))
        yield from future
        return self._result
