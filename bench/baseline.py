"""The chapter's own logger written out: dataclass, JSON, SHA-256 over a joined string, open-append-close, no sync."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Entry:
    """The chapter's entry."""

    event_id: str
    timestamp: str
    event_type: str
    actor: str
    actor_type: str
    resource: str
    action: str
    outcome: str
    details: dict[str, Any]
    session_id: str | None
    ip_address: str | None
    checksum: str = ""

    def calculate(self) -> str:
        """Half of the fields, as in the chapter."""
        joined = f"{self.event_id}{self.timestamp}{self.event_type}{self.actor}{self.resource}{self.action}{self.outcome}"
        return hashlib.sha256(joined.encode()).hexdigest()


def append(path: Path, event: dict[str, Any]) -> None:
    """One event, not durable."""
    entry = Entry(str(uuid.uuid4()), datetime.now(UTC).isoformat(), **{"session_id": None, "ip_address": None, **event})
    entry.checksum = entry.calculate()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(entry)) + "\n")


def verify(path: Path) -> int:
    """Read the file and compare each checksum."""
    good = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = Entry(**json.loads(line))
            good += entry.checksum == entry.calculate()
    return good


def query(path: Path, wanted: dict[str, Any], limit: int = 100) -> list[Entry]:
    """The chapter's query: the whole file is read, what matches is collected, the first hundred are given."""
    found = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = Entry(**json.loads(line))
            if all(getattr(entry, name) == value for name, value in wanted.items()):
                found.append(entry)
    return found[:limit]
