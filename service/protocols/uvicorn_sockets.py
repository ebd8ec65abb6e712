"""What uvicorn is told beside ASGI, most of it of WebSockets; read in uvicorn 0.54.

BentoML starts uvicorn and passes none of its options on, and ASGI has no message for them. So they
are set on the `uvicorn.Config` that our lifespan's `receive` belongs to, before there is a
connection; each connection reads them when it begins:

- `ws_max_size`, 16 MiB unless told: our own limit of a body. A longer frame ends the connection
  (1009) before it is kept.
- `ws_per_message_deflate`, on unless told: off. Each frame out would be compressed, and each
  connection keep a compressor; numbers hardly shrink.
- `ws_ping_interval` and `ws_ping_timeout`, 20 s each unless told. The answer to a ping waits behind
  what the client sent before, which the server reads no faster than it answers; so a client has
  `PONG_INTERVALS` to answer, and one that is slow is not taken for dead.

Uvicorn has an access log of its own, below BentoML's and as silent: its logger lets no line
through, but has a handler, the root's, and so each line's parts are put together first: 2 us a
request. It is cut off where it would write nothing.

Text that is not UTF-8 ends the connection (1007); uvicorn logs that with a traceback, which we
leave out.

A connection that uvicorn gives up is closed once what was written to it is sent; a dead peer takes
nothing, so that can be never. `abort` ends it at once.

Under another server there are its own limits, and frames that are too long are refused by us.
"""

import logging
from typing import Any

from service.protocols.asgi import Receive

PONG_INTERVALS = 3

logger = logging.getLogger("carousel.http")


def set_limits(receive: Receive, max_frame_bytes: int, ping_interval_s: float) -> None:
    """Tell the server, at the lifespan's start, what holds for every WebSocket."""
    config: Any = getattr(getattr(receive, "__self__", None), "config", None)
    if not hasattr(config, "ws_max_size"):
        logger.warning("the server is not uvicorn: its own limits hold for WebSockets")
        return
    config.ws_max_size = max_frame_bytes
    config.ws_per_message_deflate = False
    config.ws_ping_interval = ping_interval_s
    config.ws_ping_timeout = PONG_INTERVALS * ping_interval_s
    logging.getLogger("uvicorn.error").addFilter(_without_traceback)
    access = logging.getLogger("uvicorn.access")
    if not access.isEnabledFor(logging.INFO):
        access.propagate = False


def _without_traceback(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith("Invalid UTF-8"):
        record.exc_info = None
    return True


class Line:
    """The transport under one WebSocket."""

    def __init__(self, receive: Receive) -> None:
        """`receive`: as the server gave it."""
        self._transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)

    @property
    def is_closing(self) -> bool:
        """Whether it takes nothing more, and is gone once what was written is sent."""
        return self._transport is not None and self._transport.is_closing()

    def abort(self) -> None:
        """End it, whatever is still to be sent."""
        if self._transport is not None:
            self._transport.abort()
