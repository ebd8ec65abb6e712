"""What both transports of a stream have in common: a message, and how a connection ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from websockets.exceptions import InvalidStatus

from service.client.errors import Refused, refusal_of_bytes

READ_BYTES = 1 << 16


class Broken(Exception):
    """The connection ended, or could not be made; what ended it is the cause."""


@dataclass(frozen=True, slots=True)
class Message:
    """One answer."""

    body: Mapping[str, Any]
    tag: int | None  # of the request that it answers; None: it names its session only


def read_message(raw: bytes | str, tag_name: str) -> Message:
    """
    Args:
        tag_name: the field that says which request an answer is to, where there is one.
    Raises:
        Broken: it is no answer of Carousel's.
    """
    try:
        body: dict[str, Any] = msgspec.json.decode(raw, type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Broken(f"the answer is no JSON object: {raw[:200]!r}") from None
    tag = body.get(tag_name)
    return Message(body, tag if isinstance(tag, int) else None)


def websocket_url(url: str) -> str:
    """Of the service at `url`."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}[parts.scheme]
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/ws", "", ""))


def websocket_options(headers: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """For either `connect` of `websockets`."""
    return {
        "additional_headers": dict(headers),
        "compression": None,  # rows of numbers: it would cost more than it saves
        "open_timeout": timeout_s,
        "close_timeout": 1,
        "max_size": None,  # of a server that the caller chose
    }


def refusal_of_handshake(error: InvalidStatus) -> Refused:
    """What the server said instead of opening a WebSocket."""
    response = error.response
    retry_after = response.headers.get("retry-after")
    return refusal_of_bytes(bytes(response.body or b""), response.status_code, retry_after)


def host_of(url: str) -> tuple[str, int, bool]:
    """Host, port, and whether it is TLS."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    return parts.hostname or "", parts.port or (443 if is_tls else 80), is_tls
