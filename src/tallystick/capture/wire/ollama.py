"""Ollama's own interface (docs/api.md of ollama 0.12): what ``/api/…`` is asked and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .answer import Answer, count, error_text
from .asked import Asked, chars, digest, image, name, parameters, tool_names

PROVIDER = "ollama"
_CALLS = {"/api/chat": "chat", "/api/generate": "text_completion", "/api/embed": "embeddings", "/api/embeddings": "embeddings"}
_ADMIN = {"/api/pull": "pull", "/api/push": "push", "/api/create": "create", "/api/copy": "copy", "/api/delete": "delete"}
_PARAMETERS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed", "num_ctx": "num_ctx",
    "num_predict": "max_tokens", "stop": "stop_sequences", "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "num_gpu": "num_gpu", "mirostat": "mirostat",
}  # fmt: skip
_TOP = {"think": "think", "raw": "raw", "truncate": "truncate", "keep_alive": "keep_alive", "dimensions": "dimensions",
        "logprobs": "logprobs", "top_logprobs": "top_logprobs", "context": "context_tokens", "template": "template"}  # fmt: skip
_SPENT = {"total_duration": "total_us", "load_duration": "load_us", "prompt_eval_duration": "prompt_us", "eval_duration": "eval_us"}


def read_request(path: str, body: Mapping[str, Any]) -> Asked | None:
    """What a request asks for; None if it is no call to a model and changes none (``tags``, ``show``, load and unload). Never raises:
    a request of another shape than it should have is a call all the same."""
    path = path.rstrip("/")
    if any(not key.islower() for key in body):  # the server reads names of members in any case
        body = {key.lower(): value for key, value in body.items()}
    if path in _ADMIN:
        model = name(body.get("model")) or name(body.get("name")) or name(body.get("source"))
        other = name(body.get("destination")) or name(body.get("from"))
        return Asked(_ADMIN[path], PROVIDER, model, admin=True, stream=body.get("stream", True) is not False,
                     parameters={"other_model": other} if other else {})  # fmt: skip
    operation = _CALLS.get(path)
    if operation is None or _only_loads(path, body):
        return None
    streams = operation != "embeddings" and body.get("stream", True) is not False
    asked = Asked(operation, PROVIDER, name(body.get("model")), stream=streams)
    try:
        _fill(asked, operation, body)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError):
        asked.unread = True
    return asked


def _fill(asked: Asked, operation: str, body: Mapping[str, Any]) -> None:
    asked.parameters = parameters(body.get("options"), _PARAMETERS) | parameters(body, _TOP)
    if body.get("format"):
        asked.format, asked.schema = ("json_schema", body["format"]) if isinstance(body["format"], Mapping) else ("json", None)
        asked.content["format"] = body["format"]
    if operation == "chat":
        _messages(asked, body.get("messages"))
    elif operation == "embeddings":
        given = body.get("input", body.get("prompt"))
        texts = given if isinstance(given, list | tuple) else [given]
        asked.inputs, asked.prompt_chars = len(texts), sum(map(chars, texts))
        asked.content["input"] = given
    else:
        for member in ("system", "prompt", "suffix"):
            if isinstance(body.get(member), str) and body[member]:
                asked.prompt_chars += len(body[member])
                asked.content[member] = body[member]
        if body.get("template"):
            asked.content["template"] = body["template"]
        asked.images = [image(one) for one in body.get("images") or () if isinstance(one, str)]
        if asked.images:
            asked.content["images"] = [digest(one) for one in body["images"] if isinstance(one, str)]
    if body.get("tools"):
        asked.tools = tool_names(body["tools"])
        asked.content["tools"] = body["tools"]


def _only_loads(path: str, body: Mapping[str, Any]) -> bool:
    if path == "/api/chat":
        return not body.get("messages")
    return path == "/api/generate" and not body.get("prompt") and not body.get("images") and not body.get("suffix")


def _messages(asked: Asked, given: object) -> None:
    kept = []
    for message in given if isinstance(given, list | tuple) else ():
        if not isinstance(message, Mapping):
            continue
        if any(not key.islower() for key in message):
            message = {key.lower(): value for key, value in message.items()}
        role, text = asked.count_role(message.get("role")), message.get("content")
        asked.prompt_chars += chars(text)
        images = [image(one) for one in message.get("images") or () if isinstance(one, str)]
        asked.images += images
        if role == "assistant" and isinstance(text, str) and text:
            asked.spoken.append(text)
        elif role == "tool":
            asked.results.append((name(message.get("tool_call_id")), name(message.get("tool_name")) or name(message.get("name"))))
        digests = [digest(one) for one in message["images"] if isinstance(one, str)] if images else []
        kept.append({**message, "images": digests} if images else dict(message))
    asked.content["messages"] = kept


def read_answer(answer: Answer, part: Mapping[str, Any]) -> None:
    """One object of an answer: a line of a stream, or the whole. An error is no part of an answer."""
    if "error" in part:
        answer.error = error_text(part["error"]) or "error"
        return
    answer.chunks += 1
    message = part.get("message")
    if message is not None:
        answer.say(message.get("content"))
        if "thinking" in message:
            answer.think(message["thinking"])
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            answer.ask_tool(len(answer.tool_calls), function.get("name"), call.get("id"), function.get("arguments"))
    elif "response" in part:
        answer.say(part["response"])
        if "thinking" in part:
            answer.think(part["thinking"])
    elif "embeddings" in part or "embedding" in part:
        vectors = part["embeddings"] if "embeddings" in part else [part["embedding"]]
        answer.vectors, answer.bore = len(vectors), True
        answer.dimensions = len(vectors[0]) if vectors else None
        answer.whole = True
    if part.get("done") or answer.whole:
        _finish(answer, part)
    elif answer.model is None:
        answer.model = name(part.get("model"))


def _finish(answer: Answer, part: Mapping[str, Any]) -> None:
    answer.whole = True
    answer.model = name(part.get("model")) or answer.model
    answer.finish_reason = name(part.get("done_reason"))
    answer.input_tokens, answer.output_tokens = count(part.get("prompt_eval_count")), count(part.get("eval_count"))
    answer.remote_host, answer.remote_model = name(part.get("remote_host")), name(part.get("remote_model"))
    for theirs, ours in _SPENT.items():
        spent = count(part.get(theirs))
        if spent is not None:
            answer.more[ours] = spent // 1000
    cached = count(part.get("prompt_eval_cached_count"))
    if cached is not None:
        answer.more["cached_tokens"] = cached


def read_admin(answer: Answer, part: Mapping[str, Any]) -> None:
    """One object of the answer to pull, push, create, copy or delete."""
    if "error" in part:
        answer.error = error_text(part["error"]) or "error"
        return
    answer.chunks += 1
    if part.get("status") == "success":
        answer.whole = True
