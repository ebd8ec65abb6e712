"""The header Idempotency-Key: another name for `step`, on routes and in clients without one.

As draft-ietf-httpapi-idempotency-key-header has it: a client makes a new key for each request, and
sends the same one only to send that request again. The key is kept as it came: in quotes, as the
draft says, or without, as many clients do; so a retry writes it as the request did.
"""

from collections.abc import Iterable

from service.errors import RequestError

HEADER = b"idempotency-key"
MAX_CHARS = 255


def idempotency_key_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key of a request with these headers, whose names are in lower case; None: it has none.

    Raises:
        RequestError: there are several, or it is empty, too long, or not printable ASCII.
    """
    found = [value for name, value in headers if name == HEADER]
    if not found:
        return None
    if len(found) > 1:
        raise RequestError(f"there are {len(found)} headers Idempotency-Key, expected one")
    key = found[0].decode("latin-1").strip(" \t")
    if not 0 < len(key) <= MAX_CHARS or not (key.isascii() and key.isprintable()):
        raise RequestError(
            f"the header Idempotency-Key has {len(key)} characters, expected 1 to {MAX_CHARS}, all "
            "of them printable ASCII; a UUID will do"
        )
    return key
