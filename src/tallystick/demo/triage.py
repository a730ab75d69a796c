"""The automation: every mail is read, put to the model, filed; every step is on record.

What is recorded for one mail, all with the mail's name as case::

    data_access        read mail
    ai_request         chat                 before the call; the prompt is a payload (``content = "full"``)
    ai_response        answer               parent: the request; the answer is a payload
    data_modification  file mail            parent: the answer
    data_modification  post invoice         parent: the answer (invoices that were accepted)
    ai.outcome         use answer           parent: the answer; used, rejected or failed_validation, and why

The decision is parsed from the answer *as the log gives it back*, never from a variable that was not recorded. An answer
that cannot be parsed, that contradicts itself or that says it is unsure, and an amount over ``LIMIT_EUR``, go to a person
(``out/human``) with the reason on record; no rule here ever decides in the model's place. A call that fails is on record with
how it ended, and its mail goes to a person as well. The calls are recorded by the wrapped client alone.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.entry import AuditEventType
from .mail import Mail, list_inbox, read_mail
from .model import Server, client_for

if TYPE_CHECKING:
    from ..logger import AuditLogger

ACTOR = "inbox-triage"
CATEGORIES = ("invoice", "order", "complaint", "application", "newsletter", "spam", "other")
HUMAN = "human"
LIMIT_EUR = 2_000
PROMPT_CHARS_MAX = 1_200
ANSWER_TOKENS_MAX = 160
CALL_SECONDS = 180.0
OPTIONS = {"temperature": 0, "seed": 1, "num_predict": ANSWER_TOKENS_MAX}
_FIGURE = re.compile(
    r"(?<![\d.,])(?!(?:0?[1-9]|[12]\d|3[01])\.(?:0[1-9]|1[0-2])\.)"  # not a day such as 20.11.
    r"\d{1,3}(?:[.,' ]?\d{3})*[.,]\d{2}(?![\d.,]*\d)"
)
_LEDGER = ("case", "amount_eur", "answer")


class Decision(NamedTuple):
    """What an answer says, once it was found to say anything."""

    category: str
    amount: float | None
    confidence: str
    reason: str


class Rejected(Exception):
    """An answer that is not acted on. ``status`` is the word for the log, ``decision`` what could be read of it."""

    def __init__(self, why: str, status: str, decision: Decision | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.decision = decision


class Result(NamedTuple):
    """What became of one mail: the pile, whether the answer was used, and the sentence that is on record."""

    case: str
    subject: str
    said: str
    amount: float | None
    pile: str
    status: str
    why: str
    seconds: float
    event_id: str


class Triage:
    """One run over an inbox. ``log`` records, ``server`` answers, ``folder`` has ``inbox/`` and gets ``out/``.

    A context manager: at its end the connection to the server is closed.
    """

    def __init__(self, log: AuditLogger, server: Server, folder: Path) -> None:
        self.log = log
        self.server = server
        self.client = log.wrap(client_for(server.host, CALL_SECONDS))
        self.inbox, self.out = folder / "inbox", folder / "out"
        self.session = f"run-{len(log.query({'actor': ACTOR, 'action': 'choose model'}, limit=None)) + 1}"

    def __enter__(self) -> Triage:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()  # type: ignore[no-untyped-call]  # theirs

    def run(self) -> Iterator[Result]:
        """One result per mail, as they are done."""
        from tallystick import audit_context

        with audit_context(actor=ACTOR, actor_type="agent", session_id=self.session, service="tally-demo"):
            self._record(
                AuditEventType.CONFIGURATION_CHANGE, "model", "choose model",
                details={"model": self.server.model, "model_digest": self.server.digest, "host": self.server.host},
            )  # fmt: skip
            for path in list_inbox(self.inbox):
                with audit_context(case=path.stem):
                    yield self._one(path)

    def _one(self, path: Path) -> Result:
        started = time.monotonic()
        subject, answer_id, error = "", None, ""
        try:
            mail = self._audited("read mail", f"inbox/{path.name}", read_mail, path)
            subject = mail.subject
            answer_id, error = self._ask(mail)
        except OSError as e:  # recorded by @audited
            error = f"the mail could not be read ({type(e).__name__})"
        if answer_id is None:
            self._file(path, HUMAN, None)
            return Result(path.stem, subject, "-", None, HUMAN, "no answer", error, time.monotonic() - started, "")
        decision, status, why = self._judge(answer_id)
        pile = decision.category if decision and status == "used" else HUMAN
        target = self._file(path, pile, answer_id)
        amount = decision.amount if decision else None
        if pile == "invoice" and amount is not None:
            self._post(path.stem, amount, answer_id)
        self._record_use(answer_id, status, why, decision, target)
        said = decision.category if decision else "-"
        return Result(path.stem, subject, said, amount, pile, status, why, time.monotonic() - started, answer_id)

    # -- the model ---------------------------------------------------------------------------------------------------

    def _ask(self, mail: Mail) -> tuple[str | None, str]:
        """Ask the model → the id of the answer on record, or ``None`` and what went wrong."""
        from httpx import HTTPError
        from ollama import ResponseError

        from tallystick import event_id

        messages, schema = build_messages(mail), answer_format(figures_in(mail.text))
        try:
            answer = self.client.chat(self.server.model, messages, format=schema, options=OPTIONS)
        except (ResponseError, HTTPError, OSError, ValueError) as e:
            return None, f"the model did not answer ({type(e).__name__})"
        [recorded] = self.log.entries({"parent_id": event_id(answer), "event_type": AuditEventType.AI_RESPONSE.value})
        return recorded.event_id, ""

    def _judge(self, answer_id: str) -> tuple[Decision | None, str, str]:
        """The recorded answer → decision, status and why."""
        answer = self.log.open_payload(answer_id, "answer").decode()
        request_id = self.log.get(answer_id)["parent_id"]
        asked = json.loads(self.log.open_payload(request_id, "prompt"))["format"]
        try:
            decision = parse_decision(answer, asked["properties"]["amount"]["enum"])
            check_decision(decision)
        except Rejected as e:
            return e.decision, e.status, str(e)
        return decision, "used", "parsed, consistent, within the limit"

    # -- what is done with it ----------------------------------------------------------------------------------------

    def _file(self, path: Path, pile: str, parent_id: str | None) -> str:
        """Copy the mail to its pile; from an earlier run it may lie on another one."""
        target = self.out / pile / path.name
        name = f"out/{pile}/{path.name}"
        self._audited("file mail", name, move_to_pile, path, target, parent_id=parent_id)
        return name

    def _post(self, case: str, amount: float, answer_id: str) -> None:
        is_new = post_invoice(self.out / "ledger.csv", case, amount, answer_id)
        self._record(
            AuditEventType.DATA_MODIFICATION, "out/ledger.csv", "post invoice", parent_id=answer_id,
            details={"amount": amount, "currency": "EUR", "new": is_new},
        )  # fmt: skip

    def _record_use(self, answer_id: str, status: str, why: str, decision: Decision | None, target: str) -> None:
        read = decision._asdict() if decision else {}
        # the model's own reason is content, and stays in the answer
        details: dict[str, Any] = {name: read[name] for name in ("category", "amount", "confidence") if name in read}
        self.log.outcome(answer_id, status, ref=target, reason=why, details=details)

    # -- recording ---------------------------------------------------------------------------------------------------

    def _record(self, event_type: Any, resource: str, action: str, **more: Any) -> str:
        """Who acts, for which case and in which run comes from the audit context."""
        return self.log.log(event_type=event_type, resource=resource, action=action, actor=ACTOR, actor_type="agent", **more)

    def _audited(self, operation: str, resource: str, function: Any, *args: Any, parent_id: str | None = None) -> Any:
        from tallystick import audited

        context = {"actor": ACTOR, "actor_type": "agent", "parent_id": parent_id}
        call = audited(operation=operation, resource=resource)(function)
        return call(*args, audit_logger=self.log, audit_context=context)


# -- question and answer ---------------------------------------------------------------------------------------------------


def build_messages(mail: Mail) -> list[dict[str, str]]:
    """What is sent, and recorded as it is sent. The question stands last: small models heed what they read last."""
    question = (
        f"Mail:\nSubject: {mail.subject}\n{mail.text[:PROMPT_CHARS_MAX]}\n\n"
        f'The subject is "{mail.subject}". Is this mail an invoice, an order, a complaint, an application for a job, '
        "a newsletter, spam or other? Give the category, the amount to pay (only for an invoice, else null), "
        "the confidence (high or low) and the reason as JSON."
    )
    return [{"role": "system", "content": "You sort the mail of a small company."}, {"role": "user", "content": question}]


def answer_format(figures: list[float]) -> dict[str, Any]:
    """JSON schema of an answer; an amount can only be one of the figures that stand in the mail."""
    properties = {
        "reason": {"type": "string", "maxLength": 60},
        "category": {"type": "string", "enum": list(CATEGORIES)},
        "amount": {"enum": [None, *figures]},
        "confidence": {"type": "string", "enum": ["low", "high"]},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def figures_in(text: str) -> list[float]:
    """Money in a text: ``1.248,90``, ``1,248.90`` and ``57.00``, not dates; at most 20."""
    found: dict[float, None] = {}
    for figure in _FIGURE.findall(text[:PROMPT_CHARS_MAX]):
        found[float(re.sub(r"[.,' ]", "", figure[:-3]) + "." + figure[-2:])] = None
    return list(found)[:20]


def parse_decision(answer: str, amounts: list[float | None]) -> Decision:
    """``Rejected`` unless the answer is JSON with the four fields that were asked for, each with an allowed value."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        raise Rejected("the answer is not JSON", "failed_validation") from None
    if not isinstance(found, dict) or set(found) != set(Decision._fields):
        raise Rejected("the answer has not the four fields that were asked for", "failed_validation")
    decision = Decision(**found)
    if decision.category not in CATEGORIES:
        raise Rejected("the category is not one of those that were asked for", "failed_validation")
    if isinstance(decision.amount, bool) or decision.amount not in amounts:
        raise Rejected("the amount does not stand in the mail", "failed_validation")
    if decision.confidence not in ("low", "high") or not isinstance(decision.reason, str):
        raise Rejected("confidence or reason is not what was asked for", "failed_validation")
    return decision._replace(amount=None if decision.amount is None else float(decision.amount))


def check_decision(decision: Decision) -> None:
    """``Rejected`` where the answer contradicts itself, is unsure, or needs a person's approval."""
    if decision.category == "invoice" and decision.amount is None:
        raise Rejected("an invoice without an amount", "failed_validation", decision)
    if decision.category != "invoice" and decision.amount is not None:
        raise Rejected(f"an amount to pay, yet called {decision.category}", "failed_validation", decision)
    if decision.confidence == "low":
        raise Rejected("the model is not confident", "rejected", decision)
    if decision.amount is not None and decision.amount > LIMIT_EUR:
        raise Rejected(f"over {LIMIT_EUR:,} EUR a person approves", "rejected", decision)


# -- files -----------------------------------------------------------------------------------------------------------------


def move_to_pile(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target``, and take it from any other pile on which an earlier run had put it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    for other in target.parent.parent.glob(f"*/{target.name}"):
        if other != target:
            other.unlink()


def post_invoice(ledger: Path, case: str, amount: float, answer_id: str) -> bool:
    """One line in the ledger; False if just this case and amount stand there already."""
    rows = []
    if ledger.exists():
        with ledger.open(newline="", encoding="utf-8") as file:
            rows = [tuple(row) for row in csv.reader(file)][1:]
    if any(row[:2] == (case, f"{amount:.2f}") for row in rows):
        return False
    with ledger.open("w" if not rows else "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not rows:
            writer.writerow(_LEDGER)
        writer.writerow((case, f"{amount:.2f}", answer_id))
    return True
