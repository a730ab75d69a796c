"""``@audited``, ``audit_context`` and the redactor."""

import asyncio
import collections.abc
import contextlib
import contextvars
import gc
import inspect
import os
import threading

import pytest

from tallystick import AuditError, AuditLogger, audit_context, audited
from tallystick.capture.context import current_context
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


# -- generators ------------------------------------------------------------------------------------------------------------


@audited(operation="read pages", resource="crm")
def pages(count, fail_at=None):
    """Pages of the customer list."""
    for n in range(count):
        if n == fail_at:
            raise ValueError("no such page")
        yield n
    return "all"


@audited(operation="read pages", resource="crm")
async def apages(count, fail_at=None):
    for n in range(count):
        await asyncio.sleep(0)
        if n == fail_at:
            raise ValueError("no such page")
        yield n


def the_entry(log):
    log.flush(60)
    [row] = log.query()
    return row


def steps_of(log, kind, how):
    """One run of a generator of three, ended in one of the ways."""
    run = (pages if kind == "sync" else apages)(3, fail_at=2 if how == "failed" else None, audit_logger=log, audit_context=ANA)

    async def there():
        if how in ("whole", "failed"):
            return [n async for n in run]
        await run.__anext__()
        await run.__anext__()
        if how == "closed":
            await run.aclose()
        return None

    def here():
        if how in ("whole", "failed"):
            return list(run)
        next(run), next(run)
        if how == "closed":
            run.close()
        return None

    return here() if kind == "sync" else asyncio.run(there())


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("how", "outcome", "end", "items"),
    [
        ("whole", "success", "ok", 3),
        ("failed", "failure", None, 2),
        ("closed", "partial", "closed", 2),
        ("dropped", "partial", "abandoned", 2),
    ],
)
def test_a_generator_is_one_entry_however_it_ends(log, kind, how, outcome, end, items):
    if how == "failed":
        with pytest.raises(ValueError, match="no such page"):
            steps_of(log, kind, how)
    else:
        assert steps_of(log, kind, how) == ([0, 1, 2] if how == "whole" else None)
    gc.collect()
    row = the_entry(log)
    details = row["details"]
    assert (row["event_type"], row["outcome"]) == ("system_error" if how == "failed" else "data_access", outcome)
    assert (details.get("end"), details["items"]) == (end, items)
    assert (row["actor"], row["session_id"], details["args"]["count"]) == ("ana", "s1", "3")
    assert details["latency_us"] >= 0
    if how == "failed":
        assert details["error"]["type"] == "ValueError"
    assert ("result" in details) == (how == "whole")
    assert details.get("result_preview") == (None if how != "whole" else "all" if kind == "sync" else "None")


@pytest.mark.parametrize("how", ["dropped", "closed", "thrown into"])
def test_what_was_never_iterated_did_not_run_and_is_not_recorded(log, how):
    ran = []

    @audited(operation="read", resource="crm")
    def function():
        ran.append(1)
        yield

    run = function(audit_logger=log, audit_context=ANA)
    if how == "closed":
        run.close()
        assert list(run) == []
    elif how == "thrown into":
        with pytest.raises(KeyError):
            run.throw(KeyError("x"))
    del run
    gc.collect()
    log.flush(60)
    assert not ran
    assert log.query() == []


@pytest.mark.parametrize("how", ["dropped", "closed"])
def test_an_asynchronous_one_that_was_never_iterated_is_not_recorded(log, how):
    async def main():
        run = apages(3, audit_logger=log)
        if how == "closed":
            await run.aclose()
            assert [n async for n in run] == []

    asyncio.run(main())
    log.flush(60)
    assert log.query() == []


def test_send_throw_and_the_returned_value_are_those_of_the_generator(log):
    @audited(operation="x", resource="y")
    def echo():
        said = []
        while True:
            try:
                said.append((yield len(said)))
            except KeyError:
                return said

    def outer():
        return (yield from echo(audit_logger=log, audit_context=ANA))

    run = outer()
    assert [next(run), run.send("a"), run.send("b")] == [0, 1, 2]
    with pytest.raises(StopIteration) as ended:
        run.throw(KeyError())
    assert ended.value.value == ["a", "b"]
    row = the_entry(log)
    assert (row["outcome"], row["details"]["items"], row["details"]["result"]) == ("success", 3, {"type": "list", "length": 2})


def test_asend_and_athrow_are_those_of_the_generator(log):
    @audited(operation="x", resource="y")
    async def echo():
        said = []
        while True:
            try:
                said.append((yield list(said)))
            except KeyError:
                return

    async def main():
        run = echo(audit_logger=log, audit_context=ANA)
        assert [await run.__anext__(), await run.asend("a")] == [[], ["a"]]
        with pytest.raises(StopAsyncIteration):
            await run.athrow(KeyError())
        await run.aclose()

    asyncio.run(main())
    assert the_entry(log)["details"]["items"] == 2


def test_what_it_is_to_those_who_ask(log):
    run = pages(1, audit_logger=log)
    assert isinstance(run, collections.abc.Generator)
    assert (pages.__name__, pages.__doc__) == ("pages", "Pages of the customer list.")
    assert inspect.isgeneratorfunction(inspect.unwrap(pages))
    assert inspect.isasyncgenfunction(inspect.unwrap(apages))
    assert list(inspect.signature(pages).parameters) == ["count", "fail_at"]
    assert not inspect.isgeneratorfunction(pages)  # as the docstring of audited says


def test_wrong_arguments_are_refused_at_the_call_as_before(log):
    with pytest.raises(TypeError, match="missing"):
        pages(audit_logger=log)
    with pytest.raises(TypeError, match="colour"):
        pages(1, audit_logger=log, audit_context={"colour": "red"})
    assert log.query() == []


def test_the_context_given_holds_inside_a_step_and_nowhere_else(log):
    seen = []

    @audited(operation="x", resource="y")
    def function():
        for _ in range(3):
            seen.append(dict(current_context()))
            yield

    run = function(audit_logger=log, audit_context={"actor": "ana", "case": "C-1"})
    for number in range(3):  # each step in a context of its own: a token that lived across a yield would be refused
        context = contextvars.Context()
        context.run(next, run)
        assert context.run(current_context) == {}, number
    assert list(run) == []
    assert seen == [{"actor": "ana", "correlation_id": "C-1"}] * 3


def test_a_context_that_the_body_sets_around_a_yield_is_there_in_the_next_step(log):
    seen = []

    @audited(operation="x", resource="y")
    def function():
        with audit_context(reason="inner"):
            for _ in range(3):
                seen.append(current_context().get("reason"))
                yield
        seen.append(current_context().get("reason"))

    for _ in function(audit_logger=log, audit_context={"actor": "ana"}):
        assert dict(current_context()) == {}
    assert dict(current_context()) == {}
    assert seen == ["inner", "inner", "inner", None]
    assert the_entry(log)["actor"] == "ana"


def test_the_context_given_holds_inside_an_awaited_step_and_nowhere_else(log):
    seen = []

    @audited(operation="x", resource="y")
    async def function():
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(current_context().get("actor"))
            yield

    async def main():
        run = function(audit_logger=log, audit_context={"actor": "ana"})
        for _ in range(3):
            await asyncio.create_task(run.asend(None))
            assert dict(current_context()) == {}
        await run.aclose()

    asyncio.run(main())
    assert seen == ["ana"] * 3
    assert the_entry(log)["actor"] == "ana"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_entry_has_the_context_of_the_call_not_that_of_the_end(log, kind):
    with audit_context(actor="ana", actor_type="user", case="C-1"):
        run = (pages if kind == "sync" else apages)(2, audit_logger=log)

    async def there():
        with audit_context(actor="bob", session_id="of bob", reason="of bob"):
            return [n async for n in run]

    if kind == "sync":
        with audit_context(actor="bob", session_id="of bob", reason="of bob"):
            list(run)
    else:
        asyncio.run(there())
    row = the_entry(log)
    assert (row["actor"], row["correlation_id"], row["session_id"], row.get("reason")) == ("ana", "C-1", None, None)


def test_a_body_that_fails_while_it_is_closed_failed(log):
    @audited(operation="x", resource="y")
    def function():
        try:
            yield 1
        finally:
            raise OSError("disk")

    run = function(audit_logger=log, audit_context=ANA)
    next(run)
    with pytest.raises(OSError, match="disk"):
        run.close()
    row = the_entry(log)
    assert (row["outcome"], row["details"]["error"]["type"]) == ("failure", "OSError")


def test_a_task_that_is_cancelled_in_a_step(log):
    started = asyncio.Event()

    @audited(operation="x", resource="y")
    async def function():
        yield 1
        started.set()
        await asyncio.Event().wait()

    async def consume():
        async for _ in function(audit_logger=log, audit_context=ANA):
            pass

    async def main():
        task = asyncio.create_task(consume())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    row = the_entry(log)
    assert (row["outcome"], row["details"]["error"]["type"], row["details"]["items"]) == ("failure", "CancelledError", 1)


def test_if_recording_a_generator_fails_its_value_is_in_the_error_and_its_own_error_wins(tmp_path):
    with AuditLogger(tmp_path / "gone") as gone:
        whole, failing = pages(1, audit_logger=gone), pages(1, fail_at=0, audit_logger=gone)
    with pytest.raises(AuditError) as caught:
        list(whole)
    assert caught.value.result == "all"
    with pytest.raises(ValueError) as own:
        list(failing)
    assert "could not be recorded" in own.value.__notes__[0]


def test_a_log_that_is_closed_while_a_generator_is_open_has_it_on_record(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        run = pages(3, audit_logger=log)
        next(run)
    assert list(run) == [1, 2]  # exactly once: its end is not recorded again
    with AuditLogger(tmp_path / "audit_log") as log:
        [row] = log.query()
        assert (row["outcome"], row["details"]["end"], row["details"]["items"]) == ("partial", "abandoned", 1)


def test_dropped_in_the_middle_of_the_log_it_is_recorded_by_another_thread(log):
    """A finaliser runs anywhere: here while this very thread holds the lock of the log's queue, which writing would wait for."""
    run = pages(3, audit_logger=log, audit_context=ANA)
    next(run)
    writer, held = log._writer(), []
    original = writer.append

    def append(events, **options):
        nonlocal run
        held.append(threading.current_thread())
        run = None
        assert len(held) == 1  # nothing was written in the finaliser
        writer.append = original
        return original(events, **options)

    writer.append = append
    log.log("user_action", "ana", "user", "crm", "click")
    log.flush(60)
    assert [row["action"] for row in log.query({"resource": "crm"})] == ["click", "read pages"]


def test_a_forked_child_does_not_record_what_its_parent_began(log):
    run = pages(2, audit_logger=log, audit_context=ANA)
    next(run)
    child = os.fork()
    if child == 0:
        try:
            run.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    list(run)
    assert the_entry(log)["details"]["items"] == 2


def test_a_log_of_somebodys_own(tmp_path):
    class Own:
        keeps_previews = False

        def __init__(self):
            self.events = []

        def log(self, **event):
            self.events.append(event)

    own = Own()
    list(pages(2, audit_logger=own))
    run = pages(2, audit_logger=own)
    next(run)
    del run
    gc.collect()
    assert [(e["outcome"], e["details"]["items"], e["payloads"]) for e in own.events] == [("success", 2, {}), ("partial", 1, {})]


def test_two_runs_at_once_are_two_entries(log):
    with contextlib.closing(pages(5, audit_logger=log, audit_context=ANA)) as one:
        assert [a + b for a, b in zip(one, pages(2, audit_logger=log, audit_context=ANA), strict=False)] == [0, 2]
    log.flush(60)
    assert sorted((row["outcome"], row["details"]["items"]) for row in log.query()) == [("partial", 3), ("success", 2)]


def test_many_arguments_are_counted_where_they_are_not_named(log):
    @audited(operation="x", resource="y")
    def function():
        pass

    with pytest.raises(TypeError):
        function(*range(70), audit_logger=log)
    details = log.query()[0]["details"]
    assert (len(details["arguments"]), details["arguments_left_off"]) == (64, 6)
