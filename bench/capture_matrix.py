"""Which calls are completely on record; ``python -m bench.capture_matrix PRODUCT FOLDER [quick]`` runs the conformance suite's calls
under one product, and prints what each lacks as JSON. ``quick``: only the synchronous ones.

The suite is ``tests/capture/conformance.py``: both libraries, synchronous and asynchronous, against its scripted server. *Complete*
is the same for everybody, and says nothing about durability, proof, attempts, images or thinking:

==========  =================================================================================================================
``record``  the call is on record: where nothing was sent, none is needed
``one``     once
``model``   with the name of the model that was asked
``end``     a call that was closed, dropped, cancelled, cut or refused does not look like one that went well: a span says so by the
            status ERROR, an exception or ``error.type``; UNSET is what a span is before anybody says anything about it
``text``    all of the answer that had come, or its length; of all choices
``tool``    the tool that the answer asked for, with its arguments or their length
``tokens``  the numbers of tokens, where the server gave them
==========  =================================================================================================================
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.capture import conformance as suite
from tests.capture.server import ANSWER, ARGUMENTS, TOKENS, ModelServer

from .capture_peers import Spans, instrument

_SAID = {"structured": '{"city": "Köln", "days": 2}', "unstructured": "I would rather not."}
_COUNTS = ("input_tokens", "output_tokens")


class Wanted(NamedTuple):
    """What has to be on record of a call."""

    model: str
    is_ok: bool
    is_sent: bool
    text: str
    copies: int
    tool: bool
    tokens: tuple[int | None, int | None]
    embeddings: bool


def wanted(way: suite.Way, case: suite.Case) -> Wanted:
    """From the case alone."""
    own = (case.ollama if way.dialect == "ollama" else case.openai) or {}
    expect = {**case.expect, **own}
    is_ok, copies, text = expect["end"] == "ok", case.more.get("n", 1), ""
    if case.op != "embed" and case.model != "tools":
        text = _SAID.get(case.model, ANSWER) if is_ok else "".join(TOKENS)[: expect.get("response_chars") or 0]
    counted = is_ok and case.model != "uncounted" and (
        way.dialect == "ollama" or not case.stream or bool(case.more.get("stream_options")))  # fmt: skip
    tokens = (7 if counted else None, 5 if counted and case.op != "embed" else None)
    return Wanted(case.model, is_ok, expect["end"] != "not_sent", text, copies, case.model == "tools", tokens, case.op == "embed")


class Entry:
    """A call as our log has it."""

    def __init__(self, entry: Any) -> None:
        self._details = entry.details
        self.status = str(self._details["end"])
        self.looks_well = self.status == "ok" and entry.outcome == "success"
        self.models = {entry.resource, self._details.get("model"), self._details.get("model_requested")}
        self.tokens = tuple(self._details.get(name) for name in _COUNTS)
        self.embeds = self._details["operation"] == "embeddings"

    def says(self, text: str, copies: int) -> bool:
        return bool(self._details.get("response_chars") == len(text) * copies)

    def asks_tool(self) -> bool:
        return any(c["name"] == "weather" and c["arguments_chars"] >= 24 for c in self._details.get("tool_calls", ()))


class Span:
    """A call as a span has it, in any of the three dialects."""

    _COUNTS = (("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
               ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"))  # fmt: skip
    _MODELS = ("gen_ai.request.model", "gen_ai.response.model", "llm.model_name", "embedding.model_name")
    _OUTPUTS = ("gen_ai.completion.", "gen_ai.output.messages", "llm.output_messages.", "output.value", "llm.choices.")

    def __init__(self, span: Any) -> None:
        found = dict(span.attributes)
        self.status = str(span.status.status_code.name)
        self.looks_well = not (self.status == "ERROR" or "error.type" in found or any(e.name == "exception" for e in span.events))
        self.models = {found.get(name) for name in self._MODELS}
        for name in ("llm.invocation_parameters", "input.value"):  # there too: it need not stand where one looks for it
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                self.models.add(json.loads(found.get(name, "{}")).get("model"))
        self.tokens = tuple(next((found[n] for n in names if n in found), None) for names in self._COUNTS)
        self.embeds = "embed" in span.name.lower()
        families: dict[str, list[str]] = {}
        for name, value in found.items():
            family = next((one for one in self._OUTPUTS if name.startswith(one)), None)
            if family is not None:
                families.setdefault(family, []).extend(_texts(value))
        self._families = families.values()

    def says(self, text: str, copies: int) -> bool:
        return any("".join(texts).count(text) >= copies for texts in self._families)

    def asks_tool(self) -> bool:
        return any("weather" in texts and any(ARGUMENTS["city"] in one for one in texts) for texts in self._families)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, and in what is JSON in it."""
    if isinstance(value, str):
        inner = None
        if value[:1] in ("{", "["):
            with contextlib.suppress(ValueError):
                inner = json.loads(value)
        if isinstance(inner, dict | list):
            yield from _texts(inner)
        if not isinstance(inner, list):
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def lacks(wants: Wanted, records: list[Any]) -> list[str]:
    """What is missing, by the table above."""
    if not records:
        return [] if not wants.is_sent else ["record"]
    one = records[-1]
    found = []
    for word, is_there in (("one", len(records) == 1), ("model", wants.model in one.models), ("end", one.looks_well == wants.is_ok),
                           ("text", not wants.text or one.says(wants.text, wants.copies)),
                           ("tool", not wants.tool or one.asks_tool()), ("record", not wants.embeddings or one.embeds),
                           ("tokens", all(w is None or w == t for w, t in zip(wants.tokens, one.tokens, strict=True)))):  # fmt: skip
        if not is_there:
            found.append(word)
    return found


class _Ours:
    def __init__(self, folder: Path) -> None:
        from tallystick import AuditLogger

        with contextlib.redirect_stderr(io.StringIO()):
            self._log = AuditLogger(folder)
        self._seen = 0

    def client(self, client: Any) -> Any:
        return self._log.wrap(client)

    def take(self) -> list[Entry]:
        self._log.flush()
        found = list(self._log.entries({"event_type": ["ai_response"]}))
        new, self._seen = found[self._seen :], len(found)
        return [Entry(entry) for entry in new]


class _Theirs:
    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def client(self, client: Any) -> Any:
        return client

    def take(self) -> list[Span]:
        return [Span(span) for span in self._spans.take()]


def main() -> None:
    """All cases."""
    product, folder, is_quick = sys.argv[1], Path(sys.argv[2]), "quick" in sys.argv[3:]
    warnings.simplefilter("ignore")
    spans = instrument(product)
    under = _Theirs(spans) if spans is not None else _Ours(folder)
    rows = []
    with ModelServer() as server:
        for way in suite.WAYS:
            if way.capture != "wrap" or (is_quick and way.is_async):
                continue
            for case in suite.CASES:
                own = case.ollama if way.dialect == "ollama" else case.openai
                if own is None or (case.consume == "cancel" and not way.is_async):
                    continue
                server._attempts.clear()
                client = under.client(suite.new_client(way, server.url, case.timeout))
                suite.run(way, client, case)
                del client
                gc.collect()
                records = under.take()
                wants = wanted(way, case)
                rows.append({"case": case.name, "dialect": way.dialect, "stream": case.stream, "ok": wants.is_ok,
                             "status": records[-1].status if records else None, "missing": lacks(wants, records)})  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
