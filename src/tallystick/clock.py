"""The clock and the machine: wall clock, time since boot, boot id, ids, time zone."""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .core.errors import ConfigError


class Clock:
    """What the world says about now. Tests hand in their own."""

    def wall_us(self) -> int:
        """Wall clock, microseconds since the epoch, UTC. May jump."""
        return time.time_ns() // 1000

    def boot_us(self) -> int:
        """Microseconds since boot, sleep included; never jumps (CLOCK_BOOTTIME; where absent, monotonic)."""
        return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1000

    def boot_id(self) -> str:
        """Names this boot of this machine; two machines never share it."""
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:  # macOS: the boot second and the host are as near as one gets
            return f"{uuid.getnode():012x}-{(self.wall_us() - self.boot_us()) // 60_000_000}"

    def event_id(self) -> str:
        """``evt_`` and a UUIDv7 (RFC 9562 §5.7) in hex: 48 bits of milliseconds, 74 fresh random bits.

        The random bits are the kernel's, fetched for some hundred ids at once; a forked process fetches its own.
        """
        try:
            noise = next(_noise[0])
        except StopIteration:
            _noise[0] = iter(_fetch_noise())
            return self.event_id()
        return f"evt_{time.time_ns() // 1_000_000:012x}7{noise}"

    def event_ids(self, count: int) -> list[str]:
        """Many ids of the same millisecond, in no order among themselves."""
        start = f"evt_{time.time_ns() // 1_000_000:012x}7"
        return [start + noise for _ in range(0, count, _NOISES) for noise in _fetch_noise()][:count]


_NOISES = 256
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_noise: list[Iterator[str]] = [iter(())]  # ``next`` of a list's iterator is atomic: no two threads get the same


def _fetch_noise() -> list[str]:
    """The 19 hex digits that follow the version: 12 bits, the variant 0b10, 62 bits."""
    bits = os.urandom(10 * _NOISES).hex()
    return [bits[i : i + 3] + _VARIANT[bits[i + 3]] + bits[i + 4 : i + 19] for i in range(0, 20 * _NOISES, 20)]


def _forget_noise() -> None:
    _noise[0] = iter(())


os.register_at_fork(after_in_child=_forget_noise)
CLOCK = Clock()


def zone(name: str) -> tzinfo:
    """A time zone by its IANA name; ``ConfigError`` if this machine does not know it. ``UTC`` needs no database."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise ConfigError(f"time zone {name!r} is not known on this machine (package tzdata?)") from e


def local_zone_name() -> str:
    """The machine's time zone as an IANA name, ``UTC`` where it has none: ``$TZ``, ``/etc/timezone``, ``/etc/localtime``."""
    candidates = [os.environ.get("TZ", "").lstrip(":")]
    try:
        candidates.append(Path("/etc/timezone").read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError):
        pass
    _, _, tail = os.path.realpath("/etc/localtime").partition("/zoneinfo/")
    candidates.append(tail)
    for name in candidates:
        if name and not name.startswith("/"):
            try:
                ZoneInfo(name)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                continue
            return name
    return "UTC"


def host_name() -> str:
    """The machine's short name, lower case, only ``a-z 0-9 -``; ``host`` if nothing is left."""
    name = socket.gethostname().split(".")[0].lower()
    return "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in name).strip("-")[:40] or "host"


def system_user() -> str:
    """The operating system's name for this user, or ``uid <n>``."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
