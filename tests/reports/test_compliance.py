"""The chapter's three reports count all events of the period, and say what they rest on."""

import pytest

from tallystick import AuditEventType, AuditLogger, ComplianceReporter
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
