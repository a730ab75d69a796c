"""What a writer and ``tally keyd`` say to each other over a Unix socket: one request and one answer per connection.

::

    u32 length, big-endian, 1..65,536 || one JSON object, exactly as msgspec encodes it

A request names an operation of ``keys.Custody`` or asks for the last head; no answer ever holds a private key.
"""

from __future__ import annotations

import socket
import struct
import time

import msgspec

from ..core.errors import Malformed

FRAME_BYTES_MAX = 1 << 16
PROOF_MAX = 63


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``op``: ``head``, ``key``, ``sign``, ``prepare``, ``numbers`` or ``destroy``. ``number``: of the epoch. ``size``, ``root`` and
    ``proof``, a consistency proof from the last head that the daemon signed: of ``sign`` only."""

    op: str
    origin: str
    number: int = 0
    size: int = 0
    root: bytes = b""
    proof: tuple[bytes, ...] = ()


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``error`` is empty where it was done; ``missing``: there is no such key. ``size``, ``root``: the last head that was signed,
    also where a request was refused for not extending it. ``text``: a vkey or a note."""

    error: str = ""
    missing: bool = False
    text: str = ""
    numbers: tuple[int, ...] = ()
    size: int = 0
    root: bytes = b""


def encode(message: Request | Answer) -> bytes:
    """The frame."""
    body = msgspec.json.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise Malformed("a message of more than 64 KiB")
    return struct.pack(">I", len(body)) + body


def receive(connection: socket.socket, kind: type[Request] | type[Answer], timeout_s: float) -> Request | Answer:
    """One frame, within ``timeout_s`` in all. ``Malformed`` for what is none, ``OSError`` where the other side ends or is slow."""
    until = time.monotonic() + timeout_s
    (length,) = struct.unpack(">I", _exactly(connection, 4, until))
    if not 0 < length <= FRAME_BYTES_MAX:
        raise Malformed("a frame has 1 to 65,536 bytes")
    body = _exactly(connection, length, until)
    try:
        message = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"not a message: {e}") from None
    if msgspec.json.encode(message) != body:
        raise Malformed("not the one spelling of a message")
    return message


def _exactly(connection: socket.socket, count: int, until: float) -> bytes:
    data = b""
    while len(data) < count:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("too slow")
        connection.settimeout(left)
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionResetError("the other side ended")
        data += part
    return data
