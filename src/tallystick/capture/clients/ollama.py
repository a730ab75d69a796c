"""The ``ollama`` package: ``Client._request``, ``AsyncClient._request`` and ``_request_raw``, which every method goes through,
also the functions of the module that others imported long ago.

The parts of an answer are seen as the server sent them: the class that the client would make of each is replaced by one that
looks and then makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import AuditError
from .. import ends
from ..bearer import bear
from ..calls import Call
from ..recorder import Recorder
from ..servers import LOOK_UP_S
from ..steps import WatchedAsyncGenerator, WatchedGenerator
from ..wire import ollama as wire
from ..wire.asked import Asked
from .hooks import as_method, hook_one, is_hooked, joined, original_of, version_of

_HOOKED = ("_request", "_request_raw")
_instrumented: list[Any] = []  # the recorder of ``instrument``, if any


def wrap(recorder: Recorder, client: Any) -> Any:
    """Hook one client."""
    import ollama

    hooks = _async_hooks if isinstance(client, ollama.AsyncClient) else _hooks
    for name, hook in hooks(lambda: recorder, "wrap").items():
        hook_one(client, name, hook)
    return client


def instrument(recorder: Recorder) -> None:
    """Hook the classes."""
    import ollama

    _instrumented[:] = [recorder]
    for kind, hooks in ((ollama.Client, _hooks), (ollama.AsyncClient, _async_hooks)):
        for name, hook in hooks(lambda: _instrumented[0], "instrument").items():
            original = getattr(kind, name)
            if not is_hooked(original):
                setattr(kind, name, as_method(original, hook))


def uninstrument() -> None:
    """Unhook the classes."""
    import ollama

    for kind in (ollama.Client, ollama.AsyncClient):
        for name in _HOOKED:
            setattr(kind, name, original_of(getattr(kind, name)))
    _instrumented.clear()


class _Seen:
    """Stands for the class that the client makes of each part: looks at the part, then makes it. Everything else is the class."""

    def __init__(self, kind: Any, call: Call) -> None:
        self._kind, self._feed = kind, call.feed

    def __call__(self, *args: Any, **part: Any) -> Any:
        self._feed(part)
        return self._kind(*args, **part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)


def _call(
    recorder: Recorder, client: Any, capture: str, args: tuple[Any, ...], keywords: Mapping[str, Any], *, stream: bool
) -> Call | None:
    """The call that ``_request(cls, method, path, json=…)`` makes, if it is one."""
    path = args[1] if len(args) > 1 else keywords.get("url", "")
    body = keywords.get("json")
    asked = wire.read_request(path, body) if isinstance(path, str) and isinstance(body, Mapping) else None
    if asked is None:
        return None
    if asked.operation != "embeddings":
        asked.stream = stream
    return Call(recorder, asked, _reader(asked), capture=capture, endpoint=_endpoint(client, path), client=version_of("ollama"))


def _reader(asked: Asked) -> Any:
    return wire.read_admin if asked.admin else wire.read_answer


def _endpoint(client: Any, path: str) -> str:
    return joined(str(getattr(client._client, "base_url", "")), path)


def _hooks(recorder: Callable[[], Recorder], capture: str) -> dict[str, Callable[..., Any]]:
    def request(client: Any, original: Any, cls: Any, *args: Any, stream: bool = False, **keywords: Any) -> Any:
        call = _call(recorder(), client, capture, args, keywords, stream=stream)
        if call is None:
            return original(cls, *args, stream=stream, **keywords)
        seen = _Seen(cls, call)
        if stream:
            call.recorder.expect_late()
            watched = WatchedGenerator(original(seen, *args, stream=True, **keywords), _Watcher(call, client))
            call.recorder.open_calls.add(call)
            bear(watched, call.event_id)
            return watched
        try:
            call.begin()
            answer = original(seen, *args, stream=False, **keywords)
        except BaseException as e:
            call.failed(e)
            raise
        try:
            _look_up(call, client)
        finally:  # interrupted or not: the answer is here, and that is what its entry says
            _ended(call, answer)
        return answer

    def request_raw(client: Any, original: Any, *args: Any, **keywords: Any) -> Any:
        call = _raw_call(recorder(), client, capture, args, keywords)
        if call is None:
            return original(*args, **keywords)
        try:
            call.begin()
            response = original(*args, **keywords)
        except BaseException as e:
            call.failed(e)
            raise
        call.finish(ends.OK, status=response.status_code)
        return response

    return {"_request": request, "_request_raw": request_raw}


def _raw_call(recorder: Recorder, client: Any, capture: str, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Call | None:
    """Copy and delete, which do not go through ``_request``; what does has been seen there."""
    path = args[1] if len(args) > 1 else ""
    return _call(recorder, client, capture, args, keywords, stream=False) if path in ("/api/copy", "/api/delete") else None


def _read(call: Call, answer: Any) -> str:
    """A whole answer was made: how it ended."""
    if not call.answer.chunks:  # a client that makes its answers in another way: read what it made
        call.feed(answer.model_dump() if hasattr(answer, "model_dump") else {})
    call.delivered = 1
    bear(answer, call.event_id)
    return ends.OK if call.asked.admin and call.answer.error is None else call.source_ended()


def _ended(call: Call, answer: Any) -> None:
    """On record, then handed over."""
    end = _read(call, answer)
    try:
        call.finish(end)
    except AuditError as e:
        e.result = answer
        raise


class _Watcher:
    """Tells a call what becomes of its stream."""

    __slots__ = ("call", "client")

    def __init__(self, call: Call, client: Any) -> None:
        self.call, self.client = call, client

    def began(self) -> None:
        self.call.begin()

    def item(self) -> None:
        self.call.delivered += 1

    def ended(self) -> None:
        try:
            _look_up(self.call, self.client)
        finally:
            self.call.finish(self.call.source_ended())

    def failed(self, error: BaseException) -> None:
        self.call.failed(error)

    def closed(self, *, began: bool) -> None:
        self.call.finish(ends.CLOSED if began else ends.NOT_SENT)

    def dropped(self) -> None:
        self.call.abandon()


class _AsyncWatcher(_Watcher):
    async def began(self) -> None:  # type: ignore[override]
        await self.call.abegin()

    async def ended(self) -> None:  # type: ignore[override]
        end = self.call.source_ended()
        try:
            await _alook_up(self.call, self.client)
        except BaseException:
            self.call.finish(end)
            raise
        await self.call.afinish(end)


def _async_hooks(recorder: Callable[[], Recorder], capture: str) -> dict[str, Callable[..., Any]]:
    async def request(client: Any, original: Any, cls: Any, *args: Any, stream: bool = False, **keywords: Any) -> Any:
        call = _call(recorder(), client, capture, args, keywords, stream=stream)
        if call is None:
            return await original(cls, *args, stream=stream, **keywords)
        seen = _Seen(cls, call)
        if stream:
            call.recorder.expect_late()
            inner = await original(seen, *args, stream=True, **keywords)
            watched = WatchedAsyncGenerator(inner, _AsyncWatcher(call, client))
            call.recorder.open_calls.add(call)
            bear(watched, call.event_id)
            return watched
        try:
            await call.abegin()
            answer = await original(seen, *args, stream=False, **keywords)
        except BaseException as e:
            call.failed(e)
            raise
        end = _read(call, answer)
        try:
            await _alook_up(call, client)
        except BaseException:
            call.finish(end)
            raise
        try:
            await call.afinish(end)
        except AuditError as e:
            e.result = answer
            raise
        return answer

    async def request_raw(client: Any, original: Any, *args: Any, **keywords: Any) -> Any:
        call = _raw_call(recorder(), client, capture, args, keywords)
        if call is None:
            return await original(*args, **keywords)
        try:
            await call.abegin()
            response = await original(*args, **keywords)
        except BaseException as e:
            call.failed(e)
            raise
        call.finish(ends.OK, status=response.status_code)
        return response

    return {"_request": request, "_request_raw": request_raw}


# -- the digest of a model: a tag can be moved, a digest cannot ---------------------------------------------------------


def _look_up(call: Call, client: Any) -> None:
    if call.recorder.servers.is_due(call):
        call.recorder.servers.learn(call, _get(client, "/api/tags"), _get(client, "/api/version"))
    call.recorder.servers.tell(call)


async def _alook_up(call: Call, client: Any) -> None:
    if call.recorder.servers.is_due(call):
        call.recorder.servers.learn(call, await _aget(client, "/api/tags"), await _aget(client, "/api/version"))
    call.recorder.servers.tell(call)


def _get(client: Any, path: str) -> Any:
    """JSON of the same server by the same connection; None for whatever goes wrong."""
    try:
        return client._client.get(path, timeout=LOOK_UP_S).json()
    except Exception:  # noqa: BLE001  # it is not the call of anybody
        return None


async def _aget(client: Any, path: str) -> Any:
    try:
        return (await client._client.get(path, timeout=LOOK_UP_S)).json()
    except Exception:  # noqa: BLE001
        return None
