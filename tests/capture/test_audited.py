"""``@audited``, ``audit_context`` and the redactor."""

import asyncio

import pytest

from tallystick import AuditError, AuditLogger, audit_context, audited
from tallystick.capture.redact import MASK, preview

ANA = {"actor": "ana", "actor_type": "user", "session_id": "s1", "ip_address": "10.0.0.7"}


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as logger:
        yield logger


def test_a_call_is_one_entry_and_its_values_are_payloads_not_content_of_the_entry(log):
    @audited(operation="Process AI request", resource="ollama_api")
    def call_model(model_name, prompt):
        return "the answer: " + prompt[::-1]

    assert call_model("llama3.2", "secret plan", audit_logger=log, audit_context=ANA) == "the answer: nalp terces"
    [row] = log.query({"actor": "ana"})
    assert (row["event_type"], row["outcome"], row["session_id"]) == ("data_modification", "success", "s1")
    assert row["details"]["args"] == {"model_name": "llama3.2", "prompt": "secret plan"}
    assert row["details"]["result_preview"] == "the answer: nalp terces"
    stored = log.stored(row["event_id"]).line
    assert b"secret plan" not in stored
    assert b"nalp" not in stored
    for path in log.path.rglob("*"):
        if path.is_file():
            assert b"secret plan" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("read customer", "data_access"), ("Count: rows", "data_access"), ("readjust", "data_modification"), ("", "data_modification")],
)
def test_the_first_word_tells_reading_from_changing(log, operation, kind):
    @audited(operation=operation or "x", resource="crm")
    def function():
        return 1

    function(audit_logger=log, audit_context=ANA)
    assert log.query()[0]["event_type"] == kind


def test_an_exception_is_recorded_and_raised_unchanged(log):
    error = ValueError("no such customer")

    @audited(operation="read customer", resource="crm")
    def fails():
        raise error

    with pytest.raises(ValueError) as caught:
        fails(audit_logger=log, audit_context=ANA)
    assert caught.value is error
    [row] = log.query()
    assert (row["event_type"], row["outcome"]) == ("system_error", "failure")
    assert row["details"]["error"]["type"] == "ValueError"
    assert b"no such customer" not in log.stored(row["event_id"]).line


def test_if_recording_fails_the_result_is_in_the_error_and_the_functions_own_error_wins(log):
    @audited(operation="send mail", resource="smtp")
    def send(fail):
        if fail:
            raise KeyError("x")
        return 42

    log.close()
    with pytest.raises(AuditError) as caught:
        send(False, audit_logger=log, audit_context=ANA)
    assert caught.value.result == 42
    with pytest.raises(KeyError) as own:
        send(True, audit_logger=log, audit_context=ANA)
    assert "could not be recorded" in own.value.__notes__[0]


def test_coroutines_and_context(log):
    @audited(operation="fetch page", resource="web")
    async def fetch(n):
        await asyncio.sleep(0)
        return n

    async def main():
        with audit_context(actor="bot", actor_type="agent", case="C-1", on_behalf_of="sales"):
            return await asyncio.gather(*(fetch(n, audit_logger=log) for n in range(25)))

    assert asyncio.run(main()) == list(range(25))
    rows = log.query({"actor": "bot"})
    assert len(rows) == 25
    assert {(r["correlation_id"], r["on_behalf_of"], r["actor_type"]) for r in rows} == {("C-1", "sales", "agent")}


def test_unknown_context_is_refused_before_the_function_runs(log):
    ran = []

    @audited(operation="x", resource="y")
    def function():
        ran.append(1)

    with pytest.raises(TypeError, match="colour"):
        function(audit_logger=log, audit_context={"colour": "red"})
    assert not ran


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", "hunter2-long"), ("api_key", "hunter2-long"), ("dbPassword", "hunter2-long"), ("X-Auth-Token", "hunter2-long"),
        ("", {"a": [{"cookie": "hunter2-long"}]}), ("", "Authorization: Bearer hunter2-long"), ("", "postgres://u:hunter2-long@db/x"),
        ("", {"headers": "token=hunter2-long; a=b"}), ("", "-----BEGIN PRIVATE KEY-----\nhunter2-long"),
        ("", "x" * 490 + " password: hunter2-long"),
    ],
)  # fmt: skip
def test_secrets_are_masked(name, value):
    shown = preview(value, name=name)
    assert "hunter2" not in shown
    assert len(shown) <= 500
    assert MASK in shown or shown.endswith("…")


def test_ordinary_values_stay():
    assert preview({"author": "Ana", "amount": 12}) == "{'author': 'Ana', 'amount': 12}"
    assert preview("monkey business", name="title") == "monkey business"
