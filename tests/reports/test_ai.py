"""Calls to models as rows: what is recorded is counted, what is not is absent, and unknown is not "not used"."""

import pytest

from tallystick import AuditLogger, ComplianceReporter
from tallystick.reports.ai import calls, usage


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log", service="bot") as logger:
        yield logger


def request(log, day=1, model="llama3.2", **details):
    return log.log("ai_request", "bot", "agent", model, "ask model", timestamp=f"2026-11-{day:02}T12:00:00Z",
                   details={"model_requested": model, "prompt_chars": 40, **details})


def answer(log, call, day=1, model="llama3.2", outcome="success", **details):
    return log.log("ai_response", "bot", "agent", model, "answer", outcome, parent_id=call, timestamp=f"2026-11-{day:02}T12:00:05Z",
                   details={"model": model, "response_chars": 9, "latency_us": 5_000_000, **details})


def test_a_call_its_answer_and_what_became_of_it(log):
    call = request(log)
    answered = answer(log, call, input_tokens=12, output_tokens=0, end="ok")
    [row] = calls(log)
    assert row["used"] is None
    assert (row["event_id"], row["model"], row["prompt_chars"], row["response_chars"], row["latency_us"]) == (call, "llama3.2", 40, 9, 5_000_000)
    assert (row["outcome"], row["input_tokens"], row["output_tokens"], row["ttft_us"], row["end"]) == ("success", 12, 0, None, "ok")
    log.outcome(answered, "rejected")
    log.outcome(call, "used_modified", ref="erp:1")
    [row] = calls(log)
    assert (row["used"], row["ref"]) == ("used_modified", "erp:1")


def test_calls_without_an_end_and_ends_without_a_call(log):
    request(log)
    lonely = answer(log, "evt_" + "0" * 32)
    broken = request(log)
    log.log("system_error", "bot", "agent", "llama3.2", "ask model", "failure", parent_id=broken, details={"latency_us": 7})
    log.log("system_error", "bot", "agent", "disk", "something else", "failure")
    rows = calls(log)
    assert [(r["event_id"] == lonely, r["outcome"]) for r in rows] == [(False, None), (True, "success"), (False, "failure")]
    said = usage(rows)["all"]
    assert (said["calls"], said["without_end"], said["failed"]) == (3, 1, 1)
    assert said["answers"] == {"unknown": 3}


def test_the_period_is_that_of_the_calls_and_outcomes_count_whenever_they_came(log):
    inside, outside = request(log, day=10), request(log, day=20)
    answer(log, inside, day=10)
    answer(log, outside, day=20)
    log.outcome(inside, "used")  # today
    rows = calls(log, "2026-11-10", "2026-11-10")
    assert [(r["event_id"], r["used"]) for r in rows] == [(inside, "used")]
    size = log.entry_count()
    log.outcome(inside, "rejected")
    assert calls(log, "2026-11-10", "2026-11-10", before=size)[0]["used"] == "used"


def test_the_report_per_model(log):
    for n in range(20):
        call = request(log, model="a" if n % 2 else "b")
        answer(log, call, model="a" if n % 4 else "c", latency_us=(n + 1) * 1000, remote_host="ollama.com" if n == 3 else None)
        if n < 5:
            log.outcome(call, ("used", "used_modified", "rejected", "failed_validation", "expired")[n])
    report = ComplianceReporter(log).generate_report(None, None, "ai_usage")
    assert report["total_calls"] == 20
    assert report["all"]["answers"] == {"expired": 1, "failed_validation": 1, "rejected": 1, "unknown": 15, "used": 1, "used_modified": 1}
    assert report["all"]["latency_us"] == {"p50": 10_000, "p95": 19_000, "p99": 20_000}
    assert report["all"]["left_the_machine"] == 1
    assert report["all"]["input_tokens"] is None
    assert report["all"]["other_model_answered"] == 10
    assert {name: said["calls"] for name, said in report["by_model"].items()} == {"a": 15, "c": 5}
    assert usage([])["all"]["latency_us"] is None


@pytest.mark.parametrize("details", [{"prompt_chars": "many", "model": 7}, {"prompt_chars": -1}, {"prompt_chars": True}, {}])
def test_what_is_no_number_is_absent(log, details):
    log.log("ai_response", "bot", "agent", "m", "answer", details=details)
    [row] = calls(log)
    assert row["prompt_chars"] is None
    assert row["model"] == "m"
    log.log("ai.outcome", "eve", "user", "m", "use answer", details={"call": row["event_id"], "status": 7})
    assert calls(log)[0]["used"] is None
