"""Middleware for web applications, with the real Starlette, httpx and wsgiref."""

import contextlib
import contextvars
import io
import threading
import urllib.request
import wsgiref.simple_server
import wsgiref.util
import wsgiref.validate

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

from tallystick import AuditLogger
from tallystick.capture.claims import VALUE_CHARS_MAX, trace_id
from tallystick.capture.context import audit_context, current_context
from tallystick.capture.web import AuditASGIMiddleware, AuditWSGIMiddleware

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
CLAIMS = {"X-Audit-Session": "s-1", "X-Audit-Case": "C-1", "X-Audit-Actor": "ana", "traceparent": TRACEPARENT}
CLAIMED = {"session_id": "s-1", "correlation_id": "C-1", "actor": "ana", "actor_type": "user", "trace_id": TRACE}
ADDRESS = {"ip_address": "203.0.113.7"}


# -- ASGI ------------------------------------------------------------------------------------------------------------------


async def shown(request):
    return JSONResponse(dict(current_context()))


def shown_by_a_thread(request):
    return JSONResponse(dict(current_context()))


async def streamed(request):
    async def parts():
        for _ in range(2):
            yield current_context().get("actor", "nobody") + ";"

    return StreamingResponse(parts())


async def socket(websocket):
    await websocket.accept()
    await websocket.receive_text()
    await websocket.send_json(dict(current_context()))
    await websocket.close()


async def through(request, call_next):
    return await call_next(request)


ROUTES = [Route("/", shown), Route("/thread", shown_by_a_thread), Route("/stream", streamed), WebSocketRoute("/socket", socket)]


@contextlib.contextmanager
def asgi(**options):
    app = Starlette(routes=ROUTES, middleware=[Middleware(BaseHTTPMiddleware, dispatch=through)])  # runs the rest in another task
    with TestClient(AuditASGIMiddleware(app, **options), client=("203.0.113.7", 50000)) as client:
        yield client
    assert dict(current_context()) == {}


@pytest.mark.parametrize("path", ["/", "/thread"])
def test_a_request_has_its_address_and_its_trace_and_nothing_that_a_stranger_claims(path):
    with asgi() as client:
        assert client.get(path, headers=CLAIMS).json() == {**ADDRESS, "trace_id": TRACE}


@pytest.mark.parametrize("path", ["/", "/thread"])
def test_claims_are_believed_where_headers_are_trusted(path):
    with asgi(trust_headers=True) as client:
        assert client.get(path, headers=CLAIMS).json() == {**ADDRESS, **CLAIMED}
        assert client.get(path).json() == ADDRESS  # nothing is left of the request before


def test_the_body_of_a_response_is_streamed_in_the_context():
    with asgi(trust_headers=True) as client:
        assert client.get("/stream", headers=CLAIMS).text == "ana;ana;"


def test_a_websocket_has_the_context_as_long_as_it_is_open():
    with asgi(trust_headers=True) as client, client.websocket_connect("/socket", headers=CLAIMS) as connection:
        connection.send_text("hello")
        assert connection.receive_json() == {**ADDRESS, **CLAIMED}


def test_the_application_says_who_acts_and_counts_before_a_header():
    with asgi(trust_headers=True, actor=lambda scope: {"/": "bob"}.get(scope["path"])) as client:
        assert client.get("/", headers=CLAIMS).json()["actor"] == "bob"
        assert client.get("/thread", headers=CLAIMS).json()["actor"] == "ana"
        assert "actor" not in client.get("/thread").json()


def test_an_actor_that_is_no_text_is_an_error_of_the_application():
    with asgi(actor=lambda scope: 7) as client, pytest.raises(TypeError, match="int"):
        client.get("/")


def test_what_cannot_stand_in_an_entry_is_dropped():
    bad = [b"a\x1bb", "a\u202eb".encode(), "a\u2028b".encode(), b"", b"  ", b"x" * (VALUE_CHARS_MAX + 1), b"a\x7f"]
    with asgi(trust_headers=True) as client:
        for value in bad:
            assert client.get("/", headers={"X-Audit-Actor": value}).json() == ADDRESS, value
        assert client.get("/", headers={"X-Audit-Actor": "Jürgen Groß".encode()}).json()["actor"] == "Jürgen Groß"
        assert client.get("/", headers={"X-Audit-Actor": b"J\xfcrgen"}).json()["actor"] == "Jürgen"
        assert client.get("/", headers=[("X-Audit-Actor", "ana"), ("X-Audit-Actor", "bob")]).json() == ADDRESS
        assert client.get("/", headers=[("traceparent", TRACEPARENT)] * 2).json() == ADDRESS


@pytest.mark.parametrize("client", [None, ("testclient", 1), ("", 0), ("203.0.113.7\n", 1)])
def test_what_is_no_address_is_none(client):
    seen = []

    async def app(scope, receive, send):
        seen.append(dict(current_context()))

    with pytest.raises(StopIteration):
        AuditASGIMiddleware(app)({"type": "http", "client": client}, None, None).send(None)
    assert seen == [{}]


def test_the_context_is_gone_when_the_application_fails():
    async def app(scope, receive, send):
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        AuditASGIMiddleware(app)({"type": "http", "client": ("::1", 1)}, None, None).send(None)
    assert dict(current_context()) == {}


def test_what_is_recorded_while_a_request_is_served_says_for_whom(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:

        def page(request):
            log.log("data_access", "service", "service", "crm", "read customer")
            return JSONResponse({})

        app = AuditASGIMiddleware(Starlette(routes=[Route("/", page)]), trust_headers=True)
        with TestClient(app, client=("203.0.113.7", 1)) as client:
            client.get("/", headers=CLAIMS)
        [row] = log.query()
        assert (row["ip_address"], row["session_id"], row["correlation_id"], row["trace_id"]) == ("203.0.113.7", "s-1", "C-1", TRACE)


@pytest.mark.parametrize(
    ("traceparent", "found"),
    [
        (TRACEPARENT, TRACE), (f"cc-{TRACE}-00f067aa0ba902b7-01-what-comes", TRACE), (f"cc-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", None), (f"ff-{TRACE}-00f067aa0ba902b7-01", None), (TRACEPARENT.upper(), None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None), (f"00-{TRACE}-{'0' * 16}-01", None), (f"{TRACEPARENT}\n", None), ("", None),
        (None, None), (7, None), (f"00-{TRACE}-00f067aa0ba902b7-0١", None),
    ],
)  # fmt: skip
def test_the_trace_of_a_traceparent(traceparent, found):
    assert trace_id(traceparent) == found


# -- WSGI ------------------------------------------------------------------------------------------------------------------


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args):
        pass


def serve_once(app, headers):
    """One request by a real socket."""
    with wsgiref.simple_server.make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/", headers=headers)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.headers, answer.read().decode()
        finally:
            thread.join()


def lazily(environ, start_response):
    """An application of which nothing runs before its body is iterated."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(2):
        yield f"{current_context().get('actor')} {current_context().get('ip_address')};".encode()


def test_a_wsgi_body_is_iterated_in_the_context():
    app = wsgiref.validate.validator(AuditWSGIMiddleware(wsgiref.validate.validator(lazily), trust_headers=True))
    assert serve_once(app, CLAIMS)[1] == "ana 127.0.0.1;" * 2
    assert serve_once(AuditWSGIMiddleware(lazily), CLAIMS)[1] == "None 127.0.0.1;" * 2
    assert (
        serve_once(AuditWSGIMiddleware(lazily, actor=lambda environ: "bob of " + environ["REQUEST_METHOD"]), {})[1]
        == "bob of GET 127.0.0.1;" * 2
    )


def environ(**more):
    found = {
        "REMOTE_ADDR": "203.0.113.7",
        **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in CLAIMS.items()},
        **more,
    }
    wsgiref.util.setup_testing_defaults(found)
    return found


def test_nothing_is_left_in_the_thread_between_two_steps():
    seen = []

    class Body:
        def __iter__(self):
            seen.append(dict(current_context()))
            return iter([b"a"])

        def close(self):
            seen.append(dict(current_context()))

    body = AuditWSGIMiddleware(lambda environ, start_response: Body(), trust_headers=True)(environ(), None)
    for step in (lambda: next(body), body.close):  # each in a context of its own: a token that lived between them would be refused
        context = contextvars.Context()
        context.run(step)
        assert context.run(current_context) == {}
    assert list(body) == []
    assert seen == [{**ADDRESS, **CLAIMED}] * 2
    assert dict(current_context()) == {}


def test_what_the_application_set_around_a_yield_is_there_in_the_next_step():
    def app(environ, start_response):
        with audit_context(reason="export"):
            for _ in range(2):
                yield current_context()["reason"].encode()

    assert list(AuditWSGIMiddleware(app)(environ(), None)) == [b"export"] * 2


def test_bodies_that_run_no_code_stay_what_they_are():
    body = [b"whole"]
    assert AuditWSGIMiddleware(lambda *_: body)(environ(), None) is body
    file = wsgiref.util.FileWrapper(io.BytesIO(b"file"))
    assert AuditWSGIMiddleware(lambda *_: file)(environ(**{"wsgi.file_wrapper": wsgiref.util.FileWrapper}), None) is file

    def whole(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(current_context().get("session_id")).encode()]

    headers, text = serve_once(AuditWSGIMiddleware(whole, trust_headers=True), CLAIMS)
    assert (headers["Content-Length"], text) == ("3", "s-1")


def test_a_wsgi_header_is_read_as_its_sender_meant_it():
    app = AuditWSGIMiddleware(lambda *_: [current_context().get("actor")], trust_headers=True)
    assert app(environ(HTTP_X_AUDIT_ACTOR="Jürgen".encode().decode("latin-1")), None) == ["Jürgen"]
    assert app(environ(HTTP_X_AUDIT_ACTOR="a\x1bb"), None) == [None]
