"""Generators that are watched: every step passes through unchanged, and how they end is told exactly once.

The watcher sees ``began`` before the first step, ``item`` after each, and one of ``ended`` (no more), ``failed`` (an exception),
``closed`` and ``dropped`` (nobody holds it any more, perhaps in a finaliser). Nothing is held across a step: no lock, no context
token. A generator that is entered again while it runs is refused by Python, and that ends nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Protocol


class Watcher(Protocol):
    """Who is told. ``began`` and ``ended`` may raise; the others must not."""

    def began(self) -> None:
        """Before the first step."""

    def item(self) -> None:
        """A step gave something."""

    def ended(self) -> None:
        """There is no more."""

    def failed(self, error: BaseException) -> None:
        """A step raised."""

    def closed(self, *, began: bool) -> None:
        """Closed by its holder."""

    def dropped(self) -> None:
        """Collected."""


class AsyncWatcher(Protocol):
    """The same for asynchronous generators; ``failed``, ``closed`` and ``dropped`` do not wait."""

    async def began(self) -> None:
        """Before the first step."""

    def item(self) -> None:
        """A step gave something."""

    async def ended(self) -> None:
        """There is no more."""

    def failed(self, error: BaseException) -> None:
        """A step raised."""

    def closed(self, *, began: bool) -> None:
        """Closed by its holder."""

    def dropped(self) -> None:
        """Collected."""


def _thrown(kind: Any, value: Any) -> BaseException:
    """The exception that the three arguments of ``throw`` mean."""
    if isinstance(value, BaseException):
        return value
    found: BaseException = kind if isinstance(kind, BaseException) else kind() if value is None else kind(value)
    return found


class WatchedGenerator(Generator[Any, Any, Any]):
    """A generator around another one."""

    def __init__(self, inner: Generator[Any, Any, Any], watcher: Watcher) -> None:
        self._inner, self._watcher = inner, watcher
        self._began = self._over = self._running = False
        self._send = inner.send
        self._item = watcher.item

    def __iter__(self) -> WatchedGenerator:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        if not self._began:
            self._begin()
        return self._step(self._send, value)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:  # noqa: ARG002
        return self._step(self._inner.throw, _thrown(kind, value))

    def _step(self, step: Callable[[Any], Any], value: Any) -> Any:
        if self._running:
            return step(value)
        self._running = True
        try:
            item = step(value)
        except StopIteration:
            self._end()
            raise
        except BaseException as e:
            self._fail(e)
            raise
        finally:
            self._running = False
        self._item()
        return item

    def _begin(self) -> None:
        if not self._over:
            self._began = True
            try:
                self._watcher.began()
            except BaseException as e:
                self._over = True
                self._inner.close()
                self._watcher.failed(e)
                raise

    def _end(self) -> None:
        if not self._over:
            self._over = True
            try:
                self._watcher.ended()
            except BaseException as e:
                self._watcher.failed(e)
                raise

    def _fail(self, error: BaseException) -> None:
        if not self._over:
            self._over = True
            self._watcher.failed(error)

    def close(self) -> Any:
        if self._running:
            return self._inner.close()
        try:
            return self._inner.close()  # from Python 3.13 on it returns something
        finally:
            if not self._over:
                self._over = True
                self._watcher.closed(began=self._began)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._over = True
            self._watcher.dropped()


class WatchedAsyncGenerator(AsyncGenerator[Any, Any]):
    """The same around an asynchronous generator."""

    def __init__(self, inner: AsyncGenerator[Any, Any], watcher: AsyncWatcher) -> None:
        self._inner, self._watcher = inner, watcher
        self._began = self._over = self._running = False

    def __aiter__(self) -> WatchedAsyncGenerator:
        return self

    async def __anext__(self) -> Any:
        return await self.asend(None)

    async def asend(self, value: Any) -> Any:
        if not self._began and not self._over:
            self._began = True
            try:
                await self._watcher.began()
            except BaseException as e:
                self._over = True
                self._watcher.failed(e)
                await self._inner.aclose()
                raise
        return await self._step(self._inner.asend, value)

    async def athrow(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:  # noqa: ARG002
        return await self._step(self._inner.athrow, _thrown(kind, value))

    async def _step(self, step: Callable[[Any], Awaitable[Any]], value: Any) -> Any:
        if self._running:
            return await step(value)
        self._running = True
        try:
            item = await step(value)
        except StopAsyncIteration:
            if not self._over:
                self._over = True
                try:
                    await self._watcher.ended()
                except BaseException as e:
                    self._watcher.failed(e)
                    raise
            raise
        except BaseException as e:
            if not self._over:
                self._over = True
                self._watcher.failed(e)
            raise
        finally:
            self._running = False
        self._watcher.item()
        return item

    async def aclose(self) -> None:
        if self._running:
            await self._inner.aclose()
            return
        try:
            await self._inner.aclose()
        finally:
            if not self._over:
                self._over = True
                self._watcher.closed(began=self._began)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._over = True
            self._watcher.dropped()
