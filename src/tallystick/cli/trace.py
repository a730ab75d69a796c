"""``tally trace``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import Screen, find_log, is_event, local, open_log, plural, print_json, wanted_entry

if TYPE_CHECKING:
    from ..core.entry import AuditEntry
    from ..reports.trace import Node


@click.command(
    name="trace",
    epilog="""\b
Example:
  tally trace INV-2026-1180
  tally trace '#18'
  tally trace audit_log erp:4711 --json""",
)
@click.argument("args", nargs=-1, metavar="[LOG] EVENT|#N|REF|CASE")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(args: tuple[str, ...], as_json: bool) -> None:
    """One case from the first request to the last effect, and what is unknown or missing in it."""
    from ..reports.trace import trace

    if not 1 <= len(args) <= 2:
        raise click.UsageError("trace takes [LOG] EVENT|#N|REF|CASE, for instance: tally trace INV-2026-1180")
    named, wanted = (args[0] if len(args) == 2 else None), args[-1]
    with open_log(find_log(named)) as log:
        try:
            found = trace(log, wanted_entry(wanted) if is_event(wanted) else wanted, log.approval_rules)
        except KeyError:
            raise click.UsageError(f"no entry, case or reference is called {wanted} in {log.path}") from None
        if as_json:
            missing = [{"event_id": e.event_id, "index": e.index, "remark": r} for e, r in found.remarks()]
            trees = [node.as_dict() for node in found.roots]
            print_json({"case": found.case, "entries": found.count, "cut": found.cut, "trees": trees, "missing": missing})
            return
        screen = Screen()
        screen.line(f"{'case ' + found.case if found.case else wanted}   {plural(found.count, 'entry', 'entries')}", "bold")
        screen.line(log.origin, "dim")
        screen.blank()
        days = {local(node.entry.timestamp_us, log.zone).date() for node in _all(found.roots)}
        pattern = "%H:%M:%S" if len(days) == 1 else "%Y-%m-%d %H:%M:%S"
        if len(days) == 1:
            screen.line(f"{days.pop():%Y-%m-%d}")
        for at, node in enumerate(found.roots):
            _show(screen, node, "", at == len(found.roots) - 1, log.zone, pattern)
        screen.blank()
        if found.cut:
            screen.line(f"there are more entries than {found.count:,}: tally query --case …")
        remarks = found.remarks()
        if not remarks:
            screen.line("nothing in it is unknown or missing")
        for entry, remark in remarks:
            screen.line(f"{entry.place}: {remark}", "yellow", hang=2)


def _all(nodes: list[Node]) -> list[Node]:
    found, pending = [], list(nodes)
    while pending:
        node = pending.pop()
        found.append(node)
        pending += node.children
    return found


def _show(screen: Screen, node: Node, indent: str, is_last: bool, zone: Any, pattern: str) -> None:
    entry = node.entry
    moment = local(entry.timestamp_us, zone).strftime(pattern)
    mark = " !" if node.remarks else ""
    branch = "└─ " if is_last else "├─ "
    screen.long(f"{indent}{branch}{moment}  {_said(entry)}  {entry.place}{mark}", "yellow" if node.remarks else "")
    below = indent + ("   " if is_last else "│  ")
    for at, child in enumerate(node.children):
        _show(screen, child, below, at == len(node.children) - 1, zone, pattern)


def _said(entry: AuditEntry) -> str:
    """One entry in a few words, by what it is."""
    said = entry.details
    if entry.event_type == "ai_request":
        chars = f", prompt {said['prompt_chars']:,}" if isinstance(said.get("prompt_chars"), int) else ""
        return f"{entry.actor} asked {entry.resource} ({said.get('operation', entry.action)}{chars})"
    if entry.event_type == "ai_response":
        parts = [str(said.get("end", entry.outcome))]
        if isinstance(said.get("response_chars"), int):
            parts.append(f"{said['response_chars']:,} chars")
        parts += [f"asks for {call.get('name')}" for call in said.get("tool_calls") or () if isinstance(call, dict)]
        if isinstance(said.get("latency_us"), int):
            parts.append(f"{said['latency_us'] / 1e6:,.2f} s")
        return f"{said.get('model', entry.resource)} answered: {', '.join(parts)}"
    if entry.event_type == "ai.outcome":
        ref, evidence = said.get("ref"), said.get("evidence")
        how = f" ({evidence})" if evidence not in (None, "explicit", "block ended") else ""
        return f"{entry.actor}: answer {str(said.get('status', '?')).replace('_', ' ')}{f' → {ref}' if ref else ''}{how}"
    if entry.event_type == "approval.decision":
        known = said.get("known_by")
        how = "self-reported" if said.get("self_reported") else f"known by {known}"
        return f"{entry.actor} {said.get('decision', '?')} it ({how})"
    result = "" if entry.outcome == "success" else f", {entry.outcome}"
    return f"{entry.actor}: {entry.action} → {entry.resource}{result}"
