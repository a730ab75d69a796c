"""What the cases saw: name → one value a round."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Cases:
    """Cases that note what they see in ``seen``."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        """One value of this round."""
        self.seen.setdefault(name, []).append(value)

    def rate(self, name: str, count: int, action: Callable[[], Any]) -> None:
        """``count`` of something per second."""
        started = time.perf_counter()
        action()
        self.note(name, count / (time.perf_counter() - started))
