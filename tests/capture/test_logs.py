"""``AuditHandler`` for ``logging`` and ``audit_processor`` for structlog."""

import contextlib
import contextvars
import decimal
import logging
import logging.handlers
import queue
import threading
import warnings

import pytest
import structlog

from tallystick import AuditLogger, audit_context
from tallystick.capture.logs import MESSAGE_CHARS_MAX, AuditHandler, audit_processor
from tallystick.core.errors import CallBlocked, StoreError
from tallystick.core.payload import Payload


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log", service="shop") as logger:
        yield logger


@pytest.fixture
def root():
    """The root logger, as it was before."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers[:], logger.level = handlers, level


@contextlib.contextmanager
def handled(name, *handlers):
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers[:] = handlers
    try:
        yield logger
    finally:
        logger.handlers.clear()
        logger.propagate = True


@pytest.fixture
def shop(log):
    with handled("shop.orders", AuditHandler(log)) as logger:
        yield logger


def entries(log):
    log.flush(60)
    return list(log.entries())


def message(log, entry):
    return log.open_payload(entry.event_id, "message").decode()


def test_only_what_asks_for_it_is_recorded(log, shop):
    shop.warning("not for the record")
    shop.warning("nor this", extra={"audit": False})
    shop.warning("nor this", extra={"audit": "of another library"})
    shop.info("order %d for %s", 7, "ana", extra={"audit": True})
    [entry] = entries(log)
    assert (entry.event_type, entry.resource, entry.action, entry.outcome) == (
        "logging.record",
        "logger:shop.orders",
        "log message",
        "success",
    )
    assert (entry.actor, entry.actor_type) == ("shop", "service")
    where = entry.details.pop("where")
    assert where.startswith("test_logs.test_only_what_asks_for_it_is_recorded:")
    assert entry.details == {"logger": "shop.orders", "level": "INFO", "message_chars": 15, "unattributed": True}
    assert message(log, entry) == "order 7 for ana"
    assert b"order 7" not in log.stored(entry.event_id).line


def test_a_dict_says_what_it_is(log, shop):
    said = {"event_type": "data_modification", "actor": "ana", "resource": "erp:4711", "action": "pay", "outcome": "partial",
            "details": {"amount": decimal.Decimal("7.10"), "level": "of the building", "parts": {1, }, "rate": float("nan")},
            "payloads": {"note": "rest in May", "scan": b"\x00"}, "subject": None}  # fmt: skip
    with audit_context(case="C-1", actor="somebody else"):
        shop.error("paid", extra={"audit": said})
    [entry] = entries(log)
    assert (entry.event_type, entry.actor, entry.actor_type, entry.resource) == ("data_modification", "ana", "user", "erp:4711")
    assert (entry.action, entry.outcome, entry.correlation_id) == ("pay", "partial", "C-1")
    assert {k: entry.details[k] for k in said["details"]} == {
        "amount": "7.10",
        "level": "of the building",
        "parts": [1],
        "rate": "nan",
    }
    assert log.open_payload(entry.event_id, "note") == b"rest in May"
    assert log.open_payload(entry.event_id, "scan") == b"\x00"
    assert "unattributed" not in entry.details


def test_everything_is_recorded_from_a_level_upwards_where_that_is_wanted(log):
    with handled("shop", AuditHandler(log, "WARNING", everything=True)) as shop:
        shop.info("quiet")
        shop.warning("careful")
        try:
            raise OSError("disk")
        except OSError:
            shop.exception("broken")
    found = [(e.event_type, e.outcome, e.details["level"], e.details.get("error")) for e in entries(log)]
    assert found == [
        ("logging.record", "success", "WARNING", None),
        ("system_error", "failure", "ERROR", {"type": "OSError", "length": 4}),
    ]


def test_secrets_are_masked_and_long_messages_are_cut(log, shop):
    shop.info("password=hunter2-long " + "x" * MESSAGE_CHARS_MAX, extra={"audit": True})
    [entry] = entries(log)
    text = message(log, entry)
    assert "hunter2" not in text
    assert len(text) == MESSAGE_CHARS_MAX
    assert (entry.details["message_chars"], entry.details["cut_short"]) == (MESSAGE_CHARS_MAX + 22, ["message"])


def test_the_moment_is_that_of_the_call_and_the_context_too(log):
    waiting = queue.SimpleQueue()
    with handled("shop", logging.handlers.QueueHandler(waiting)) as shop:
        shop.info("first", extra={"audit": {"actor": "ana"}})
    log.log("user_action", "bob", "user", "x", "second")
    contextvars.Context().run(AuditHandler(log).handle, waiting.get())
    first, second = sorted(entries(log), key=lambda e: e.timestamp)
    assert (first.actor, second.action) == ("ana", "second")
    assert first.index > second.index


def test_arguments_that_do_not_fit_and_texts_that_fail_do_not_lose_an_event(log):
    class Broken:
        def __str__(self):
            raise RuntimeError("no")

    handler = AuditHandler(log)
    for said, args, audit in (("%d items", ("many",), True), (Broken(), (), {"details": {"it": Broken()}})):
        record = logging.LogRecord("shop", logging.INFO, __file__, 1, said, args, None)  # pytest would fail on logging it
        record.audit = audit
        handler.handle(record)
    first, second = entries(log)
    assert message(log, first) == "%d items"
    assert message(log, second) == second.details["it"] == "<Broken: its text failed with RuntimeError>"


def test_what_the_log_itself_says_is_never_recorded(log, root):
    """Also not where it says so while a thread holds a lock for which another one waits inside this handler."""
    root.addHandler(AuditHandler(log, everything=True))
    logging.getLogger("tallystick").error("own")
    logging.getLogger("tallystick.capture").error("own")
    writer = log._writer()
    original = writer.append

    def append(events, **options):
        logging.getLogger("sqlite").warning("while it is written")
        logging.getLogger("tallystick").warning("while it is written")
        return original(events, **options)

    writer.append = append
    logging.getLogger("shop").info("mine")
    logging.getLogger("tallysticks").info("mine too")
    assert [entry.resource for entry in entries(log)] == ["logger:shop", "logger:tallysticks"]


def test_a_signal_handler_that_comes_while_the_log_is_written_has_its_say_later(log, shop):
    writer = log._writer()
    original = writer.append
    threads = []

    def append(events, **options):
        threads.append(threading.current_thread())
        if len(threads) == 1:
            shop.info("from the signal handler", extra={"audit": True})
        return original(events, **options)

    writer.append = append
    log.log("user_action", "ana", "user", "crm", "click")
    assert [entry.action for entry in entries(log)] == ["click", "log message"]
    assert threads[0] is threading.current_thread() is not threads[1]


def test_no_lock_is_held_while_it_waits_for_the_log(log):
    """Two threads that log are written together, and neither waits for the other."""
    handler = AuditHandler(log)
    inside = threading.Barrier(2, timeout=60)
    original = log.recorder.put

    def put(event, event_id):
        inside.wait()  # both are here at once, or this breaks
        original(event, event_id)

    log.recorder.put = put
    with handled("shop", handler) as shop:
        threads = [threading.Thread(target=shop.info, args=("x",), kwargs={"extra": {"audit": True}}) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert len(entries(log)) == 2


def failing(tmp_path, failure):
    """A log that cannot be written until ``mend()``."""
    with AuditLogger(tmp_path / "audit_log") as log:
        settings = log.path / "log.toml"
    settings.write_text(settings.read_text().replace('failure = "spool"', f'failure = "{failure}"'))
    log = AuditLogger(tmp_path / "audit_log")
    original = log.recorder.journal.put

    def refuse(keywords, event_id):
        raise StoreError("no")

    log.recorder.journal.put = refuse
    log.recorder.journal.again = refuse

    def mend():
        log.recorder.journal.put = original
        del log.recorder.journal.again

    return log, mend


@pytest.mark.parametrize("way", ["logging", "structlog"])
def test_what_cannot_be_written_waits_in_the_spool(tmp_path, way):
    log, mend = failing(tmp_path, "spool")
    said = {"audit": {"details": {"at": decimal.Decimal("1.5"), "raw": {1: (2, 3)}}, "payloads": {"note": "hello"}}}
    with log, handled("shop", AuditHandler(log)) as shop:
        for n in range(3):
            if way == "logging":
                shop.info("message %d", n, extra=said)
            else:
                audit_processor(log)(None, "info", {"event": f"message {n}", **said})
        mend()
        shop.info("again", extra={"audit": True})
        found = entries(log)
        assert [message(log, entry) for entry in found] == ["message 0", "message 1", "message 2", "again"]
        assert (found[0].details["at"], found[0].details["raw"]) == ("1.5", {"1": [2, 3]})
        assert log.open_payload(found[0].event_id, "note") == b"hello"


@pytest.mark.parametrize(("failure", "raises"), [("warn", False), ("block", True)])
def test_only_block_raises_into_the_program(tmp_path, failure, raises):
    log, mend = failing(tmp_path, failure)
    process = audit_processor(log)
    with log, handled("shop", AuditHandler(log)) as shop:
        for say in (
            lambda: shop.info("lost", extra={"audit": True}),
            lambda: process(None, "info", {"event": "lost", "audit": True}),
        ):
            with pytest.raises(CallBlocked) if raises else contextlib.nullcontext():
                say()
        mend()
        shop.info("again", extra={"audit": True})
        [gap] = log.entries({"event_type": "log.gap"})
        assert gap.details["count"] == 2
        assert [message(log, entry) for entry in log.entries()] == ["again"]


@pytest.mark.parametrize(
    "said", [{"colour": "red"}, {"actor": 7}, {"timestamp": "no time"}, {"details": [1]}, {"payloads": {"BAD NAME": ""}}, {3: 4}]
)
def test_an_event_that_is_refused_is_counted_and_not_raised(log, shop, said):
    shop.info("x", extra={"audit": said})
    shop.info("y", extra={"audit": True})
    assert [gap.details["count"] for gap in log.entries({"event_type": "log.gap"})] == [1]
    assert [message(log, entry) for entry in entries(log)] == ["y"]


def test_an_error_of_ours_is_said_as_by_every_handler(log, shop, monkeypatch, capsys):
    monkeypatch.setattr(log.recorder, "put", lambda *_: 1 / 0)
    shop.info("x", extra={"audit": True})
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_filters_decide_as_for_every_handler(log):
    handler = AuditHandler(log, everything=True)
    handler.addFilter(lambda record: record.getMessage() != "no")
    with handled("shop", handler) as shop:
        shop.info("no")
        shop.info("yes")
    assert [message(log, entry) for entry in entries(log)] == ["yes"]


def test_a_retry_under_the_same_id_is_one_entry(log, shop):
    for _ in range(2):
        shop.info(
            "paid", extra={"audit": {"event_id": "pay-1", "action": "pay", "timestamp": "2026-11-24T08:00:00Z", "payloads": None}}
        )
    assert [entry.event_id for entry in entries(log)] == ["pay-1"]


# -- structlog -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bound(log):
    out = []

    def keep(logger, method, event):
        out.append((method, dict(event)))
        raise structlog.DropEvent

    logger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[structlog.contextvars.merge_contextvars, audit_processor(log), keep],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )  # fmt: skip
    return logger.bind(logger="shop.orders"), out


def test_structlog_passes_every_event_on_without_the_word(log, bound):
    logger, out = bound
    logger.info("not for the record", user="ana")
    logger.info("order", user="ana", password="hunter2-long", audit=True)
    logger.warning("paid", audit={"actor": "ana", "event_type": "data_modification", "details": {"amount": "7.10"}})
    logger.debug("too quiet", audit=True)
    logger.info("no", audit=False)
    name = {"logger": "shop.orders"}
    assert out == [
        ("info", {"event": "not for the record", "user": "ana", **name}),
        ("info", {"event": "order", "user": "ana", "password": "hunter2-long", **name}),
        ("warning", {"event": "paid", **name}), ("info", {"event": "no", **name}),
    ]  # fmt: skip
    order, paid = entries(log)
    assert (order.event_type, order.resource, order.actor) == ("logging.record", "logger:shop.orders", "shop")
    assert {"name": "user", "type": "str", "length": 3} in order.details["fields"]
    assert message(log, order) == "order"
    assert log.open_payload(order.event_id, "fields").decode() == "{'logger': 'shop.orders', 'user': 'ana', 'password': [masked]}"
    assert (paid.event_type, paid.actor, paid.details["amount"], paid.details["level"]) == (
        "data_modification",
        "ana",
        "7.10",
        "WARNING",
    )


def test_structlog_with_an_exception_and_a_place(log):
    place = structlog.processors.CallsiteParameterAdder(
        {
            structlog.processors.CallsiteParameter.MODULE,
            structlog.processors.CallsiteParameter.FUNC_NAME,
            structlog.processors.CallsiteParameter.LINENO,
        }
    )
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[place, audit_processor(log), structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
    )
    try:
        raise OSError("disk")
    except OSError:
        logger.exception("broken", audit=True)
    [entry] = entries(log)
    assert (entry.event_type, entry.outcome, entry.details["level"]) == ("system_error", "failure", "ERROR")
    assert entry.details["error"] == {"type": "OSError", "length": 4}
    assert entry.details["where"].startswith("test_logs.test_structlog_with_an_exception_and_a_place:")
    assert entry.resource == "logger:structlog"


def test_an_error_of_ours_does_not_reach_the_program_of_structlog(log, bound, monkeypatch, caplog):
    logger, out = bound
    monkeypatch.setattr(log.recorder, "put", lambda *_: 1 / 0)
    logger.info("x", audit=True)
    assert out == [("info", {"event": "x", "logger": "shop.orders"})]
    assert "could not be recorded" in caplog.text


def test_nothing_is_kept_of_texts_where_the_log_keeps_none(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        settings = log.path / "log.toml"
    settings.write_text(settings.read_text().replace('keep = "previews"', 'keep = "none"'))
    with AuditLogger(tmp_path / "audit_log") as log, handled("shop", AuditHandler(log)) as shop:
        shop.info("x", extra={"audit": True})
        shop.info("y", extra={"audit": {"payloads": {"mine": Payload(b"z")}}})
        audit_processor(log)(None, "info", {"event": "x", "more": 1, "audit": True})
        assert [set(entry.payloads) for entry in entries(log)] == [set(), {"mine"}, set()]


def test_warnings_that_are_captured_are_records_too(log, root):
    root.addHandler(AuditHandler(log, everything=True))
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
    assert [entry.resource for entry in entries(log)] == ["logger:py.warnings"]
