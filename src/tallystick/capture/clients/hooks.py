"""What hooking a client library takes, whichever it is: a method in the place of another, and the way back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urljoin

_MARK = "__tallystick_original__"


def is_hooked(function: Any) -> bool:
    """Whether it stands in the place of another one."""
    return hasattr(function, _MARK)


def original_of(function: Any) -> Any:
    """What was there before, or the function itself."""
    return getattr(function, _MARK, function)


def as_method(original: Any, hook: Callable[..., Any]) -> Any:
    """A method for a class: ``hook(self, original bound to it, …)``."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **keywords: Any) -> Any:
        return hook(self, original.__get__(self), *args, **keywords)

    setattr(method, _MARK, original)
    return method


def hook_one(client: Any, name: str, hook: Callable[..., Any]) -> None:
    """The same on one client, under whatever its class has been hooked with."""
    original = original_of(getattr(type(client), name)).__get__(client)
    setattr(client, name, functools.wraps(original)(functools.partial(hook, client, original)))


@functools.lru_cache(maxsize=256)
def joined(base: str, path: str) -> str:
    """An address below a base."""
    return urljoin(base, path)


@functools.cache
def version_of(package: str) -> str:
    """``name-python/1.2.3``."""
    try:
        return f"{package}-python/{version(package)}"
    except PackageNotFoundError:
        return f"{package}-python"
