"""``AuditMiddleware`` for FastMCP, with its real client and server in one process."""

import asyncio
import sys

import mcp_types
import pytest
from fastmcp import Client, FastMCP
from fastmcp.exceptions import ToolError

from tallystick import AuditError, AuditLogger, audit_context
from tallystick.capture.mcp import AuditMiddleware

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
KOELN = {"city": "Köln", "days": 2}


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log", service="weather station") as logger:
        yield logger


def server_of(log, **options):
    server = FastMCP("weather")
    server.add_middleware(AuditMiddleware(log, **options))

    @server.tool
    def forecast(city: str, days: int = 1) -> str:
        if days > 14:
            raise ValueError(f"nobody knows {city}")
        return f"{city}: sun"

    @server.tool
    def ask_back(city: str) -> mcp_types.InputRequiredResult:
        return mcp_types.InputRequiredResult(request_state="where", result_type="input_required")

    @server.tool
    async def forever() -> str:
        started.set()
        await asyncio.Event().wait()
        return ""

    started = server.started = asyncio.Event()

    @server.resource("data://stations/{name}")
    def station(name: str) -> str:
        if name == "none":
            raise OSError("no such station")
        return f"{name} at 50 m"

    @server.prompt
    def question(topic: str) -> str:
        return f"How is the {topic}?"

    return server


def use(server, work, **options):
    """What ``work(client)`` gives."""

    async def main():
        async with Client(server, **options) as client:
            return await work(client)

    return asyncio.run(main())


def tools(log):
    return list(log.entries({"event_type": "ai.tool"}))


def test_a_call_of_a_tool_is_one_entry_without_values(log):
    answer = use(
        server_of(log), lambda client: client.call_tool("forecast", KOELN, meta={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    )
    assert answer.data == "Köln: sun"
    [entry] = tools(log)
    assert (entry.action, entry.resource, entry.outcome, entry.trace_id) == ("forecast", "tool:forecast", "success", TRACE)
    assert (entry.actor, entry.actor_type) == ("weather station", "service")
    details = entry.details
    assert details.pop("latency_us") >= 0
    assert details.pop("client").startswith("fastmcp/")
    assert details.pop("request").isdigit()
    assert details == {
        "method": "tools/call", "server": "weather", "tool": "forecast", "is_error": False, "unattributed": True,
        "arguments": [{"name": "city", "type": "str", "length": 4}, {"name": "days", "type": "int"}],
        "result": {"type": "ToolResult", "length": 9, "blocks": 1},
    }  # fmt: skip
    assert log.open_payload(entry.event_id, "arg.0").decode() == "Köln"
    assert log.open_payload(entry.event_id, "result").decode() == "Köln: sun"
    assert "Köln".encode() not in log.stored(entry.event_id).line


def test_a_session_is_named_where_the_protocol_has_sessions(log):
    async def twice(client):
        await client.call_tool("forecast", KOELN)
        await client.call_tool("forecast", KOELN)

    use(server_of(log), twice, mode="legacy")
    first, second = tools(log)
    assert first.details["session"] == second.details["session"]
    assert first.details["request"] != second.details["request"]
    assert first.details["client"].startswith("fastmcp/")


@pytest.mark.parametrize(
    ("tool", "given", "error", "cause"),
    [
        ("forecast", {"city": "Köln", "days": 99}, "ToolError", "ValueError"),
        ("no such tool", KOELN, "NotFoundError", None),
        ("forecast", {"town": "Köln"}, "ValidationError", "ValidationError"),
    ],
)
def test_a_tool_that_fails_and_one_that_is_not_there(log, tool, given, error, cause):
    answer = use(server_of(log), lambda client: client.call_tool(tool, given, raise_on_error=False))
    assert answer.is_error
    [entry] = tools(log)
    assert (entry.action, entry.outcome, entry.details["is_error"]) == (tool, "failure", True)
    assert (entry.details["error"]["type"], entry.details.get("cause")) == (error, cause)
    assert [found["name"] for found in entry.details["arguments"]] == list(given)
    assert "Köln".encode() not in log.stored(entry.event_id).line


def test_a_tool_that_asks_its_client_first(log):
    async def work(client):
        with pytest.raises(Exception):  # this client has no answer; which error that is, is its own business
            await client.call_tool("ask_back", {"city": "Köln"})

    use(server_of(log), work, input_required_max_rounds=1)
    first = tools(log)[0]
    assert (first.outcome, first.details["input_required"], first.details["is_error"]) == ("partial", True, False)


def test_a_call_that_is_cancelled_is_on_record(log):
    server = server_of(log)

    async def main():
        async with Client(server) as client:
            call = asyncio.create_task(client.call_tool("forever"))
            await server.started.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(main())
    [entry] = tools(log)
    assert (entry.outcome, entry.details["error"]["type"]) == ("failure", "CancelledError")


def test_an_answer_that_cannot_be_recorded_does_not_leave(log):
    server = server_of(log)
    log.close()
    with pytest.raises(AuditError) as caught:
        asyncio.run(server.call_tool("forecast", KOELN))
    assert caught.value.result.content[0].text == "Köln: sun"

    async def work(client):
        with pytest.raises(Exception) as refused:
            await client.call_tool("forecast", KOELN)
        assert "sun" not in str(refused.value)
        assert str(log.path) not in str(refused.value)

    use(server, work)


def test_a_tools_own_error_wins_over_one_of_recording(log):
    server = server_of(log)
    log.close()
    with pytest.raises(ToolError, match="nobody knows") as own:
        asyncio.run(server.call_tool("forecast", {"city": "Köln", "days": 99}))
    assert "could not be recorded" in own.value.__notes__[0]


def test_resources_and_prompts(log):
    async def work(client):
        await client.read_resource("data://stations/dom")
        await client.get_prompt("question", {"topic": "weather"})
        with pytest.raises(Exception, match="station"):
            await client.read_resource("data://stations/none")

    use(server_of(log), work)
    read, got, failed = log.entries()
    assert (read.event_type, read.resource, read.action, read.outcome) == (
        "data_access",
        "data://stations/dom",
        "read resource",
        "success",
    )
    assert read.details["result"] == {"type": "ResourceResult", "length": 11, "blocks": 1}
    assert log.open_payload(read.event_id, "result").decode() == "dom at 50 m"
    assert (got.event_type, got.resource, got.action, got.outcome) == ("data_access", "prompt:question", "get prompt", "success")
    assert got.details["arguments"] == [{"name": "topic", "type": "str", "length": 7}]
    assert log.open_payload(got.event_id, "result").decode() == "How is the weather?"
    assert (failed.outcome, failed.details["is_error"]) == ("failure", True)
    assert all("tool" not in entry.details for entry in (read, got, failed))


def test_secrets_in_addresses_are_masked(log):
    async def work(client):
        with pytest.raises(Exception):
            await client.read_resource("https://ana:hunter2-long@host/x?token=hunter2-long")

    use(server_of(log), work)
    [entry] = log.entries()
    assert "hunter2" not in entry.resource


def test_who_acts(log):
    use(
        server_of(log, actor=lambda context: "ana" if context.message.arguments["days"] else None),
        lambda client: client.call_tool("forecast", KOELN),
    )
    with audit_context(actor="bot", actor_type="agent", case="C-1"):
        asyncio.run(server_of(log).call_tool("forecast", KOELN))
    first, second = tools(log)
    assert (first.actor, first.actor_type, "unattributed" in first.details) == ("ana", "user", False)
    assert (second.actor, second.actor_type, second.correlation_id) == ("bot", "agent", "C-1")


def test_an_actor_that_cannot_be_told_stops_the_call(log):
    def unknown(context):
        raise PermissionError("who are you?")

    with pytest.raises(PermissionError):
        asyncio.run(server_of(log, actor=unknown).call_tool("forecast", KOELN))
    assert tools(log) == []


@pytest.mark.parametrize("traceparent", ["", "00-0-0-00", f"00-{'0' * 32}-00f067aa0ba902b7-01", 7])
def test_a_trace_that_is_none_is_dropped(log, traceparent):
    use(server_of(log), lambda client: client.call_tool("forecast", KOELN, meta={"traceparent": traceparent}))
    assert tools(log)[0].trace_id is None


def test_without_fastmcp_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastmcp.server.middleware", None)
    monkeypatch.delitem(sys.modules, "tallystick.capture.mcp")
    with pytest.raises(ImportError, match=r"pip install tallystick\[mcp\]"):
        import tallystick.capture.mcp  # noqa: F401
