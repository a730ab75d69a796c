"""A server that speaks as much Ollama as the demo asks for and answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Ollama(ThreadingHTTPServer):
    """``answer(request) -> text``; it may raise ``Refused``. ``models`` is what /api/tags lists."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = [{"model": "tiny:1b", "name": "tiny:1b", "digest": "d" * 64, "size": 1}]
        self.asked = []
        self.answer = lambda request: '{"reason": "r", "category": "other", "amount": null, "confidence": "high"}'

    @property
    def host(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Refused(Exception):
    """Answered with an error of this status; 0 hangs up."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._send({"models": self.server.models} if self.path == "/api/tags" else {"version": "0"})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(request)
        try:
            text = self.server.answer(request)
        except Refused as e:
            if e.status:
                self._send({"error": "told to fail"}, e.status)
            return
        self._send({"model": request["model"], "created_at": "2026-11-24T08:00:00Z", "done": True,
                    "message": {"role": "assistant", "content": text}})  # fmt: skip

    def _send(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def ollama():
    server = Ollama()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
