"""The peers, each by its own documented way; run by ``peers`` where they are installed. JSON on standard output.

``python -m bench.peer_cases NAME FOLDER COUNT`` appends up to COUNT events one at a time, for at most ten seconds, then verifies.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .events import events

SECONDS_MAX = 10.0
Append, Verify = Callable[[dict[str, Any]], Any], Callable[[], Any]


def auditchain(folder: Path) -> tuple[Append, Verify]:
    """SQLite backend, the chain without a key, as in its README."""
    from auditchain.backends.sqlite import SqliteBackend
    from auditchain.sync import SyncAuditLog

    log = SyncAuditLog(SqliteBackend(folder / "audit.db"))
    return lambda e: log.append(e["actor"], e["action"], e["resource"], metadata=e["details"]), log.verify


def tamperlog(folder: Path) -> tuple[Append, Verify]:
    """JSON lines."""
    from tamperlog import AppendOnlyLog, JSONLStorage

    log = AppendOnlyLog(JSONLStorage(folder / "log.jsonl"))
    return log.append_json, log.verify_all_entries


def pymerkle(folder: Path) -> tuple[Append, Verify]:
    """The SQLite tree; its state is all that it can give."""
    from pymerkle import SqliteTree

    tree = SqliteTree(str(folder / "tree.db"))
    return lambda e: tree.append_entry(json.dumps(e).encode()), tree.get_state


def bijotel(folder: Path) -> tuple[Append, Verify]:
    """Events without spans, HMAC chain."""
    from bijotel.processors.hmac_chain import append_event, verify_chain

    path, secret = folder / "chain.db", b"k" * 32
    return lambda e: append_event(path, secret, e), lambda: verify_chain(path, secret)


def cloakllm(folder: Path) -> tuple[Append, Verify]:
    """Its audit logger alone, without looking for personal data."""
    from cloakllm.audit import AuditLogger
    from cloakllm.config import ShieldConfig

    log = AuditLogger(ShieldConfig(log_dir=folder / "audit"))
    return lambda e: log.log("sanitize", model="local", metadata={"action": e["action"], "resource": e["resource"]}), log.verify_chain


def tallystick(folder: Path) -> tuple[Append, Verify]:
    """Ours, for the same events in the same run."""
    from tallystick import AuditLogger

    log = AuditLogger(folder / "audit_log")
    return lambda e: log.log(**e), lambda: log.verify_integrity()["verified"] or sys.exit("it does not verify")


def main() -> None:
    """One peer."""
    name, folder, some = sys.argv[1], Path(sys.argv[2]), events(int(sys.argv[3]))
    append, verify = globals()[name](folder)
    started, done = time.perf_counter(), 0
    for event in some:
        append(event)
        done += 1
        if time.perf_counter() - started > SECONDS_MAX:
            break
    appended = time.perf_counter()
    verify()
    print(json.dumps({"events": done, "append": done / (appended - started), "verify": done / (time.perf_counter() - appended)}))


if __name__ == "__main__":
    main()
