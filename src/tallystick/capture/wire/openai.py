"""The OpenAI-compatible interface, as llama.cpp, vLLM, LM Studio and Ollama serve it: chat completions, completions, embeddings, and
responses. Other members of their own (``timings`` of llama.cpp) are read where they are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .answer import Answer, count, error_text
from .asked import Asked, chars, digest, image, name, parameters, tool_names

PROVIDER = "openai"
_CALLS = {"/chat/completions": "chat", "/completions": "text_completion", "/embeddings": "embeddings", "/responses": "chat"}
_PARAMETERS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed", "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens", "max_output_tokens": "max_tokens", "stop": "stop_sequences",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "logprobs": "logprobs",
    "top_logprobs": "top_logprobs", "reasoning_effort": "reasoning_effort", "dimensions": "dimensions",
    "encoding_format": "encoding_format", "parallel_tool_calls": "parallel_tool_calls", "tool_choice": "tool_choice",
    "store": "store",
}  # fmt: skip


def read_request(path: str, body: Mapping[str, Any]) -> Asked | None:
    """What a request asks for; None if it is no call to a model. ``path`` may have a prefix such as ``/v1``. Never raises: a request
    of another shape than it should have is a call all the same."""
    path = path.rstrip("/")
    ending = next((known for known in _CALLS if path.endswith(known)), None)  # the longer one of two stands first
    if ending is None:
        return None
    asked = Asked(_CALLS[ending], PROVIDER, name(body.get("model")), stream=body.get("stream") is True)
    try:
        _fill(asked, ending, body)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError):
        asked.unread = True
    return asked


def _fill(asked: Asked, ending: str, body: Mapping[str, Any]) -> None:
    asked.parameters = parameters(body, _PARAMETERS)
    asked.choices = count(body.get("n")) if body.get("n") != 1 else None
    _format(asked, body)
    if ending == "/chat/completions":
        _messages(asked, body.get("messages"))
    elif ending == "/responses":
        _input(asked, body)
    else:
        member = "input" if ending == "/embeddings" else "prompt"
        given = body.get(member)
        texts = given if isinstance(given, list | tuple) and not _is_tokens(given) else [given]
        asked.prompt_chars = sum(map(chars, texts)) + chars(body.get("suffix"))
        if member == "input":
            asked.inputs = len(texts)
        asked.content[member] = given
        if body.get("suffix"):
            asked.content["suffix"] = body["suffix"]
    if body.get("tools"):
        asked.tools = tool_names(body["tools"])
        asked.content["tools"] = body["tools"]


def _is_tokens(given: Any) -> bool:
    return bool(given) and isinstance(given[0], int)


def _format(asked: Asked, body: Mapping[str, Any]) -> None:
    given, text = body.get("response_format"), body.get("text")
    if given is None and isinstance(text, Mapping):
        given = text.get("format")
    if not isinstance(given, Mapping) or given.get("type") in (None, "text"):
        return
    asked.format = "json_schema" if given["type"] == "json_schema" else "json"
    holder = given.get("json_schema", given)
    asked.schema = holder.get("schema") if isinstance(holder, Mapping) else None
    asked.content["format"] = dict(given)


def _messages(asked: Asked, given: object) -> None:
    kept = []
    for message in given if isinstance(given, list | tuple) else ():
        if not isinstance(message, Mapping):
            continue
        role = asked.count_role(message.get("role"))
        text, cleaned = _content(asked, message.get("content"))
        if role == "assistant" and text:
            asked.spoken.append(text)
        elif role == "tool":
            asked.results.append((name(message.get("tool_call_id")), name(message.get("name"))))
        kept.append({**message, "content": cleaned})
    asked.content["messages"] = kept


def _content(asked: Asked, given: object) -> tuple[str, Any]:
    """A message's content: its text, and itself with images by their SHA-256."""
    if isinstance(given, str):
        asked.prompt_chars += len(given)
        return given, given
    texts, cleaned = [], []
    for part in given if isinstance(given, list | tuple) else ():
        if not isinstance(part, Mapping):
            continue
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
            cleaned.append(dict(part))
            continue
        source = part.get("image_url")
        url = source.get("url") if isinstance(source, Mapping) else source
        if isinstance(url, str):
            asked.images.append(_image(url))
            cleaned.append({"type": part.get("type"), "image": digest(url)})
        else:
            # audio and files: never their bytes
            cleaned.append({"type": part.get("type"), "hidden": digest(json.dumps(part, sort_keys=True, default=str))})
    asked.prompt_chars += sum(map(len, texts))
    return "".join(texts), cleaned if given is not None else None


def _image(url: str) -> dict[str, Any]:
    if url.startswith("data:"):
        head, _, data = url[5:].partition(",")
        return image(data, head.split(";")[0])
    return {"url": True}  # somewhere else: the address may carry a signature, and is content


def _input(asked: Asked, body: Mapping[str, Any]) -> None:
    for member in ("instructions", "input"):
        given = body.get(member)
        if isinstance(given, str):
            asked.prompt_chars += len(given)
            asked.content[member] = given
        elif isinstance(given, list):
            items = [one for one in given if isinstance(one, Mapping)]
            _messages(asked, [one for one in items if "role" in one])
            asked.content[member] = [one if "role" not in one else {"role": one["role"]} for one in items]
            asked.prompt_chars += sum(chars(one.get("output")) for one in items)
            asked.results += [(name(one.get("call_id")), None) for one in items if one.get("type") == "function_call_output"]


def read_answer(answer: Answer, part: Mapping[str, Any]) -> None:
    """One object of an answer: the data of an event of a stream, or the whole body. An error is no part of an answer."""
    if part.get("error"):
        answer.error = error_text(part["error"]) or "error"
        return
    answer.chunks += 1
    kind = part.get("object")
    if kind == "response" or (kind is None and isinstance(part.get("type"), str) and "choices" not in part):
        _read_response(answer, part)
        return
    if kind is not None and not kind.endswith(".chunk") and "choices" in part:
        answer.whole = answer.whole or any("message" in c or c.get("finish_reason") for c in part["choices"])
    for choice in part.get("choices") or ():
        index, piece = choice.get("index") or 0, choice.get("delta")
        if piece is None:
            piece = choice.get("message")
        if piece is not None:
            text = piece.get("content")
            if text:
                answer.say(text, index)
            elif piece.get("refusal"):
                answer.say(piece["refusal"], index)
            thought = piece.get("reasoning_content") or piece.get("reasoning")
            if thought:
                answer.think(thought)
            for number, call in enumerate(piece.get("tool_calls") or ()):
                function = call.get("function") or {}
                answer.ask_tool((index, call.get("index", number)), function.get("name"), call.get("id"), function.get("arguments"))
        elif choice.get("text"):
            answer.say(choice["text"], index)
        reason = choice.get("finish_reason")
        if reason is not None:
            answer.finish_reason = name(reason)
    if answer.model is None:
        answer.model = name(part.get("model"))
        answer.server_id, answer.fingerprint = name(part.get("id")), name(part.get("system_fingerprint"))
    if kind in ("list", "embedding"):
        vectors = part.get("data") or ()
        answer.vectors, answer.bore, answer.whole = len(vectors), True, True
        first = vectors[0].get("embedding") if vectors else None
        answer.dimensions = len(first) if isinstance(first, list) else None
    _usage(answer, part.get("usage"))
    if "timings" in part:
        _timings(answer, part["timings"])


def _usage(answer: Answer, usage: Any) -> None:
    if not isinstance(usage, Mapping):
        return
    given = count(usage.get("prompt_tokens", usage.get("input_tokens")))
    answer.input_tokens = given if given is not None else answer.input_tokens
    taken = count(usage.get("completion_tokens", usage.get("output_tokens")))
    answer.output_tokens = taken if taken is not None else answer.output_tokens
    for group, member, word in (("prompt_tokens_details", "cached_tokens", "cached_tokens"),
                                ("completion_tokens_details", "reasoning_tokens", "reasoning_tokens")):  # fmt: skip
        found = count((usage.get(group) or {}).get(member)) if isinstance(usage.get(group) or {}, Mapping) else None
        if found:
            answer.more[word] = found


def _timings(answer: Answer, timings: Any) -> None:
    for theirs, ours in (("prompt_ms", "prompt_us"), ("predicted_ms", "eval_us")):
        spent = timings.get(theirs) if isinstance(timings, Mapping) else None
        if isinstance(spent, int | float) and 0 <= spent < 1e12:
            answer.more[ours] = int(spent * 1000)


def _read_response(answer: Answer, part: Mapping[str, Any]) -> None:
    """An object of the responses interface: the whole, or an event of its stream."""
    kind = part.get("type")
    if kind == "response.output_text.delta":
        answer.say(part.get("delta"))
        return
    if kind in ("response.reasoning_text.delta", "response.reasoning_summary_text.delta"):
        answer.think(part.get("delta"))
        return
    if kind in ("error", "response.failed"):
        answer.error = error_text(part.get("error") or part.get("message") or part) or "error"
        return
    whole = part.get("response") if kind in ("response.completed", "response.incomplete") else None
    if whole is None and part.get("object") == "response":
        whole = part
    if not isinstance(whole, Mapping):
        if isinstance(part.get("response"), Mapping) and answer.model is None:
            answer.model = name(part["response"].get("model"))
        return
    said_before = bool(answer.texts)
    answer.model, answer.server_id = name(whole.get("model")) or answer.model, name(whole.get("id"))
    answer.finish_reason, answer.whole = name(whole.get("status")), True
    _usage(answer, whole.get("usage"))
    for number, item in enumerate(whole.get("output") or ()):
        if item.get("type") == "function_call":
            answer.ask_tool(number, item.get("name"), item.get("call_id"), item.get("arguments"))
        for piece in (item.get("content") or ()) if not said_before else ():
            if isinstance(piece, Mapping) and piece.get("type") == "output_text":
                answer.say(piece.get("text"))
