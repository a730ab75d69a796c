"""What became of an answer: bound to the finishing entry's bytes; three-valued; kept even where the call is unknown."""

import warnings

import pytest

from tallystick import AuditLogger, audit_context
from tallystick.capture.outcome import STATUSES, event_id


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log", service="triage") as logger:
        yield logger


def call(log, **more):
    request = log.log("ai_request", "bot", "agent", "llama3.2", "ask model", details={"model_requested": "llama3.2"}, **more)
    answer = log.log("ai_response", "bot", "agent", "llama3.2", "answer", parent_id=request, details={"model": "llama3.2"}, **more)
    return request, answer


def outcomes(log):
    return list(log.entries({"event_type": "ai.outcome"}))


@pytest.mark.parametrize("status", STATUSES)
def test_an_outcome_is_bound_to_the_call_and_to_the_bytes_of_its_answer(log, status):
    request, answer = call(log, correlation_id="INV-1", session_id="s-1")
    for named in (request, answer):
        found = log.entry(log.outcome(named, status, ref="erp:4711", by="anna", kind="human", reason="checked"))
        assert found.details == {"call": request, "status": status, "evidence": "explicit", "ref": "erp:4711",
                                 "leaf_hash": log.entry(answer).checksum}
        assert (found.parent_id, found.resource, found.actor, found.actor_type) == (answer, "erp:4711", "anna", "user")
        assert (found.correlation_id, found.session_id, found.reason) == ("INV-1", "s-1", "checked")
    assert log.verify_integrity()["exit_code"] == 0


def test_who_says_so(log):
    request, _ = call(log)
    assert log.entry(log.outcome(request, "used")).actor == "triage"
    with audit_context(actor="ana", actor_type="user"):
        assert log.entry(log.outcome(request, "used")).actor == "ana"
    assert log.entry(log.outcome(request, "used", by="judge", kind="model")).actor_type == "agent"


def test_a_call_without_an_answer_and_one_that_nobody_knows(log):
    request = log.log("ai_request", "bot", "agent", "m", "ask model")
    assert log.entry(log.outcome(request, "expired")).details["leaf_hash"] == log.entry(request).checksum
    orphan = log.entry(log.outcome("evt_" + "0" * 32, "used", ref="mail:7"))
    assert orphan.details["orphan"] is True
    assert "leaf_hash" not in orphan.details
    assert orphan.resource == "mail:7"


@pytest.mark.parametrize(("status", "kind"), [("fine", "code"), ("used", "robot"), ("", "code")])
def test_unknown_words_are_refused_before_anything_is_written(log, status, kind):
    request, _ = call(log)
    with pytest.raises(ValueError, match="known are"):
        log.outcome(request, status, kind=kind)
    assert outcomes(log) == []


def test_what_bears_an_id(log):
    handle = log.submit("ai_request", "bot", "agent", "m", "ask model")
    handle.wait()
    assert event_id(handle) == handle.event_id
    assert log.entry(log.outcome(handle, "used")).parent_id == handle.event_id
    for thing in (7, None, object(), ""):
        with pytest.raises(TypeError, match="event id"):
            log.outcome(thing, "used")


class Answer:
    def __init__(self, event_id):
        self.event_id, self.text = event_id, "42"


def test_a_block_that_ends_well_with_a_ref_is_a_use(log):
    request, answer = call(log)
    with log.use(Answer(request), ref="erp:1") as r:
        assert r.text == "42"
    with log.use(answer) as r:
        r.used(ref="erp:2", modified=True, reason="rounded")
    with log.use(answer) as r:
        r.rejected("wrong customer")
    with log.use(answer) as r:
        r.failed_validation("no JSON")
    assert [(e.details["status"], e.details.get("ref"), e.reason) for e in outcomes(log)] == [
        ("used", "erp:1", None), ("used_modified", "erp:2", "rounded"), ("rejected", None, "wrong customer"),
        ("failed_validation", None, "no JSON"),
    ]


def test_a_block_that_raises_failed_downstream_and_the_error_is_its_own(log):
    request, _ = call(log)
    error = KeyError("secret customer")
    with pytest.raises(KeyError) as raised, log.use(request, ref="erp:1") as r:
        r.used(ref="erp:2")
        raise error
    assert raised.value is error
    [found] = outcomes(log)
    assert found.details["status"] == "failed_downstream"
    assert found.details["error"] == {"type": "KeyError", "length": 17}
    assert "secret" not in str(found)


def test_a_block_that_says_nothing_leaves_it_unknown_and_names_its_line(log):
    request, _ = call(log)
    with pytest.warns(UserWarning, match=r"test_outcome\.py:\d+: nothing was said"):
        with log.use(request):
            pass
    assert outcomes(log) == []


def test_a_log_that_cannot_be_written_does_not_hide_the_error_of_the_block(log, monkeypatch):
    from tallystick.core.errors import StoreError

    request, _ = call(log)
    monkeypatch.setattr(log, "log", lambda **_: (_ for _ in ()).throw(StoreError("full")))
    with pytest.raises(ZeroDivisionError) as raised, log.use(request):
        1 / 0
    assert "could not be recorded: full" in raised.value.__notes__[0]
    with pytest.raises(StoreError), warnings.catch_warnings(), log.use(request, ref="x"):
        warnings.simplefilter("error")
