"""The automation decides from recorded answers, and what it cannot decide goes to a person, on record."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick import AuditLogger
from tallystick.demo.model import Server
from tallystick.demo.run import keep_content
from tallystick.demo.triage import ACTOR, CATEGORIES, Rejected, Triage, check_decision, parse_decision

from .conftest import Refused
from .test_mail import INBOX

INVOICE = "14-invoice-fenwick-repairs.txt"


def said(category="invoice", amount=294.5, confidence="high", reason="it asks us to pay"):
    return json.dumps({"reason": reason, "category": category, "amount": amount, "confidence": confidence})


@pytest.fixture
def triage(tmp_path, ollama):
    """One mail in the inbox, and the log that is written about it."""
    (tmp_path / "inbox").mkdir()
    shutil.copy(INBOX / INVOICE, tmp_path / "inbox")
    AuditLogger(tmp_path / "audit_log").close()
    keep_content(tmp_path / "audit_log")
    with AuditLogger(tmp_path / "audit_log") as log:
        with Triage(log, Server(ollama.host, "tiny:1b", "d" * 64, "a test"), tmp_path) as triage:
            yield triage


def run_again(triage):
    with Triage(triage.log, triage.server, triage.inbox.parent) as again:
        return only(again)


def only(triage):
    results = list(triage.run())
    assert len(results) == 1
    return results[0]


def events(triage, **filters):
    return triage.log.query({"correlation_id": INVOICE.partition(".")[0], **filters}, limit=None)


def test_an_answer_that_holds_is_acted_on_and_every_step_is_linked(triage, ollama):
    ollama.answer = lambda request: said()
    result = only(triage)
    assert (result.pile, result.status, result.amount) == ("invoice", "used", 294.5)
    assert (triage.out / "invoice" / INVOICE).read_bytes() == (INBOX / INVOICE).read_bytes()
    rows = events(triage)
    assert [row["event_type"] for row in rows] == [
        "data_access", "ai_request", "ai_response", "data_modification", "data_modification", "ai.outcome",
    ]  # fmt: skip
    request, answer = rows[1], rows[2]
    assert answer["parent_id"] == request["event_id"]
    assert all(row["parent_id"] == answer["event_id"] for row in rows[3:])
    assert {row["session_id"] for row in rows} == {"run-1"} and {row["actor"] for row in rows} == {ACTOR}
    assert rows[-1]["details"] == {
        "call": request["event_id"], "leaf_hash": answer["checksum"], "status": "used", "evidence": "explicit",
        "ref": f"out/invoice/{INVOICE}", "category": "invoice", "amount": 294.5, "confidence": "high",
    }  # fmt: skip
    assert answer["details"]["response_chars"] == len(said()) and answer["details"]["format_valid"] is True
    with (triage.out / "ledger.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == [INVOICE[:-4], "294.50", answer["event_id"]]
    assert triage.log.verify_integrity()["verified"]


def test_what_is_recorded_is_what_was_sent_and_answered(triage, ollama):
    ollama.answer = lambda request: said(reason="Grüße \u2028 und \x00")
    only(triage)
    request, answer = events(triage, event_type=["ai_request", "ai_response"])
    sent = ollama.asked[0]
    prompt = json.loads(triage.log.open_payload(request["event_id"], "prompt"))
    assert (prompt["messages"], prompt["format"]) == (sent["messages"], sent["format"])
    assert triage.log.open_payload(answer["event_id"], "answer").decode() == ollama.answer(sent)
    assert 294.5 in sent["format"]["properties"]["amount"]["enum"]


def test_no_content_of_mail_or_answer_is_in_an_entry(triage, ollama):
    ollama.answer = lambda request: said(reason="forklift hose 7742")
    only(triage)
    for row in triage.log.query({}, limit=None):
        row["details"].pop("args", None), row["details"].pop("result_preview", None)  # opened payloads
        assert "orklift" not in json.dumps(row) and "7742" not in json.dumps(row)


@pytest.mark.parametrize(
    ("answer", "status", "why"),
    [
        ("", "failed_validation", "not JSON"),
        ("Sure! Here is the JSON you asked for", "failed_validation", "not JSON"),
        (said()[:-3], "failed_validation", "not JSON"),
        ("[" * 100_000, "failed_validation", "not JSON"),
        ("[1]", "failed_validation", "four fields"),
        ('{"category": "invoice"}', "failed_validation", "four fields"),
        (said(category="bill"), "failed_validation", "category"),
        (said(category=["invoice"]), "failed_validation", "category"),
        (said(category={}), "failed_validation", "category"),
        (said(amount=9999.0), "failed_validation", "does not stand in the mail"),
        (said(amount=True), "failed_validation", "does not stand in the mail"),
        (said(amount="294.50"), "failed_validation", "does not stand in the mail"),
        (said(confidence="certain"), "failed_validation", "confidence"),
        (said(reason=None), "failed_validation", "reason"),
        (said(amount=None), "failed_validation", "without an amount"),
        (said(category="spam"), "failed_validation", "yet called spam"),
        (said(confidence="low"), "rejected", "not confident"),
    ],
)  # fmt: skip
def test_what_does_not_hold_goes_to_a_person_with_the_reason_on_record(triage, ollama, answer, status, why):
    ollama.answer = lambda request: answer
    result = only(triage)
    assert (result.pile, result.status) == ("human", status)
    [outcome] = [e for e in events(triage, event_type="ai.outcome") if e["details"]["evidence"] == "explicit"]
    assert why in outcome["reason"] and outcome["details"]["status"] == status and outcome["outcome"] != "success"
    assert (triage.out / "human" / INVOICE).exists() and not (triage.out / "ledger.csv").exists()


def test_over_the_limit_a_person_approves(triage, ollama):
    (triage.inbox / INVOICE).write_text("Invoice\nTotal EUR 9,800.00\n")
    ollama.answer = lambda request: said(amount=9800.0)
    result = only(triage)
    assert (result.pile, result.status) == ("human", "rejected")
    assert not (triage.out / "ledger.csv").exists()


def test_the_decision_is_the_recorded_answer_not_the_one_in_memory(triage, ollama, monkeypatch):
    ollama.answer = lambda request: said()
    honest = triage.log.open_payload

    def other(event_id, name):
        return said(category="other", amount=None).encode() if name == "answer" else honest(event_id, name)

    monkeypatch.setattr(triage.log, "open_payload", other)
    assert only(triage).pile == "other"


@pytest.mark.parametrize("status", [500, 404, 0])
def test_a_failing_model_costs_one_mail_and_is_recorded(triage, ollama, status):
    (triage.inbox / "99-next.txt").write_text("Hello\n")

    def answer(request):
        if "FENWICK" in request["messages"][-1]["content"]:
            raise Refused(status)
        return said(category="other", amount=None)

    ollama.answer = answer
    first, second = list(triage.run())
    assert (first.pile, first.status) == ("human", "no answer") and second.pile == "other"
    error = events(triage, event_type="ai_response")[0]
    assert error["details"]["end"] in ("http_error", "cut")
    assert error["outcome"] == "failure" and error["parent_id"] == events(triage, event_type="ai_request")[0]["event_id"]
    assert (triage.out / "human" / INVOICE).exists()


def test_an_answer_that_never_comes(triage, ollama, monkeypatch):
    import threading

    from tallystick.demo.model import client_for

    release = threading.Event()
    ollama.answer = lambda request: release.wait(20) and ""
    triage.client.close()
    triage.client = triage.log.wrap(client_for(ollama.host, 0.2))
    result = only(triage)
    release.set()
    assert result.status == "no answer" and "Timeout" in result.why


def test_a_second_run_goes_on_and_posts_nothing_twice(triage, ollama):
    ollama.answer = lambda request: said()
    only(triage)
    ollama.answer = lambda request: said(confidence="low")
    assert run_again(triage).pile == "human"
    assert [str(p.relative_to(triage.out)) for p in triage.out.rglob("*.txt")] == [f"human/{INVOICE}"]
    ollama.answer = lambda request: said()
    assert run_again(triage).pile == "invoice"
    assert len((triage.out / "ledger.csv").read_text().splitlines()) == 2
    assert {row["session_id"] for row in events(triage)} == {"run-1", "run-2", "run-3"}


@given(st.text(max_size=80) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner) | st.fixed_dictionaries(
        {"category": st.sampled_from(CATEGORIES) | inner, "amount": inner, "confidence": inner, "reason": inner}), max_leaves=8,
    ).map(json.dumps))  # fmt: skip
def test_any_answer_is_a_decision_or_rejected(answer):
    try:
        decision = parse_decision(answer, [None, 1.5])
        check_decision(decision)
    except Rejected:
        return
    assert decision.category in CATEGORIES and (decision.category == "invoice") == (decision.amount is not None)
