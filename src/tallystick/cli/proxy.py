"""``tally proxy``."""

from __future__ import annotations

import asyncio
import signal
import stat
from pathlib import Path
from typing import Any

import click

from .common import find_log, note, open_log


@click.command(
    name="proxy",
    epilog="""\b
Example:
  tally proxy --upstream http://127.0.0.1:11434 --listen 127.0.0.1:11435
  OLLAMA_HOST=http://127.0.0.1:11435 ollama run llama3.2
  curl -H 'Content-Type: application/json' http://127.0.0.1:11435/audit/outcomes \\
       -d '{"event_id": "evt_019a…", "status": "used", "ref": "erp:4711"}'""",
)
@click.argument("log_path", required=False, metavar="[LOG]")
@click.option("--upstream", default="http://127.0.0.1:11434", show_default=True, metavar="URL", help="The model server: Ollama, or "
              "whatever is OpenAI-compatible.")  # fmt: skip
@click.option("--listen", default="127.0.0.1:11435", show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one.")
@click.option("--service", default="tally-proxy", show_default=True, metavar="NAME", help="Who acts where the client does not say.")
@click.option("--tokens", type=click.Path(path_type=Path), metavar="FILE", help="Who may approve by which token: lines 'name token'; "
              "readable by you alone.")  # fmt: skip
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="A host name under which /audit/… may be called.")
def command(log_path: str | None, upstream: str, listen: str, service: str, tokens: Path | None, hosts: tuple[str, ...]) -> None:
    """Record every call that passes, by any client in any language.

    Answers carry X-Audit-Event-Id. X-Audit-Actor, X-Audit-Session, X-Audit-Case and traceparent are taken as claims.
    """
    try:
        from ..capture.proxy.own import Own
        from ..capture.proxy.serve import Proxy, run
        from ..capture.proxy.sides import Address
    except ImportError as e:
        raise click.UsageError(f"the proxy needs h11 ({e.name} is not there): pip install 'tallystick[proxy]'") from None

    try:
        address = Address.parse(upstream)
    except ValueError as e:
        raise click.UsageError(f"--upstream: {e}") from None
    host, port = _listen(listen)
    known = _tokens(tokens) if tokens is not None else {}
    with open_log(find_log(log_path), write=True, service=service) as log:
        proxy = Proxy(log.recorder, address, Own(log, known, frozenset({"localhost", *(h.lower() for h in hosts)})))

        def ready(host: str, port: int) -> None:
            where = f"[{host}]" if ":" in host else host
            note(f"tally proxy: http://{where}:{port} → {address.url}, recorded in {log.path} (failure = {log.recorder.failure}, "
                 f"content = {log.recorder.content.default})")  # fmt: skip
            if not Address("http", host, port, "").is_here:
                note("tally proxy: anybody who reaches this address can use the model: nobody is asked who he is")

        async def serve() -> None:
            until = asyncio.Event()
            for name in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(name, until.set)
            await run(proxy, host, port, ready, until)

        asyncio.run(serve())


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--listen: {text!r} is not HOST:PORT, for instance 127.0.0.1:11435")
    return host, int(port)


def _tokens(path: Path) -> dict[str, str]:
    """Lines of ``name token``; the error names the line, never the token."""
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise click.UsageError(f"{path} can be read by others; run: chmod 600 {path}")
    found: dict[str, Any] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, token = line.strip().partition(" ")
        if len(token.strip()) < 16:
            raise click.UsageError(f"{path}, line {number}: name and a token of at least 16 characters")
        found[name] = token.strip()
    return found
