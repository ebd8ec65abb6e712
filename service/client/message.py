"""What both transports of a stream have in common: a message, and how a connection ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec


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
