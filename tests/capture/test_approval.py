"""Who decided: bound to the bytes of what was decided about and to what was shown; how he is known stands beside the claim."""

import pytest

from tallystick import AuditLogger
from tallystick.core.errors import EntryRefused


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as logger:
        yield logger


def answer(log):
    call = log.log("ai_request", "bot", "agent", "m", "ask model", correlation_id="INV-1")
    return call, log.log("ai_response", "bot", "agent", "m", "answer", parent_id=call, correlation_id="INV-1")


@pytest.mark.parametrize(("decision", "outcome"), [("approved", "success"), ("rejected", "denied"), ("changed", "partial")])
def test_a_decision_is_bound_to_the_bytes_and_to_what_was_shown(log, decision, outcome):
    call, answered = answer(log)
    made = log.approval(call, decision, by="anna", known_by="token", reason="checked", shown="Pay 40 EUR to ACME?")
    found = log.entry(made)
    assert found.details == {"of": call, "leaf_hash": log.entry(answered).checksum, "decision": decision, "known_by": "token"}
    assert (found.event_type, found.actor, found.actor_type, found.outcome) == ("approval.decision", "anna", "user", outcome)
    assert (found.parent_id, found.correlation_id, found.reason) == (answered, "INV-1", "checked")
    assert log.open_payload(made, "shown") == b"Pay 40 EUR to ACME?"
    assert b"ACME" not in log.stored(made).line
    assert log.verify_integrity()["exit_code"] == 0


def test_any_entry_can_be_decided_about(log):
    action = log.log("data_modification", "bot", "agent", "erp", "post invoice")
    assert log.entry(log.approval(action, "approved", by="anna", known_by="header")).parent_id == action


def test_what_nobody_else_vouches_for_is_self_reported(log):
    _, answered = answer(log)
    assert log.entry(log.approval(answered, "approved", by="anna")).details["self_reported"] is True


def test_refused_before_anything_is_written(log):
    _, answered = answer(log)
    size = log.entry_count()
    with pytest.raises(ValueError, match="no decision"):
        log.approval(answered, "fine", by="anna")
    with pytest.raises(ValueError, match="way to know"):
        log.approval(answered, "approved", by="anna", known_by="gut feeling")
    with pytest.raises(EntryRefused, match="not on record"):
        log.approval("evt_" + "0" * 32, "approved", by="anna")
    with pytest.raises(TypeError):
        log.approval(7, "approved", by="anna")
    with pytest.raises(EntryRefused, match="actor"):
        log.approval(answered, "approved", by="")
    assert log.entry_count() == size
