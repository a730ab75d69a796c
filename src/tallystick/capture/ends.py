"""How a call to a model ended, in one word, and what an exception says about it.

=================  ==================================================================================================
``ok``             the server finished its answer and the caller has all of it
``truncated``      the answer ended, but not in its own grammar (no ``done``, unreadable JSON)
``abandoned``      the caller dropped the stream
``closed``         the caller closed the stream
``cancelled``      the caller's task was cancelled, or interrupted
``timeout``        the server was too slow for the caller
``cut``            the connection broke
``mid_stream_error``  the server said ``error`` after its status had said all is well
``http_error``     the server answered with an error status
``refused``        no connection
``not_sent``       nothing was sent: the stream was never read, or the request could not be made
=================  ==================================================================================================
"""

from __future__ import annotations

OK, TRUNCATED, ABANDONED, CLOSED, CANCELLED = "ok", "truncated", "abandoned", "closed", "cancelled"
TIMEOUT, CUT, MID_STREAM_ERROR = "timeout", "cut", "mid_stream_error"
HTTP_ERROR, REFUSED, NOT_SENT = "http_error", "refused", "not_sent"
ENDS = (OK, TRUNCATED, ABANDONED, CLOSED, CANCELLED, TIMEOUT, CUT, MID_STREAM_ERROR, HTTP_ERROR, REFUSED, NOT_SENT)
_ALWAYS_FAILURE = frozenset([HTTP_ERROR, REFUSED, NOT_SENT])
_BY_NAME = {
    # httpx, httpx2, openai, aiohttp and the standard library, by the names of their classes: none of them is imported for this
    "TimeoutException": TIMEOUT, "APITimeoutError": TIMEOUT, "TimeoutError": TIMEOUT, "Timeout": TIMEOUT,
    "ConnectError": REFUSED, "ConnectionRefusedError": REFUSED, "ConnectionResetError": CUT, "BrokenPipeError": CUT,
    "RemoteProtocolError": CUT, "ReadError": CUT, "CloseError": CUT, "WriteError": CUT, "IncompleteRead": CUT,
    "DecodingError": TRUNCATED,
    "LocalProtocolError": NOT_SENT, "UnsupportedProtocol": NOT_SENT, "InvalidURL": NOT_SENT, "PoolTimeout": NOT_SENT,
    "ProxyError": REFUSED, "JSONDecodeError": TRUNCATED, "ValidationError": TRUNCATED, "UnicodeDecodeError": TRUNCATED,
    "CancelledError": CANCELLED, "KeyboardInterrupt": CANCELLED, "SystemExit": CANCELLED, "GeneratorExit": CLOSED,
    "ConnectionError": REFUSED,
}  # fmt: skip


def outcome_of(end: str, *, delivered: bool) -> str:
    """The outcome of the entry. ``delivered``: some of the answer reached the caller."""
    if end == OK:
        return "success"
    return "partial" if delivered and end not in _ALWAYS_FAILURE else "failure"


def end_of(error: BaseException, *, answered: bool) -> tuple[str, int | None]:
    """The word for an exception, and the status of the response where there was one. ``answered``: a part of an answer had come."""
    status = _status(error)
    if status is not None and status >= 400:
        return HTTP_ERROR, status
    for kind in type(error).__mro__:
        if kind.__name__ in ("PoolTimeout",):
            return NOT_SENT, None
        word = _BY_NAME.get(kind.__name__)
        if word is not None:
            return (CUT if word == REFUSED and answered else word), None
    names = {kind.__name__ for kind in type(error).__mro__}
    if "APIConnectionError" in names and error.__cause__ is not None:
        return end_of(error.__cause__, answered=answered)
    if names & {"ResponseError", "APIError"}:  # an error inside a stream whose status was 200
        return MID_STREAM_ERROR, None
    return (MID_STREAM_ERROR if answered else NOT_SENT), None


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if type(status) is int and 100 <= status < 600 else None
