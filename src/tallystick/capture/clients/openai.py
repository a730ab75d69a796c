"""The ``openai`` package, and with it every OpenAI-compatible server: ``request`` of ``SyncAPIClient`` and ``AsyncAPIClient``,
which all resources, retries, raw responses and stream helpers go through, and ``_process_response``, where the response of the
last attempt is at hand.

The answer is read from the decoded bytes of that response as they pass to whoever asked for them, so that a parsed answer, a
stream, a raw response and a proxy are read by one reader.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from ...core.errors import AuditError
from .. import ends
from ..bearer import bear
from ..calls import Call
from ..recorder import Recorder
from ..wire import openai as wire
from ..wire.body import Body
from .hooks import as_method, hook_one, is_hooked, joined, original_of, version_of

READ, TAPPED = "read", "tapped"
_instrumented: list[Any] = []


class _Doing:
    """One call while ``request`` runs, and what was done with its response."""

    __slots__ = ("call", "how", "options")

    def __init__(self, call: Call, options: Any) -> None:
        self.call, self.options = call, options
        self.how = ""


_current: ContextVar[_Doing | None] = ContextVar("tallystick_openai_call", default=None)


def wrap(recorder: Recorder, client: Any) -> Any:
    """Hook one client, and the copies that ``with_options`` makes of it."""
    from openai import AsyncOpenAI

    hooks = _async_hooks if isinstance(client, AsyncOpenAI) else _hooks
    for name, hook in hooks(lambda: recorder, "wrap").items():
        hook_one(client, name, hook)
    original_copy = type(client).copy.__get__(client)

    @functools.wraps(original_copy)
    def copy(*args: Any, **keywords: Any) -> Any:
        return wrap(recorder, original_copy(*args, **keywords))

    client.copy = client.with_options = copy
    return client


def instrument(recorder: Recorder) -> None:
    """Hook the classes."""
    from openai import _base_client as base

    _instrumented[:] = [recorder]
    for kind, hooks in ((base.SyncAPIClient, _hooks), (base.AsyncAPIClient, _async_hooks)):
        for name, hook in hooks(lambda: _instrumented[0], "instrument").items():
            for holder in _holders(kind, name):
                original = vars(holder)[name]
                if not is_hooked(original):
                    setattr(holder, name, as_method(original, hook))


def uninstrument() -> None:
    """Unhook the classes."""
    from openai import _base_client as base

    for kind in (base.SyncAPIClient, base.AsyncAPIClient):
        for name in ("request", "_process_response"):
            for holder in _holders(kind, name):
                setattr(holder, name, original_of(vars(holder)[name]))
    _instrumented.clear()


def _holders(kind: type, name: str) -> list[type]:
    """The class and those below it that have the method of their own: other instrumentations put it there, and leave it there."""
    found, pending = [], [kind]
    while pending:
        one = pending.pop()
        pending += one.__subclasses__()
        if name in vars(one):
            found.append(one)
    return found


def _call(recorder: Recorder, client: Any, capture: str, options: Any, *, stream: bool) -> Call | None:
    body, url = getattr(options, "json_data", None), str(getattr(options, "url", ""))
    if not isinstance(body, Mapping) or str(getattr(options, "method", "")).lower() != "post":
        return None
    extra = getattr(options, "extra_json", None)
    asked = wire.read_request(url, {**body, **extra} if isinstance(extra, Mapping) else body)
    if asked is None:
        return None
    asked.stream = stream or asked.stream
    endpoint = joined(str(getattr(client, "base_url", "")), url.lstrip("/"))
    return Call(recorder, asked, wire.read_answer, capture=capture, endpoint=endpoint, client=version_of("openai"))


def _hooks(recorder: Callable[[], Recorder], capture: str) -> dict[str, Callable[..., Any]]:
    def request(client: Any, original: Any, cast_to: Any, options: Any, *, stream: bool = False, **keywords: Any) -> Any:
        doing_already = _current.get()
        if doing_already is not None and doing_already.options is options:  # the method of a class above this one
            return original(cast_to, options, stream=stream, **keywords)
        call = _call(recorder(), client, capture, options, stream=stream)
        if call is None:
            return original(cast_to, options, stream=stream, **keywords)
        call.recorder.expect_late()
        try:
            call.begin()
        except BaseException as e:
            call.failed(e)
            raise
        doing = _Doing(call, options)
        token = _current.set(doing)
        try:
            answer = original(cast_to, options, stream=stream, **keywords)
        except BaseException as e:
            _failed(call, e)
            raise
        finally:
            _current.reset(token)
        if _is_whole(doing, answer):
            try:
                call.finish(call.source_ended())
            except AuditError as e:
                e.result = answer
                raise
        return answer

    def process_response(_: Any, original: Any, **keywords: Any) -> Any:
        _seen(_current.get(), keywords, _tap)
        return original(**keywords)

    return {"request": request, "_process_response": process_response}


def _async_hooks(recorder: Callable[[], Recorder], capture: str) -> dict[str, Callable[..., Any]]:
    async def request(client: Any, original: Any, cast_to: Any, options: Any, *, stream: bool = False, **keywords: Any) -> Any:
        doing_already = _current.get()
        if doing_already is not None and doing_already.options is options:
            return await original(cast_to, options, stream=stream, **keywords)
        call = _call(recorder(), client, capture, options, stream=stream)
        if call is None:
            return await original(cast_to, options, stream=stream, **keywords)
        call.recorder.expect_late()
        doing, token = _Doing(call, options), None
        try:
            await call.abegin()
            token = _current.set(doing)
            answer = await original(cast_to, options, stream=stream, **keywords)
        except BaseException as e:
            _failed(call, e)
            raise
        finally:
            if token is not None:
                _current.reset(token)
        if _is_whole(doing, answer):
            try:
                await call.afinish(call.source_ended())
            except AuditError as e:
                e.result = answer
                raise
        return answer

    async def process_response(_: Any, original: Any, **keywords: Any) -> Any:
        _seen(_current.get(), keywords, _atap)
        return await original(**keywords)

    return {"request": request, "_process_response": process_response}


def _seen(doing: _Doing | None, keywords: Mapping[str, Any], tap: Callable[[Any, Call], None]) -> None:
    """The response of the attempt that counts: read now if it is here, watched if it is still coming."""
    response = keywords.get("response")
    if doing is None or response is None:
        return
    call = doing.call
    if not call.is_open or doing.how:
        return  # another class above or below has this method too, and has seen it
    call.status = response.status_code
    taken = keywords.get("retries_taken")
    call.attempts = 1 + taken if type(taken) is int else call.attempts
    if hasattr(response, "_content"):
        body = Body(response.headers.get("content-type", ""), call.feed)
        body.feed(response.content)
        body.settle(call.answer)
        doing.how = READ
    else:
        tap(response, call)
        doing.how = TAPPED


def _is_whole(doing: _Doing, answer: Any) -> bool:
    """True for an answer that is handed over in one piece; a stream ends later."""
    call = doing.call
    bear(answer, call.event_id)
    if doing.how == TAPPED:
        if hasattr(answer, "_iterator"):  # the stream itself: whoever drops it leaves its response to the collector
            weakref.finalize(answer, call.abandon).atexit = False
        return False
    if not doing.how and hasattr(answer, "to_dict"):  # a client that processes responses in another way
        call.feed(answer.to_dict())
        call.answer.whole = True
    call.delivered = 1
    return True


def _failed(call: Call, error: BaseException) -> None:
    response = getattr(error, "response", None)
    request = getattr(response, "request", None) or getattr(error, "request", None)
    try:
        call.attempts = 1 + int(request.headers.get("x-stainless-retry-count", 0)) if request is not None else call.attempts
    except (ValueError, AttributeError, RuntimeError):
        pass
    call.failed(error)


# -- a response that is still coming --------------------------------------------------------------------------------------


class _Tap:
    """Reads along; told once how it ended."""

    def __init__(self, response: Any, call: Call) -> None:
        self.call = call
        self.body = Body(response.headers.get("content-type", ""), call.feed)
        self.is_stepping = False  # the response closes itself at its end: that is not its caller's doing
        call.catch_up = self.body.catch_up
        call.recorder.open_calls.add(call)
        weakref.finalize(response, call.abandon).atexit = False

    def data(self, data: bytes) -> None:
        call = self.call
        if call.has_begun_to_answer:
            self.body.feed_later(data)
        else:
            self.body.feed(data)
        call.delivered += 1

    def end(self) -> str:
        """The source has no more."""
        self.body.settle(self.call.answer)
        return self.call.source_ended()

    def closed(self, closer: str) -> None:
        """Closed: by its holder, or by the client's own generator, which sees to it when it is done (``[DONE]``, an error inside the
        stream, nonsense) and when nobody holds it any more."""
        call = self.call
        if self.is_stepping or not call.is_open:
            return
        self.body.catch_up()
        if self.body.is_done or call.answer.error is not None:
            call.finish(self.end())
        elif self.body.unreadable:
            call.finish(ends.TRUNCATED)
        elif closer in ("__stream__", "iter_raw", "aiter_raw"):  # their generators, collected
            call.abandon()
        else:
            call.finish(ends.CLOSED)


def _tap(response: Any, call: Call) -> None:
    tap, iter_bytes, close = _Tap(response, call), response.iter_bytes, response.close

    def tapped(*args: Any, **keywords: Any) -> Iterator[bytes]:
        source = iter_bytes(*args, **keywords)
        try:
            while True:
                tap.is_stepping = True
                try:
                    data = next(source)
                except StopIteration:
                    break
                except BaseException as e:
                    call.failed(e)
                    raise
                finally:
                    tap.is_stepping = False
                tap.data(data)
                yield data
        finally:
            source.close()
        call.finish(tap.end())

    def tapped_close() -> None:
        try:
            close()
        finally:
            tap.closed(sys._getframe(1).f_code.co_name)

    response.iter_bytes, response.close = tapped, tapped_close


def _atap(response: Any, call: Call) -> None:
    tap, aiter_bytes, aclose = _Tap(response, call), response.aiter_bytes, response.aclose

    async def tapped(*args: Any, **keywords: Any) -> AsyncIterator[bytes]:
        source = aiter_bytes(*args, **keywords)
        try:
            while True:
                tap.is_stepping = True
                try:
                    data = await anext(source)
                except StopAsyncIteration:
                    break
                except BaseException as e:
                    call.failed(e)
                    raise
                finally:
                    tap.is_stepping = False
                tap.data(data)
                yield data
        finally:
            await source.aclose()
        await call.afinish(tap.end())

    async def tapped_close() -> None:
        try:
            await aclose()
        finally:
            tap.closed(sys._getframe(1).f_code.co_name)

    response.aiter_bytes, response.aclose = tapped, tapped_close
