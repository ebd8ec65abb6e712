"""Where a request comes from: its id, its protocol, and the trace that it is part of.

Every request has an id, the client's own where it sends one, so that a log line, a span and a
client's complaint can be brought together. Every reply of ours says it again, in `X-Request-ID`
(service/protocols/around.py). Trace context is W3C Trace Context (Recommendation of 2021): what
came is kept as it is, and what is malformed counts as absent. It is not echoed: the Recommendation
has no header for a reply, and whoever sent it knows it.

How long its client waits comes along too, in `X-Request-Timeout-Ms`, on every route, and for each
line or frame of a stream from when that was read; over gRPC it is the deadline, as everywhere
there, and under v2 also Triton's parameter `timeout`. The shortest counts.
"""

import re
import secrets
from collections.abc import Iterable

import msgspec

from service.errors import RequestError

REQUEST_ID = b"x-request-id"
TIMEOUT = b"x-request-timeout-ms"
# Characters that are safe in a header, a log line and a query; UUIDs, ULIDs and the ids of common
# proxies are. Another id is replaced by one of ours.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,127}\Z")
_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,11}")  # to 31 years
_MAX_TRACESTATE = 512  # bytes, which the Recommendation asks to carry at least


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Of one request."""

    request_id: str = ""
    protocol: str = ""  # predict, stream, ws, v2, grpc, ..; "" where code of this process asks
    traceparent: str | None = None
    tracestate: str | None = None
    timeout_s: float | None = None  # None: it is waited for as long as it takes

    def within(self, timeout_s: float | None) -> "Origin":
        """The same, with at most so much time."""
        if timeout_s is None or (self.timeout_s is not None and self.timeout_s <= timeout_s):
            return self
        return msgspec.structs.replace(self, timeout_s=timeout_s)


NOWHERE = Origin()


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The id that a request has; None if there is none that is safe to repeat."""
    for name, value in headers:
        if name == REQUEST_ID and _REQUEST_ID.match(value):
            return value
    return None


def new_request_id() -> bytes:
    """64 random bits, as 16 hex digits."""
    return secrets.token_hex(8).encode()


def origin_of(headers: Iterable[tuple[bytes, bytes]], protocol: str) -> Origin:
    """Of a request with these headers, whose names are in lower case as ASGI and gRPC have them.

    Raises:
        RequestError: its timeout is no time.
    """
    request_id = traceparent = tracestate = timeout_s = None
    for name, value in headers:
        if name == REQUEST_ID and request_id is None and _REQUEST_ID.match(value):
            request_id = value.decode()
        elif name == b"traceparent" and traceparent is None and _TRACEPARENT.fullmatch(value):
            traceparent = value.decode()
        elif name == b"tracestate" and tracestate is None and len(value) <= _MAX_TRACESTATE:
            tracestate = value.decode("latin-1")
        elif name == TIMEOUT:
            timeout_s = _seconds_of(value)
    return Origin(
        request_id or new_request_id().decode(),
        protocol,
        traceparent,
        tracestate if traceparent else None,
        timeout_s,
    )


def _seconds_of(value: bytes) -> float:
    if not _MILLISECONDS.fullmatch(value.strip()):
        raise RequestError(
            f"the header X-Request-Timeout-Ms is `{value.decode('latin-1')}`, expected a whole "
            "number of milliseconds, 1 or more"
        )
    return int(value) / 1e3
