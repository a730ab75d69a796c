"""The chapter's three reports count all events of the period, and say what they rest on."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick import AuditEventType, AuditLogger, ComplianceReporter
from tallystick.core.times import format_time
from tallystick.memory import Memory
from tallystick.reports.compliance import failed_authentication


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as logger:
        events = [("data_access", "ana", "crm", "read customer", "success")] * 1500
        events += [("data_modification", "bo", "erp", "post invoice", "success")] * 3
        events += [("user_action", "eve", "door", "login", "denied"), ("auth.check", "eve", "door", "probe", "failure"),
                   ("user_action", "eve", "blog", "rename author", "failure"), ("security_event", "ids", "net", "scan", "success"),
                   ("configuration_change", "ana", "cfg", "set x", "success")]  # fmt: skip
        logger.log_many([
            {"event_type": t, "actor": a, "actor_type": "user", "resource": r, "action": x, "outcome": o,
             "timestamp": "2026-11-10T12:00:00Z"} for t, a, r, x, o in events
        ])  # fmt: skip
        logger.log(AuditEventType.DATA_ACCESS, "ana", "user", "crm", "read", timestamp="2026-12-01T00:00:00Z")
        yield logger


def test_full_counts_every_event_of_the_period(log):
    report = ComplianceReporter(log).generate_report("2026-11-01", "2026-11-30", "full")
    assert report["total_events"] == 1508
    assert report["by_event_type"]["data_access"] == 1500
    assert report["by_actor"] == {"ana": 1501, "bo": 3, "eve": 3, "ids": 1}
    assert report["by_outcome"] == {"denied": 1, "failure": 2, "success": 1505}
    assert report["integrity_check"]["verdict"] == "never verified"
    assert report["integrity_check"]["verified"] is False
    assert report["checkpoint"]["size"] == 1510


def test_a_full_verification_is_remembered_and_brought_up_to_date(log):
    reporter = ComplianceReporter(log)
    assert reporter.generate_report(report_type="full", verify=True)["integrity_check"]["checked_from"] == 0
    log.log("data_access", "ana", "user", "crm", "read")
    check = reporter.generate_report(report_type="full")["integrity_check"]
    assert (check["verified"], check["checked_from"], check["checked_until"]) == (True, 1510, 1511)
    assert check["last_full_verification"]["until"] == 1510


def test_security_and_data_access(log):
    security = ComplianceReporter(log).generate_report("2026-11-01", "2026-11-30", "security")
    assert [r["actor"] for r in security["failed_authentication_attempts"]] == ["eve", "eve"]
    assert [r["actor"] for r in security["configuration_changes"]] == ["ana"]
    assert [r["actor"] for r in security["security_events"]] == ["ids"]
    assert security["total_security_events"] == 4
    data = ComplianceReporter(log).generate_report("2026-11-01", "2026-11-30", "data_access")
    assert (data["total_data_events"], data["read_operations"], data["write_operations"]) == (1503, 1500, 3)
    assert (data["resources_accessed"], data["actors"]) == (["crm", "erp"], ["ana", "bo"])


def test_the_same_report_can_be_made_again_later(log):
    reporter = ComplianceReporter(log)
    first = reporter.generate_report("2026-11-01", "2026-12-31", "data_access")
    log.log("data_modification", "zoe", "user", "crm", "write", timestamp="2026-11-11T00:00:00Z")
    again = reporter.generate_report("2026-11-01", "2026-12-31", "data_access", at=first["checkpoint"]["size"])
    assert again == first
    assert "zoe" in reporter.generate_report("2026-11-01", "2026-12-31", "data_access")["actors"]


def test_bad_questions_are_named(log):
    with pytest.raises(ValueError, match="full, security, data_access"):
        ComplianceReporter(log).generate_report("2026-11-01", "2026-11-30", "everything")
    with pytest.raises(ValueError, match="before it begins"):
        ComplianceReporter(log).generate_report("2026-11-30", "2026-11-01", "full")
    with pytest.raises(ValueError, match="at=9"):
        ComplianceReporter(log).generate_report(at=99_999)


def test_author_is_not_authentication(log):
    entry = next(iter(log.entries({"action": "rename author"})))
    assert not failed_authentication(entry)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_derived_counts_are_what_the_lines_say(many, data):
    """Any period, any size, whatever the index holds of it."""
    log, moments = many
    times = st.none() | st.sampled_from(moments).map(lambda us: us + data.draw(st.sampled_from([-1, 0, 1])))
    start, end = data.draw(times), data.draw(times)
    size = data.draw(st.integers(1, log.entry_count()))
    found, derived, lines = log._handle.view.counts(start, end, size)
    again, nothing, everything = log._handle.view.counts(start, end, size, recount=True)
    assert (found.event_type, found.actor, found.outcome) == (again.event_type, again.actor, again.outcome)
    assert nothing == 0
    assert everything == size
    slow = [e for e in log.entries(before=size) if (start is None or e.timestamp_us >= start) and (end is None or e.timestamp_us <= end)]
    assert found.actor == dict(Counter(e.actor for e in slow))
    assert derived + lines <= size


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Blocks that are whole, begun, of several segments, with times that go back; a tail that is not indexed."""
    path = tmp_path_factory.mktemp("many") / "audit_log"
    log = AuditLogger(path, memory=Memory(path.parent / "state"))
    log._handle.writer._segment_bytes = 700_000
    chosen, moments = random.Random(5), []
    for part in (700, 1, 900, 30, 2500, 5):
        events = []
        for _ in range(part):
            moments.append(1_700_000_000_000_000 + len(moments) * 1_000_000 - chosen.choice((0, 0, 0, 400_000_000)))
            events.append({"event_type": chosen.choice(("data_access", "user_action", "approval.decision")), "actor": f"a{chosen.randrange(9)}",
                           "actor_type": "user", "resource": "crm", "action": "read", "timestamp": format_time(moments[-1]),
                           "outcome": chosen.choice(("success", "failure"))})
        log.log_many(events)
        log._handle.keeper.stop()
        if part != 5:
            log._handle.view.fill()
    assert len(log._handle.store.segments()) > 1
    assert log._handle.view.counts(None, None, log.entry_count())[2] >= 5
    yield log, moments
    assert log.verify_integrity()["exit_code"] == 0
    log.close()
