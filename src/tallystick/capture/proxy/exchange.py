"""One request through the proxy and its answer back.

The order, and what is on record if we die after each step:

1. the request is read; what is a call to a model is recorded, durably   → a request without an end: visible
2. it is forwarded, byte by byte as it came; its answer comes back as it comes
3. the end is recorded before the last byte of the framing leaves         → whoever saw a whole answer has it on record

Whoever goes away breaks off the other side: a client that leaves stops the model, a server that breaks is seen as broken.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import h11

from ...core.errors import CallBlocked
from .. import ends
from ..calls import Call
from ..claims import read_claims, read_trace
from ..recorder import Recorder
from ..servers import LOOK_UP_S
from ..wire import ollama, openai
from ..wire.asked import Asked
from ..wire.asked import name as asked_name
from ..wire.body import Body
from .sides import HEAD_BYTES_MAX, Gone, Side, Upstream

REQUEST_BYTES_MAX = 256 << 20
LOOK_UP_BYTES_MAX = 4 << 20
_HOP_BY_HOP = frozenset([b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
                         b"trailer", b"upgrade"])  # fmt: skip
Headers = list[tuple[bytes, bytes]]


class Exchange:
    """``client`` sent ``request``; its body is still to be read."""

    def __init__(
        self, recorder: Recorder, upstream: Upstream, client: Side, request: h11.Request, is_alone: Callable[[], bool]
    ) -> None:
        self.recorder, self.upstream, self.client, self.request = recorder, upstream, client, request
        # nobody else waits for the loop: recording in it costs two switches of threads less than handing it over
        self._is_alone = is_alone
        self.call: Call | None = None
        self.body: Body | None = None
        self.server: Side | None = None

    async def run(self) -> None:
        """From the request's body to the end of its answer. Afterwards the client's connection is at the end of a message, or
        broken."""
        target = self.request.target.decode("ascii", "replace").partition("?")[0]
        pieces: list[Any] = []
        why = unclear(self.request)
        if why is not None:
            await refuse(self.client, *why)
            return
        if self.request.method in (b"POST", b"PUT", b"PATCH", b"DELETE") and is_model_path(target):
            data, pieces = await self._whole_body()
            if data is None:
                await refuse(self.client, 413, "the request is too large to be recorded, and was not forwarded")
                return
            self._read_request(target, data)
        if self.call is not None:
            try:
                if self._is_alone():
                    self.call.begin()
                else:
                    await self.call.abegin()
            except CallBlocked as e:
                await refuse(self.client, 503, str(e))
                return
        try:
            await self._forward(pieces)
        except BaseException as e:
            if self.call is not None:
                self.call.failed(e)
            raise

    async def _whole_body(self) -> tuple[bytes | None, list[Any]]:
        events, data = [], bytearray()
        while True:
            event = await self._next_of_request()
            events.append(event)
            if isinstance(event, h11.EndOfMessage):
                return bytes(data), events
            data += event.data
            if len(data) > REQUEST_BYTES_MAX:
                return None, events

    async def _next_of_request(self) -> Any:
        if self.client.h11.they_are_waiting_for_100_continue:
            await self.client.send(h11.InformationalResponse(status_code=100, headers=[]))
        event = await self.client.event()
        if isinstance(event, h11.ConnectionClosed):
            raise Gone
        return event

    def _read_request(self, target: str, data: bytes) -> None:
        """What is no call is none; what may be one and cannot be read is one all the same, and says so: a server may read it."""
        given = read_body(data, _header(self.request.headers, b"content-encoding"))
        asked = read_request(target, given) if given is not None else unread_request(target, data)
        if asked is None:
            return
        headers: dict[str, list[str]] = {}
        for name, value in self.request.headers:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        peer, trace = self.client.transport.get_extra_info("peername"), read_trace(headers)
        claims = read_claims(headers) | ({"trace_id": trace} if trace else {}) | ({"ip_address": peer[0]} if peer else {})
        read = ollama.read_admin if asked.admin else ollama.read_answer if asked.provider == ollama.PROVIDER else openai.read_answer
        agent = _header(self.request.headers, b"user-agent").decode("ascii", "replace")[:200]
        self.call = Call(
            self.recorder, asked, read, capture="proxy", endpoint=self.upstream.address.url + target, client=agent,
            claims=claims,
        )  # fmt: skip

    # -- there and back --------------------------------------------------------------------------------------------------

    async def _forward(self, pieces: list[Any]) -> None:
        """``pieces``: the events of the request's body, if it was read; else it is read and forwarded as it comes."""
        response: Any = None
        for fresh in (False, True):
            try:
                self.server, was_used = await self.upstream.connect(fresh=fresh)
            except OSError as e:
                await self._unreachable(e)
                return
            self.client.on_gone = self.server.abort
            if self._is_left():
                self.server.abort()
                self._ended(ends.ABANDONED)
                raise Gone
            if fresh and self.call is not None:
                self.call.attempts += 1
            try:
                await self._send_request(pieces)
                response = await self.server.event()
                if isinstance(response, h11.ConnectionClosed):
                    raise Gone
                break
            except Gone:
                self.server.abort()
                if self.client.is_gone:
                    self._ended(ends.ABANDONED)
                    raise
                # an idle connection that the server had closed meanwhile: nothing of this request was looked at
                if not was_used or not pieces:
                    await self._cut(502, "the model server closed the connection before it answered")
                    return
            except h11.RemoteProtocolError as e:
                self.server.abort()
                await self._cut(502, f"the model server does not speak HTTP: {e}")
                return
        while isinstance(response, h11.InformationalResponse):
            headers = _passed_on(response.headers)
            await self.client.send(h11.InformationalResponse(status_code=response.status_code, headers=headers))
            response = await self.server.event() if self.server else None
        try:
            await self._answer(response)
        except Gone:
            assert self.server is not None
            self.server.abort()
            self._ended(ends.ABANDONED if self.client.is_gone else ends.CUT)
            self.client.abort()
            raise
        except h11.RemoteProtocolError as e:
            assert self.server is not None
            self.server.abort()
            self._ended(ends.CUT, e)
            self.client.abort()
            raise Gone from None

    def _is_left(self) -> bool:
        """The client went away meanwhile."""
        return self.client.is_gone

    async def _send_request(self, pieces: list[Any]) -> None:
        server, address = self.server, self.upstream.address
        assert server is not None
        headers = _passed_on(self.request.headers)
        if not address.is_here:  # a server elsewhere is found by its name; one here sees the name by which its client called
            headers = [(n, v) for n, v in headers if n != b"host"] + [(b"host", address.authority.encode())]
        target = address.path.encode() + self.request.target
        if not any(n == b"host" for n, _ in headers):  # HTTP/1.0 has none, HTTP/1.1 must have one
            headers.append((b"host", address.authority.encode()))
        request = h11.Request(method=self.request.method, target=target, headers=headers)
        if pieces:
            await server.send(request, *pieces)
            return
        await server.send(request)
        while True:
            event = await self._next_of_request()
            await server.send(event)
            if isinstance(event, h11.EndOfMessage):
                return

    async def _answer(self, response: h11.Response) -> None:
        server, call = self.server, self.call
        assert server is not None
        headers = _passed_on(response.headers)
        if call is not None:
            call.status = response.status_code
            headers.append((b"x-audit-event-id", call.event_id.encode()))
            self.body = Body(_header(response.headers, b"content-type").decode("ascii", "replace"), call.feed,
                             _header(response.headers, b"content-encoding").decode("ascii", "replace"))  # fmt: skip
            call.catch_up = self.body.catch_up
        # what is here already goes out in one write; nothing waits for what is still to come
        ready: list[Any] = [h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)]
        left = _length(response.headers)
        while True:
            event = server.event_now()
            if event is None:
                await self.client.send(*ready)
                ready.clear()
                event = await server.event()
            if isinstance(event, h11.Data):
                data = bytes(event.data)
                if self.body is not None and call is not None:
                    (self.body.feed_later if call.has_begun_to_answer else self.body.feed)(data)
                    call.delivered += 1
                    left = None if left is None else left - len(data)
                    if left == 0:  # its client has all of it with these bytes
                        await self._finish(response.status_code)
                ready.append(h11.Data(data=data))
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise Gone
        await self._finish(response.status_code)
        self.client.on_gone = None
        await self.client.send(*ready, h11.EndOfMessage())
        self.upstream.give_back(server)

    async def _finish(self, status: int) -> None:
        """The answer is all here: its end is recorded before the client can know it."""
        call = self.call
        if call is not None and self.body is not None and call.is_open:
            end = self._word(status)
            await self._look_up(call)
            if self._is_alone():
                call.finish(end)
            else:
                await call.afinish(end)

    def _word(self, status: int) -> str:
        call, body = self.call, self.body
        assert call is not None and body is not None
        body.settle(call.answer)
        if status >= 400:
            return ends.HTTP_ERROR
        if (call.asked.admin or call.asked.provider == OTHER) and call.answer.error is None:
            return ends.OK  # all of it came; what it means no reader here knows
        return call.source_ended()

    def _ended(self, end: str, error: BaseException | None = None) -> None:
        """Ended by somebody who went away. A client may do so as soon as it has seen the end of the answer, or nonsense."""
        if self.call is None:
            return
        if end == ends.ABANDONED and self.body is not None:
            self.body.catch_up()
            if self.body.is_done or self.call.answer.whole:
                self.body.settle(self.call.answer)
                end = self.call.source_ended()
            elif self.call.answer.error is not None:
                end = ends.MID_STREAM_ERROR
            elif self.body.unreadable:
                end = ends.TRUNCATED
        self.call.finish(end, error)

    async def _look_up(self, call: Call) -> None:
        servers = self.recorder.servers
        if servers.is_due(call):
            servers.learn(call, await self._get("/api/tags"), await self._get("/api/version"))
        servers.tell(call)

    async def _get(self, path: str) -> Any:
        """JSON of the server; None for whatever goes wrong: it is nobody's call."""
        try:
            async with asyncio.timeout(LOOK_UP_S):
                side, _ = await self.upstream.connect(fresh=True)
                try:
                    target = self.upstream.address.path + path
                    await side.send(h11.Request(method="GET", target=target, headers=[("host", self.upstream.address.authority)]),
                                    h11.EndOfMessage())  # fmt: skip
                    data = bytearray()
                    while len(data) < LOOK_UP_BYTES_MAX and not isinstance(event := await side.event(), h11.EndOfMessage):
                        data += event.data if isinstance(event, h11.Data) else b""
                    return json.loads(data)
                finally:
                    side.abort()
        except (OSError, Gone, h11.ProtocolError, ValueError, TimeoutError, RecursionError):
            return None

    async def _unreachable(self, error: OSError) -> None:
        if self.call is not None:
            await self.call.afinish(ends.REFUSED, error)
        why = f"the model server at {self.upstream.address.url} cannot be reached ({type(error).__name__})"
        await refuse(self.client, 502, why, self.call)

    async def _cut(self, status: int, why: str) -> None:
        if self.call is not None:
            await self.call.afinish(ends.CUT)
        await refuse(self.client, status, why, self.call)


def read_request(target: str, given: dict[str, Any]) -> Asked | None:
    """The facts of a request in either dialect; of one in another dialect, that it is one."""
    path = target.rstrip("/").lower()
    if path.startswith("/api/"):
        return ollama.read_request(path, given)
    if path.endswith(_KNOWN):
        return openai.read_request(path, given)
    asked = Asked(_operation(path), OTHER, unread=True, stream=given.get("stream") is True, content={"request": given})
    asked.model = asked_name(given.get("model"))
    return asked


def unclear(request: h11.Request) -> tuple[int, str] | None:
    """Status and reason for a request that two programs could read in two ways, or that is no request for a proxy like this."""
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        return 400, "a request has either a length or chunks"
    if len(request.target) + sum(len(n) + len(v) for n, v in request.headers) > HEAD_BYTES_MAX:
        return 431, "the head of the request is too large"
    path = request.target.partition(b"?")[0]
    if b"%" in path or b"//" in path or b"/./" in path or b"/../" in path or path.endswith((b"/.", b"/..")):
        return 400, "a path that can be written in a plainer way"
    if not request.target.startswith(b"/") and request.target != b"*":
        return 400, "the target of a request is a path"
    return None


OTHER = "other"  # an interface that no reader here knows: recorded by path and bytes
_OTHERS = {"/messages": "chat", "/completion": "text_completion", "/infill": "text_completion", "/rerank": "rerank",
           "/reranking": "rerank", "/transcriptions": "transcriptions", "/generations": "generations",
           "/speech": "speech"}  # fmt: skip
_KNOWN = ("/chat/completions", "/completions", "/embeddings", "/responses")


def is_model_path(target: str) -> bool:
    """A path whose requests may be calls, or change a model: only these are read before they are forwarded."""
    path = target.rstrip("/").lower()
    return (path.startswith("/api/") and not path.startswith("/api/blobs/")) or path.endswith((*_KNOWN, *_OTHERS))


def read_body(data: bytes, encoding: bytes) -> dict[str, Any] | None:
    """A request's body as lenient as a server may be: bytes that are no UTF-8, more behind the first value. None where that does not
    help."""
    word = encoding.decode("ascii", "replace").strip().lower()
    try:
        if word not in ("", "identity"):
            if word not in ("gzip", "x-gzip", "deflate"):
                return None
            one = zlib.decompressobj(zlib.MAX_WBITS | 32)
            data = one.decompress(data, REQUEST_BYTES_MAX)
            if one.unconsumed_tail:
                return None
        given, _ = json.JSONDecoder().raw_decode(data.decode("utf-8", "replace").lstrip("\ufeff \t\r\n"))
    except (ValueError, zlib.error, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def unread_request(target: str, data: bytes) -> Asked | None:
    """A call by its path alone."""
    path = target.rstrip("/").lower()
    if not path.startswith("/api/"):
        return Asked(_operation(path), OTHER, unread=True, content={"bytes": _digest(data)})
    if path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"):
        return Asked("embeddings" if "embed" in path else "chat", ollama.PROVIDER, unread=True, content={"bytes": _digest(data)})
    if path in ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"):
        return Asked(path[5:], ollama.PROVIDER, admin=True, unread=True)
    return None


def _operation(path: str) -> str:
    """In the words of the conventions where they have one."""
    known = {"/embeddings": "embeddings", "/chat/completions": "chat", "/completions": "text_completion", **_OTHERS}
    return next((operation for ending, operation in known.items() if path.endswith(ending)), "chat")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def refuse(client: Side, status: int, why: str, call: Call | None = None) -> None:
    """An answer of our own, in the shape that both kinds of clients read; the connection ends with it."""
    body = json.dumps({"error": why}).encode()
    is_head = client.h11.their_state is not h11.ERROR and getattr(client, "method", b"") == b"HEAD"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if call is not None:
        headers.append((b"x-audit-event-id", call.event_id.encode()))
    await client.send(h11.Response(status_code=status, headers=headers))
    if not is_head:
        await client.send(h11.Data(data=body))
    await client.send(h11.EndOfMessage())


def _length(headers: Any) -> int | None:
    value = _header(headers, b"content-length")
    return int(value) if value.isdigit() else None


def _header(headers: Any, name: bytes) -> bytes:
    return next((bytes(value) for key, value in headers if key == name), b"")


def _passed_on(headers: Any) -> Headers:
    """What is not for the next hop alone, nor for us."""
    named = {word.strip().lower() for key, value in headers if key == b"connection" for word in value.split(b",")}
    return [(key, value) for key, value in headers if key not in _HOP_BY_HOP and key not in named and not key.startswith(b"x-audit-")]
