"""``@log.tool``: runs of tools that a model may ask for, linked to the call that asked."""

import asyncio
import inspect

import ollama
import pytest
from ollama._utils import convert_function_to_tool

from tallystick import AuditError, AuditLogger, audit_context
from tallystick.capture.tools import build_tool

from .server import ARGUMENTS, ModelServer


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log", service="triage") as logger:
        yield logger


@pytest.fixture
def server():
    with ModelServer() as running:
        yield running


@pytest.fixture
def client(log, server):
    with log.wrap(ollama.Client(server.url)) as wrapped:
        yield wrapped


def forecast(city: str, days: int = 1) -> str:
    """The weather to come.

    Args:
        city: where
        days: how many days ahead
    """
    if days > 14:
        raise ValueError(f"nobody knows {city} in {days} days")
    return f"{city}: sun"


async def aforecast(city: str, days: int = 1) -> str:
    """The weather to come."""
    await asyncio.sleep(0)
    return forecast(city, days)


def run(function, *args, **keywords):
    return asyncio.run(function(*args, **keywords)) if inspect.iscoroutinefunction(function) else function(*args, **keywords)


def tools(log):
    log.flush(60)
    return list(log.entries({"event_type": "ai.tool"}))


@pytest.mark.parametrize("function", [forecast, aforecast])
def test_a_run_is_one_entry_without_values(log, function):
    tool = build_tool(log, function, name="weather")
    with audit_context(actor="ana", case="C-1", session_id="s-1"):
        assert run(tool, "Köln", days=2) == "Köln: sun"
    [entry] = tools(log)
    assert (entry.action, entry.resource, entry.outcome, entry.parent_id) == ("weather", "tool:weather", "success", None)
    assert (entry.actor, entry.actor_type, entry.correlation_id, entry.session_id) == ("ana", "user", "C-1", "s-1")
    assert entry.details.pop("latency_us") >= 0
    assert entry.details == {
        "tool": "weather", "arguments": [{"name": "city", "type": "str", "length": 4}, {"name": "days", "type": "int"}],
        "result": {"type": "str", "length": 9},
    }  # fmt: skip
    assert log.open_payload(entry.event_id, "arg.0").decode() == "Köln"
    assert log.open_payload(entry.event_id, "result").decode() == "Köln: sun"
    assert "Köln".encode() not in log.stored(entry.event_id).line


@pytest.mark.parametrize("function", [forecast, aforecast])
def test_a_run_that_fails_is_recorded_and_raises_what_it_raised(log, function):
    tool = build_tool(log)(function)
    with pytest.raises(ValueError, match="nobody knows"):
        run(tool, "Köln", 99)
    [entry] = tools(log)
    assert (entry.outcome, entry.details["error"]) == ("failure", {"type": "ValueError", "length": 28})
    assert (entry.actor, entry.actor_type, entry.details["unattributed"]) == ("triage", "service", True)


def test_a_cancelled_run_is_on_record(log):
    async def main():
        running = asyncio.Event()

        @build_tool(log)
        async def wait():
            running.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [entry.details["error"]["type"] for entry in tools(log)] == ["CancelledError"]


def test_no_values_are_kept_where_the_log_keeps_none(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        settings = log.path / "log.toml"
    settings.write_text(settings.read_text().replace('keep = "previews"', 'keep = "none"'))
    with AuditLogger(tmp_path / "audit_log") as log:
        build_tool(log, forecast)("Köln")
        assert [dict(entry.payloads) for entry in tools(log)] == [{}]


@pytest.mark.parametrize("function", [forecast, aforecast])
def test_if_recording_fails_the_result_is_in_the_error_and_the_tools_own_error_wins(log, function):
    tool = build_tool(log, function)
    log.close()
    with pytest.raises(AuditError) as caught:
        run(tool, "Köln")
    assert caught.value.result == "Köln: sun"
    with pytest.raises(ValueError, match="nobody") as own:
        run(tool, "Köln", 99)
    assert "could not be recorded" in own.value.__notes__[0]


def test_a_model_is_told_the_same_of_the_decorated_function(log):
    assert convert_function_to_tool(build_tool(log, forecast)) == convert_function_to_tool(forecast)
    named = convert_function_to_tool(build_tool(log, forecast, name="weather"))
    assert named.function.name == "weather"
    assert named.function.parameters.properties["city"].description == "where"


def test_a_model_cannot_say_who_acts(log):
    tool = build_tool(log, forecast)
    with pytest.raises(TypeError, match="audit_context"):
        tool("Köln", audit_context={"actor": "the boss"})
    assert [entry.actor for entry in tools(log)] == ["triage"]


def test_what_is_no_tool_is_refused_when_it_is_decorated(log):
    with pytest.raises(TypeError, match="generator"):
        build_tool(log, lambda: (yield))
    with pytest.raises(TypeError, match="name="):
        build_tool(log, "weather")


def outcomes(log, call):
    return [
        (e.details["status"], e.details["evidence"]) for e in log.entries({"event_type": "ai.outcome"}) if e.details["call"] == call
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("function", [forecast, aforecast])
def test_from_the_answer_that_asked_to_the_tool_that_ran(log, server, client, function, stream):
    tool = build_tool(log, function, name="weather")
    answer = client.chat("tools", [{"role": "user", "content": "Köln?"}], tools=[tool], stream=stream)
    parts = list(answer) if stream else [answer]
    assert server.calls[-1].json["tools"][0]["function"]["name"] == "weather"
    [asked] = [call.function for part in parts for call in part.message.tool_calls or []]
    assert (asked.name, asked.arguments) == ("weather", ARGUMENTS)
    client.chat("tools", [{"role": "user", "content": "again"}])  # asks for the same: the last one is meant
    assert run(tool, **asked.arguments) == "Köln: sun"
    [entry] = tools(log)
    calls = [e.event_id for e in log.entries({"event_type": "ai_request"})]
    assert entry.parent_id == entry.details["asked_by"] == calls[-1]
    assert outcomes(log, calls[-1]) == [("used", "tool executed")]
    assert log.verify_integrity()["exit_code"] == 0


def test_a_tool_that_failed_was_executed_too(log, client):
    client.chat("tools", [{"role": "user", "content": "Köln?"}])

    @build_tool(log)
    def weather(city, days):
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        weather(**ARGUMENTS)
    [entry] = tools(log)
    assert (entry.outcome, entry.parent_id is None) == ("failure", False)
    assert outcomes(log, entry.parent_id) == [("used", "tool executed")]


def test_methods_and_values_of_any_kind(log, client):
    client.chat("tools", [{"role": "user", "content": "Köln?"}])

    class Unspeakable:
        def __str__(self):
            raise RuntimeError("asked for a text of it")

        __repr__ = __str__

    class Station:
        def weather(self, city, days):
            return Unspeakable()

    Station.weather = build_tool(log, Station.weather)
    assert isinstance(Station().weather("Köln", 2), Unspeakable)
    assert isinstance(Station().weather(Unspeakable(), {1: 2}), Unspeakable)
    endless = []
    endless.append(endless)
    assert isinstance(Station().weather(endless, 2), Unspeakable)
    assert len(tools(log)) == 3
    assert [bool(entry.parent_id) for entry in tools(log)] == [True, False, False]  # what the model asked for, and what nobody did
