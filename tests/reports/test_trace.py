"""One case as a tree, and what needs an approval: whether it has one, by whom, and when."""

from __future__ import annotations

import json

import ollama
import pytest

from tallystick import AuditLogger, ComplianceReporter, audit_context, event_id
from tallystick.cli import run
from tallystick.core.errors import ConfigError
from tallystick.reports.approvals import Rule, approval_of, lacking
from tallystick.reports.trace import trace

from ..capture.server import ModelServer

RULES = """
[[approval]]
action = "post invoice"
where = "details.amount > 50 and outcome = success"
"""


@pytest.fixture(scope="module")
def server():
    with ModelServer() as one:
        yield one


@pytest.fixture
def log(tmp_path):
    AuditLogger(tmp_path / "log").close()
    with (tmp_path / "log" / "log.toml").open("a") as file:
        file.write(RULES)
    with AuditLogger(tmp_path / "log", service="bot") as one:
        yield one


def ask(log, server, model="ok"):
    with log.wrap(ollama.Client(server.url)) as client:
        return client.chat(model, [{"role": "user", "content": "how much?"}])


def post(log, parent, amount=120):
    return log.log("data_modification", "bot", "service", "ledger", "post invoice", parent_id=parent, details={"amount": amount})


def answer_of(log, call):
    [found] = log.entries({"parent_id": event_id(call), "event_type": "ai_response"})
    return found.event_id


def shape(node):
    return (node.entry.event_type, [shape(child) for child in node.children])


def test_a_case_is_a_tree_from_the_request_to_the_effect(log, server):
    with audit_context(case="INV-1", actor="bot", actor_type="agent"):
        call = ask(log, server)
        log.approval(call, "approved", by="anna", known_by="token")
        post(log, answer_of(log, call))
        log.outcome(call, "used", ref="erp:4711")
    for wanted in ("INV-1", event_id(call), answer_of(log, call), "erp:4711", log.entry(event_id(call)).index):
        found = trace(log, wanted, log.approval_rules)
        assert [shape(root) for root in found.roots] == [
            ("ai_request", [("ai_response", [("approval.decision", []), ("data_modification", []), ("ai.outcome", [])])])]  # fmt: skip
        assert (found.case, found.count, found.remarks()) == ("INV-1", 5, [])


def test_what_is_unknown_or_missing_is_named(log, server):
    lost = log.log("ai_request", "bot", "service", "m", "chat")
    call = ask(log, server)
    post(log, answer_of(log, call))
    post(log, "evt_" + "0" * 32, 10)
    remarks = {e.event_type: r for wanted in (lost, event_id(call)) for e, r in trace(log, wanted, log.approval_rules).remarks()}
    assert remarks == {
        "ai_request": "no end on record: the program may have died while the model answered",
        "ai_response": "nobody said what became of this answer",
        "data_modification": "needs an approval (post invoice: details.amount > 50 and outcome = success): missing",
    }
    elsewhere = list(log.entries({"action": "post invoice"}))[-1]
    [(_, remark)] = trace(log, elsewhere.event_id).remarks()
    assert remark.startswith("what it followed from is not on record here")
    log.outcome("evt_" + "1" * 32, "used", ref="erp:lost")
    assert [r for _, r in trace(log, "erp:lost").remarks()] == ["about a call that is not on record"]
    with pytest.raises(KeyError):
        trace(log, "no such case")


@pytest.mark.parametrize(("decide", "state"), [
    (lambda log, call, effect: log.approval(call, "approved", by="anna", known_by="token"), "later"),
    (lambda log, call, effect: log.approval(effect, "approved", by="anna", known_by="operating system"), "later"),
    (lambda log, call, effect: None, "missing"),
])  # fmt: skip
def test_an_approval_after_the_effect_is_said_as_that(decide, state, log, server):
    call = ask(log, server)
    effect = post(log, answer_of(log, call))
    decide(log, call, effect)
    assert approval_of(log, log.approval_rules, log.entry(effect)).state == state


def test_an_approval_of_the_answer_counts_for_what_names_the_call(log, server):
    call = ask(log, server)
    log.approval(call, "approved", by="anna", known_by="token")
    effect = post(log, event_id(call))
    assert approval_of(log, log.approval_rules, log.entry(effect)).state == "given"
    [root] = trace(log, effect, log.approval_rules).roots
    assert shape(root) == ("ai_request", [("ai_response", [("approval.decision", []), ("data_modification", [])])])


@pytest.mark.parametrize(("decisions", "state"), [
    ([("approved", "token")], "given"), ([("approved", "none")], "self-reported"), ([("rejected", "token")], "rejected"),
    ([("rejected", "token"), ("approved", "operating system")], "given"), ([("approved", "token"), ("rejected", "token")], "rejected"),
    ([("changed", "header")], "given"),
])  # fmt: skip
def test_the_last_decision_before_the_effect_counts(decisions, state, log, server):
    call = ask(log, server)
    for decision, known_by in decisions:
        log.approval(call, decision, by="anna", known_by=known_by)
    effect = post(log, answer_of(log, call))
    log.approval(call, "approved", by="late", known_by="token")
    found = approval_of(log, log.approval_rules, log.entry(effect))
    assert (found.state, found.by) == (state, "anna")
    assert [(e.event_id, a.state) for e, a in lacking(log, log.approval_rules)] == ([] if state == "given" else [(effect, state)])


def test_what_no_rule_is_about_needs_none(log, server):
    small = post(log, None, 50)
    assert approval_of(log, log.approval_rules, log.entry(small)) is None
    text = log.log("data_modification", "bot", "service", "ledger", "post invoice", details={"amount": "120"})
    assert approval_of(log, log.approval_rules, log.entry(text)) is None, "a text is no number"
    assert approval_of(log, [Rule.parse("post *")], log.entry(small)).state == "missing"


@pytest.mark.parametrize("where", ["amount", "details.amount >", "nothing = 1", "details.amount > 50 or 1 = 1"])
def test_a_rule_that_cannot_be_read_is_refused_with_its_place(where, tmp_path):
    AuditLogger(tmp_path / "log").close()
    with (tmp_path / "log" / "log.toml").open("a") as file:
        file.write(f'[[approval]]\naction = "x"\nwhere = "{where}"\n')
    with pytest.raises(ConfigError, match=r"log.toml: approval\[0\]"):
        AuditLogger(tmp_path / "log")


def test_query_status_and_report_say_what_lacks_an_approval(log, server, capsys):
    call = ask(log, server)
    effect = post(log, answer_of(log, call))
    post(log, None, 10)
    path = str(log.path)
    capsys.readouterr()
    assert run(["query", path]) == 0
    shown = capsys.readouterr().out
    assert "approval" in shown and shown.count("missing") == 1
    assert run(["query", path, "--unapproved", "--json"]) == 0
    assert [e["event_id"] for e in json.loads(capsys.readouterr().out)["entries"]] == [effect]
    assert run(["status", path, "--json"]) == 0
    assert any("needed an approval" in need["what"] for need in json.loads(capsys.readouterr().out)["needs_you"])
    report = ComplianceReporter(log).generate_report(report_type="ai_usage")
    assert report["all"]["approvals_missing"] == report["by_model"]["ok"]["approvals_missing"] == 1
    assert run(["trace", path, f"#{log.entry(effect).index}"]) == 0
    assert "needs an approval" in capsys.readouterr().out
    assert run(["trace", path, effect, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["trees"][0]["event"]["event_type"] == "ai_request"
    assert {m["event_id"] for m in document["missing"]} == {effect, answer_of(log, call)}
    assert run(["trace", path, "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_query_without_rules_says_where_they_belong(tmp_path, capsys):
    AuditLogger(tmp_path / "log").close()
    assert run(["query", str(tmp_path / "log"), "--unapproved"]) == 2
    assert "[[approval]]" in capsys.readouterr().err


def test_older_than_and_unresolved_list_what_nobody_spoke_about(log, server, capsys):
    used, unknown = ask(log, server), ask(log, server)
    log.outcome(used, "used")
    with pytest.raises(ollama.ResponseError):
        ask(log, server, "404")
    capsys.readouterr()
    assert run(["ai", str(log.path), "--unresolved", "--json"]) == 0
    assert [c["event_id"] for c in json.loads(capsys.readouterr().out)["calls"]] == [event_id(unknown)]
    assert run(["ai", str(log.path), "--unresolved", "--older-than", "1d", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] == []
    assert run(["ai", str(log.path), "--older-than", "1d", "--until", "1d"]) == 2
    capsys.readouterr()
    assert run(["ai", str(log.path)]) == 0
    assert "http error" in capsys.readouterr().out


def test_the_usage_report_counts_rates_ends_and_who_was_not_named(log, server):
    with audit_context(actor="ana"):
        log.outcome(ask(log, server), "used")
        log.outcome(ask(log, server), "rejected")
        ask(log, server)
        ask(log, server, "remote")
    with pytest.raises(ollama.ResponseError):
        ask(log, server, "404")
    said = ComplianceReporter(log).generate_report(report_type="ai_usage")["all"]
    assert said["rates"] == {"used": 0.25, "used_modified": 0.0, "rejected": 0.25, "unknown": 0.5}
    assert said["by_end"] == {"http_error": 1, "ok": 4}
    assert (said["unattributed"], said["left_the_machine"], said["by_capture"]) == (1, 1, {"wrap": 5})
    assert (said["input_tokens"], said["response_chars"]) == (28, 88)
