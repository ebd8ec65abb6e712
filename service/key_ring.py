"""API keys: who may call, and as which tenant.

Rules
- A key is 256 random bits (`python -m service.keys new`). Only its SHA-256 is kept: nobody guesses
  256 bits, so the slow or salted hash that a password needs would cost every request and protect
  nothing. What is too short to be such a key is refused unseen.
- A digest is looked up by its first 32 bits, and the rest compared in constant time.
- A key that is unknown and one that was revoked get the same 401; one that expired is told so.
- The file is looked at again when a request comes, once a second at most; a new file that cannot
  be read keeps the old keys and is logged once. Nobody is cut off by a typing error.
- Where keys are configured nobody is served without one, not even while the file has none.

The file is TOML, one line for a key, so that a shell can append and remove them:

    9f86d081...0a08 = { tenant = "acme" }
    60303ae2...d9c3 = { tenant = "acme", max_sessions = 500, expires = 2027-01-31 }
    fd61a03a...b17d = { tenant = "ops", admin = true, note = "Jane's laptop" }
"""

import hashlib
import hmac
import logging
import os
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from service.errors import SettingsError, UnauthorizedError

LOOK_EVERY_S = 1.0  # how soon a new or revoked key counts; a look is one stat(), some microseconds
KEY_PREFIX = "carousel_"  # so that scanners for leaked secrets can know one
MIN_KEY_LENGTH = 32  # characters: 128 bits even as hexadecimal digits
INDEX_DIGITS = 8  # 32 bits: next to never shared by two keys, and of no use to anybody

logger = logging.getLogger("carousel.keys")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and what it may do."""

    tenant: str  # "" is nobody's name: callers without a key, where none is needed
    is_admin: bool = False
    max_sessions: int | None = None  # live ones of its tenant; None: as many as the server takes


class Entry(BaseModel):
    """What the file says of one key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tenant: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    admin: bool = False
    max_sessions: PositiveInt | None = None  # none: CAROUSEL_MAX_SESSIONS_PER_TENANT
    expires: datetime | date | None = None  # a date: when it begins, UTC
    note: str | None = None

    @property
    def expires_at_s(self) -> float | None:
        """Seconds since 1970."""
        when = self.expires
        if when is None:
            return None
        if not isinstance(when, datetime):
            when = datetime(when.year, when.month, when.day)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


Keys = Mapping[str, Entry]  # the SHA-256 of a key, 64 lower-case hex digits -> what it may do


def digest_of_key(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def parse_keys(text: str, where: str) -> dict[str, Entry]:
    """The entries of a key file.

    Args:
        where: what `text` was read from, for messages.
    Raises:
        SettingsError: it is not as the module's docstring says.
    """
    try:
        entries = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{where} is not TOML: {error}") from error
    keys: dict[str, Entry] = {}
    for digest, entry in entries.items():
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise SettingsError(
                f"{where} has the entry `{digest[:80]}`, expected the SHA-256 of a key, 64 "
                "lower-case hex digits; `python -m service.keys new` writes the line"
            )
        try:
            keys[digest] = Entry.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise SettingsError(
                f"{where}: `{field}` of {digest[:12]}...: {first['msg']}, got {first['input']!r}"
            ) from error
    return keys


def read_keys(path: Path) -> dict[str, Entry]:
    """The entries of the key file `path`; SettingsError if it cannot be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the key file {path} cannot be read: {error}") from error
    return parse_keys(text, str(path))


class KeyRing:
    """The keys in force."""

    def __init__(
        self,
        path: Path | None,
        text: str = "",
        max_sessions: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            path: the key file; None: there is none.
            text: lines of such a file that are in force as well.
            max_sessions: live sessions of a tenant whose key says nothing else.
            monotonic: seconds, for the looks at the file.
            now: seconds since 1970, for keys that expire.
        Raises:
            SettingsError: the file or the text is not as it must be. The start must stop.
        """
        self._path = path
        self._fixed = parse_keys(text, "CAROUSEL_API_KEYS")
        self._max_sessions = max_sessions
        self._monotonic = monotonic
        self._now = now
        self._seen = _signature(path)
        self._index = _index(self._fixed | (read_keys(path) if path else {}))
        self._next_look = monotonic() + LOOK_EVERY_S

    def find(self, key: bytes) -> Caller:
        """Who holds `key`.

        Raises:
            UnauthorizedError: nobody; or it has expired.
        """
        self._look_again()
        entry = self._entry_of(key)
        if entry is None:
            raise UnauthorizedError("this API key is not known here; it is mistyped, or revoked")
        expires = entry.expires_at_s
        if expires is not None and self._now() >= expires:
            raise UnauthorizedError(f"this API key expired on {entry.expires}; ask for a new one")
        return Caller(entry.tenant, entry.admin, entry.max_sessions or self._max_sessions)

    def _entry_of(self, key: bytes) -> Entry | None:
        if len(key) < MIN_KEY_LENGTH:
            return None
        digest = digest_of_key(key)
        found = None
        for known, entry in self._index.get(digest[:INDEX_DIGITS], ()):
            if hmac.compare_digest(digest, known):
                found = entry
        return found

    def _look_again(self) -> None:
        if self._path is None or self._monotonic() < self._next_look:
            return
        self._next_look = self._monotonic() + LOOK_EVERY_S
        signature = _signature(self._path)  # before the file is read: a later change is seen later
        if signature == self._seen:
            return
        self._seen = signature
        try:
            keys = self._fixed | read_keys(self._path)
        except SettingsError as error:
            logger.error("the old API keys stay in force: %s", error.message)
        else:
            self._index = _index(keys)
            logger.warning("the API keys were read again: %d are in force", len(keys))


def _index(keys: Keys) -> dict[str, list[tuple[str, Entry]]]:
    index: dict[str, list[tuple[str, Entry]]] = {}
    for digest, entry in keys.items():
        index.setdefault(digest[:INDEX_DIGITS], []).append((digest, entry))
    return index


def _signature(path: Path | None) -> tuple[int, ...] | None:
    """What changes when the file does; None where there is none."""
    try:
        found = os.stat(path) if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if found else None
