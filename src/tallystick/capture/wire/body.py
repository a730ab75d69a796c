"""From the bytes of a response body to the objects that a reader understands, in whatever pieces they arrive.

Three grammars, chosen by the media type: one JSON document, NDJSON (one object a line, LF or CRLF), and the event stream of HTML
§9.2.6 (``data:`` lines, comments, an empty line ends an event; ``[DONE]`` ends an OpenAI stream). Bytes that do not fit are no error
here: ``end()`` says that the answer is not whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from .answer import Answer

DOCUMENT_BYTES_MAX = 64 << 20
LINE_BYTES_MAX = 16 << 20
PIECES_MAX = 64
INFLATED_BYTES_MAX = 256 << 20
_PIECE_BYTES = 1 << 20
_decode = msgspec.json.Decoder().decode


class Body:
    """``read(part)`` is called for each object. ``content_type`` and ``encoding`` are those of the response."""

    def __init__(self, content_type: str, read: Callable[[Mapping[str, Any]], None], encoding: str = "") -> None:
        kind = content_type.partition(";")[0].strip().lower()
        self._read = read
        self._kind = "sse" if kind == "text/event-stream" else "ndjson" if "ndjson" in kind or "jsonl" in kind else "json"
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._inflate = _decoder(encoding)
        self._later: list[bytes] = []
        self.is_done = False  # ``[DONE]`` was seen
        self.unreadable = False  # something in it is not what it should be
        self.bytes = 0

    @property
    def is_stream(self) -> bool:
        """Objects one after the other, rather than one document."""
        return self._kind != "json"

    def feed_later(self, data: bytes) -> None:
        """The next bytes, read together with others: in a third of the time, and only a few are held."""
        self._later.append(data)
        if len(self._later) >= PIECES_MAX:
            self.catch_up()

    def catch_up(self) -> None:
        """Read what was put off."""
        if self._later:
            data = b"".join(self._later)
            self._later.clear()
            self.feed(data)

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        if self._later:
            self._later.append(data)
            self.catch_up()
            return
        self.bytes += len(data)
        if self._inflate is None:
            self._take(data)
            return
        try:
            for piece in self._inflate(data):
                self._take(piece)
        except Exception:  # noqa: BLE001  # each decoder has errors of its own
            self.unreadable = True

    def _take(self, data: bytes) -> None:
        if self._kind == "json":
            if len(self._rest) + len(data) > DOCUMENT_BYTES_MAX:
                self.unreadable = True
            else:
                self._rest += data
            return
        rest = self._rest
        if b"\n" not in data:
            rest += data
            if len(rest) > LINE_BYTES_MAX:
                self.unreadable = True
                rest.clear()
            return
        if rest:
            rest += data
            data = bytes(rest)
            rest.clear()
        lines = data.split(b"\n")
        rest += lines.pop()
        if len(rest) > LINE_BYTES_MAX:
            self.unreadable = True
            rest.clear()
        line_of = self._event_line if self._kind == "sse" else self._object
        for line in lines:
            line_of(line[:-1] if line.endswith(b"\r") else line)

    def end(self) -> None:
        """No more bytes will come."""
        self.catch_up()
        rest = bytes(self._rest)
        self._rest.clear()
        if self._kind == "sse":
            if rest:
                self._event_line(rest.rstrip(b"\r"))
            self._event_line(b"")
        elif rest.strip() or (self._kind == "json" and self.bytes):
            self._object(rest)

    def settle(self, answer: Answer) -> None:
        """No more bytes will come, and ``answer`` read them: whether it is whole. Ollama says ``done``; a stream of OpenAI ends with
        ``[DONE]``, or without it by a server that has at least said why it stopped; a document is whole when it can be read."""
        self.end()
        if self._kind == "sse":
            answer.whole = answer.whole or self.is_done or answer.finish_reason is not None
        if self.unreadable:
            answer.whole = False

    def _event_line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            self._data_bytes += len(line)
            if self._data_bytes > LINE_BYTES_MAX:
                self.unreadable = True
                self._data.clear()
                self._data_bytes = 0
        elif not line and self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            self._data.clear()
            self._data_bytes = 0
            if data.startswith(b"[DONE]"):
                self.is_done = True
            else:
                self._object(data)

    def _object(self, text: bytes) -> None:
        if not text.strip():
            return
        try:
            part = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unreadable = True
            return
        if isinstance(part, dict):
            self._read(part)
        else:
            self.unreadable = True


def _decoder(encoding: str) -> Callable[[bytes], Iterator[bytes]] | None:
    """For the side that reads bytes as they went over the wire: what they inflate to, in pieces of a megabyte at most, and not more
    than ``INFLATED_BYTES_MAX`` in all. An encoding that is not known here leaves the body unread."""
    word = encoding.strip().lower()
    if word in ("", "identity"):
        return None
    return _Inflate(word)


class _Inflate:
    """gzip, deflate or zstd, member after member."""

    def __init__(self, word: str) -> None:
        self._word, self._left = word, INFLATED_BYTES_MAX
        self._one: Any = None

    def __call__(self, data: bytes) -> Iterator[bytes]:
        while data or (self._one is not None and not self._needs_input()):
            if self._one is None:
                self._one = self._new()
            piece, data = self._step(data)
            self._left -= len(piece)
            if self._left < 0:
                raise ValueError("too much")
            if piece:
                yield piece
            if self._one is not None and self._one.eof:
                data, self._one = self._one.unused_data or data, None
            elif not piece and not data:
                return

    def _new(self) -> Any:
        if self._word in ("gzip", "x-gzip", "deflate"):
            return zlib.decompressobj(zlib.MAX_WBITS | 32)
        if self._word == "zstd":
            from backports import zstd

            return zstd.ZstdDecompressor()
        raise ValueError(self._word)

    def _needs_input(self) -> bool:
        return not getattr(self._one, "unconsumed_tail", b"") and bool(getattr(self._one, "needs_input", True))

    def _step(self, data: bytes) -> tuple[bytes, bytes]:
        one = self._one
        if self._word == "zstd":
            return one.decompress(data, max_length=_PIECE_BYTES), b""
        piece = one.decompress(data, _PIECE_BYTES)
        return piece, one.unconsumed_tail
