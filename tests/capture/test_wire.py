"""Readers of the wire: the same facts however the bytes are cut, and nothing that is sent can make them raise."""

from __future__ import annotations

import gzip
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.capture import ends
from tallystick.capture.calls import clean_endpoint
from tallystick.capture.content import ContentPolicy, Kept, Rule
from tallystick.capture.wire import ollama, openai
from tallystick.capture.wire.answer import Answer, Text, commitment
from tallystick.capture.wire.asked import image
from tallystick.capture.wire.body import Body

from .server import _ollama_parts, _openai_parts, _sse

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
                        ["message", "messages", "content", "role", "tool_calls", "function", "name", "arguments", "images", "image_url",
                         "url", "text", "type", "choices", "delta", "index", "usage", "prompt_tokens", "error", "done", "model", "response",
                         "object", "data", "embedding", "embeddings", "timings", "output", "options", "stop", "tools", "format", "input",
                         "prompt", "response_format", "json_schema", "schema", "n", "thinking", "x"]) | st.text(max_size=3), inner, max_size=5),
                    max_leaves=20)  # fmt: skip
OBJECT = st.dictionaries(st.sampled_from(["message", "messages", "choices", "model", "usage", "error", "response", "embeddings", "data",
                                          "object", "done", "options", "tools", "format", "input", "prompt", "system", "images", "stream",
                                          "response_format", "n", "output", "type", "timings"]), JSON, max_size=6)  # fmt: skip
PATHS = ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/pull", "/api/copy", "/v1/chat/completions",
         "/v1/completions", "/v1/embeddings", "/v1/responses"]  # fmt: skip


@given(st.sampled_from(PATHS), OBJECT)
def test_no_request_makes_a_reader_raise(path, body):
    asked = (ollama if path.startswith("/api/") else openai).read_request(path, body)
    if asked is not None:
        details, payloads = Kept("full").of_request(asked)
        # an entry has room for it whatever it is, and what is committed to is JSON
        assert len(msgspec.json.encode({**asked.details(), **details})) < 32_000
        assert isinstance(json.loads(payloads["prompt"].content), dict)
        assert asked.prompt_chars >= 0 and asked.operation


@given(st.sampled_from([ollama.read_answer, openai.read_answer, ollama.read_admin]), st.lists(OBJECT, max_size=4))
def test_no_answer_makes_a_call_raise(read, parts):
    from types import SimpleNamespace

    from tallystick.capture.calls import Call

    call = SimpleNamespace(read=read, answer=Answer(b"s" * 32), unread=None, _first_ns=None)
    for part in parts:
        Call.feed(call, part)
    details, _ = Kept("full").of_answer(call.answer)
    assert len(msgspec.json.encode({**call.answer.details(), **details})) < 48_000
    assert call.answer.chars == sum(text.chars for text in call.answer.texts.values()) == details["response_chars"]


@given(st.sampled_from(["application/json", "application/x-ndjson", "text/event-stream", ""]), st.lists(st.binary(max_size=40), max_size=6),
       st.sampled_from(["", "gzip", "deflate", "br", "zstd"]))  # fmt: skip
def test_no_bytes_make_a_body_raise(kind, pieces, encoding):
    seen = []
    body = Body(kind, seen.append, encoding)
    for piece in pieces:
        body.feed(piece)
    answer = Answer()
    answer.whole = True
    body.settle(answer)
    assert body.bytes == sum(map(len, pieces))
    assert all(isinstance(part, dict) for part in seen)
    assert answer.whole is not body.unreadable


def _facts(data, kind, read, cuts, encoding=""):
    answer = Answer(b"s" * 32)
    body = Body(kind, lambda part: read(answer, part), encoding)
    at = 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
        body.feed(data[at:cut])
        at = cut
    body.settle(answer)
    return answer.details(), answer.chars, answer.chunks, answer.whole, answer.texts.get(0) and answer.texts[0].commitment(), answer.error


@pytest.mark.parametrize("script", ["ok", "tools", "thinking", "mid_error", "crlf", "no_done"])
@pytest.mark.parametrize("encoding", ["", "gzip"])
@given(cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_a_stream_has_the_same_facts_however_it_is_cut(script, encoding, cuts):
    lines = b"".join(json.dumps(p, ensure_ascii=False).encode() + (b"\r\n" if script == "crlf" else b"\n")
                     for p in _ollama_parts("/api/chat", {}, script))  # fmt: skip
    events = "".join(_sse(p, script) for p in _openai_parts("/v1/chat/completions", {"n": 1}, script)).encode()
    for data, kind, read in ((lines, "application/x-ndjson", ollama.read_answer), (events, "text/event-stream", openai.read_answer)):
        packed = gzip.compress(data, mtime=0) if encoding else data
        assert _facts(packed, kind, read, cuts, encoding) == _facts(data, kind, read, [])


def test_data_of_an_event_may_have_several_lines_and_comments_between():
    seen = []
    body = Body("text/event-stream; charset=utf-8", seen.append)
    body.feed(b': hello\nevent: x\nid: 7\ndata: {"a":\ndata:1}\n\n\n\ndata: [DONE]\n\n')
    assert (seen, body.is_done, body.unreadable) == ([{"a": 1}], True, False)


def test_the_responses_interface_whole_and_as_a_stream():
    whole = {"object": "response", "id": "resp_1", "model": "m", "status": "completed", "usage": {"input_tokens": 7, "output_tokens": 5},
             "output": [{"type": "message", "content": [{"type": "output_text", "text": "hello"}]},
                        {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"}]}  # fmt: skip
    one = Answer()
    openai.read_answer(one, whole)
    two = Answer()
    for part in ({"type": "response.created", "response": {"model": "m"}}, {"type": "response.output_text.delta", "delta": "hel"},
                 {"type": "response.output_text.delta", "delta": "lo"}, {"type": "response.completed", "response": whole}):  # fmt: skip
        openai.read_answer(two, part)
    assert one.text() == two.text() == "hello" and one.whole and two.whole
    assert one.details() == two.details()
    asked = openai.read_request("/v1/responses", {"model": "m", "instructions": "be brief", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]}, {"type": "function_call_output", "call_id": "c", "output": "x"}]})
    assert (asked.prompt_chars, asked.results) == (14, [("c", None)])


@given(st.lists(st.text(max_size=30), max_size=30), st.integers(0, 200))
def test_the_commitment_of_a_text_does_not_depend_on_its_pieces_nor_on_what_is_kept_of_it(pieces, limit):
    text = Text("answer", b"k" * 32, limit)
    for piece in pieces:
        text.add(piece)
    whole = "".join(pieces)
    assert text.commitment() == commitment(b"k" * 32, "answer", whole.encode("utf-8", "surrogatepass"))
    assert text.chars == len(whole)
    assert text.kept == (len(whole) <= limit)
    if text.kept:
        assert text.text() == whole


def test_an_image_is_its_size_and_type_whatever_it_is_declared_as():
    import base64

    assert image(base64.b64encode(b"\xff\xd8\xff" + bytes(98)).decode()) == {"bytes": 101, "type": "image/jpeg"}
    assert image(base64.b64encode(b"RIFF1234WEBPxx").decode(), "image/png") == {"bytes": 14, "type": "image/webp"}
    assert image("not base64 at all!", "text/html") == {"bytes": 13, "type": "text/html"}


def test_a_name_that_is_an_address_has_no_credentials_either():
    asked = ollama.read_request("/api/generate", {"model": "https://bob:hunter2@reg.local/x?token=abc", "prompt": "x"})
    assert asked.model == "https://reg.local/x"


@pytest.mark.parametrize(("url", "clean"), [
    ("http://ada:hunter2@host:1/api?key=secret#x", "http://host:1/api"), ("http://[::1]:1/x", "http://[::1]:1/x"), ("", ""),
    ("http://host:99999999/x", ""), ("nonsense", ""),
])  # fmt: skip
def test_an_endpoint_has_no_credentials(url, clean):
    assert clean_endpoint(url) == clean


def test_the_first_rule_that_matches_decides_what_is_kept():
    policy = ContentPolicy("lengths", [Rule("full", model="llama*"), Rule("none", actor="hr-*"), Rule("redacted", resource="crm/*")])
    assert policy.of("llama3", "hr-1", "x") == "full"
    assert policy.of("qwen", "hr-1", "x") == "none"
    assert policy.of("qwen", "ana", "crm/7") == "redacted"
    assert policy.of(None, "ana", "x") == "lengths"
    with pytest.raises(ValueError, match="no content policy"):
        ContentPolicy("everything")


@pytest.mark.parametrize("policy", ["none", "lengths", "commitment", "redacted", "full"])
def test_each_policy_keeps_what_it_says(policy):
    asked = ollama.read_request("/api/chat", {"model": "m", "messages": [{"role": "user", "content": "my key is sk-0123456789abcdefghij"}]})
    kept = Kept(policy)
    answer = Answer(kept.salt, kept.limit)
    ollama.read_answer(answer, {"message": {"content": "Bearer abcdefghijklmnop"}, "done": True})
    asking, before = kept.of_request(asked)
    answering, after = kept.of_answer(answer)
    assert asking["content"] == answering["content"] == policy
    assert ("prompt_chars" in asking, "response_chars" in answering) == ((policy != "none"),) * 2
    assert ("commitments" in asking, "salt" in before) == ((policy not in ("none", "lengths")),) * 2
    assert set(after) == ({"answer"} if policy in ("redacted", "full") else set())
    shown = b"".join(p.content for n, p in {**before, **after}.items() if n != "salt")
    assert (b"sk-0123456789" in shown, b"abcdefghijklmnop" in shown) == ((policy == "full"),) * 2
    assert (b"[masked]" in shown) == (policy == "redacted")
    if kept.salt:
        assert answering["commitments"]["answer"] == commitment(kept.salt, "answer", b"Bearer abcdefghijklmnop")


@pytest.mark.parametrize("end", ends.ENDS)
def test_every_end_has_one_outcome(end):
    found = ends.outcome_of(end, delivered=True), ends.outcome_of(end, delivered=False)
    assert found == {"ok": ("success", "success"), "http_error": ("failure", "failure"), "refused": ("failure", "failure"),
                     "not_sent": ("failure", "failure")}.get(end, ("partial", "failure"))  # fmt: skip


@pytest.mark.parametrize("schema", [
    {"$ref": "http://127.0.0.1:9/secret"}, {"properties": {"a": {"$ref": "file:///etc/passwd"}}}, {"type": "string", "pattern": "^(a+)+$"},
    {"patternProperties": {"^(a+)+$": {}}}, {"$schema": "http://127.0.0.1:9/meta"},
])  # fmt: skip
def test_a_schema_that_fetches_or_runs_patterns_is_not_judged(schema):
    from tallystick.capture.evidence import is_of_format

    asked = ollama.read_request("/api/chat", {"model": "m", "messages": [{"role": "user", "content": "x"}], "format": schema})
    assert asked.schema == schema
    assert is_of_format(asked, '"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"') is None
    assert is_of_format(asked, "no JSON") is False


def test_masking_does_not_take_for_ever():
    from tallystick.capture.redact import redact_text

    assert redact_text("a-" * 200_000 + " password=hunter2").endswith("password=[masked]")
