"""The settings of a service: one frozen object, read from CAROUSEL_* once, at the start.

`python -m service.config` prints them (`__main__`), with what each means: the text below it here.

Refused, so that nothing is silently ignored: a CAROUSEL_* variable that is not a setting, a value
of the wrong kind, and settings that contradict each other. Each stops the start with one line.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError
from service.redis_url import EXPECTED, is_redis_url, without_password

PREFIX = "CAROUSEL_"
SECRETS = frozenset({"api_keys", "snapshot_key"})  # shown nowhere; of `redis_url`, no password
# As RFC 6454 serializes one. Not `null`: pages of every sandbox and file have that.
_ORIGIN = re.compile(
    r"(?!http://.*:80$|https://.*:443$)[a-z][a-z0-9+.-]*://[^/\s?#@A-Z*:]+(:\d+)?"
    r"|https?://\[[0-9a-f:.]+\](:\d+)?"
)
MIN_KEY_BYTES = 32  # of a key that signs snapshots: what HMAC-SHA256 can use (RFC 2104)


class Config(BaseSettings):
    """What the operator may choose; every default has its reason beside it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
    )

    models: Annotated[tuple[str, ...], NoDecode] = ()
    """What is served: a comma list of artifact directories, directories that hold several, or
    BentoML tags; none: the Bento's own, or all under CAROUSEL_ARTIFACTS, or BentoML's store"""
    artifacts: Path = Path("artifacts")  # where `python -m export` writes
    """Where artifacts are looked for"""
    variant: str | None = None
    """Which variant is run; none: each manifest's default"""
    default_model: str | None = None  # needed only where several models are served
    """For requests that name none (`make serve` sets it to `sine-cell`)"""

    max_steps_per_request: PositiveInt = 16_384  # one slice after another, seconds of work at most
    """Rows in one request"""
    max_forecast_steps: PositiveInt = 100_000  # some ten seconds at most
    """Horizon x samples of one forecast; samples at most CAROUSEL_MAX_BATCH"""
    max_body_bytes: PositiveInt = 8 << 20  # 8 MiB: 16,384 rows of 24 numbers of 20 digits
    """Bytes of a body, or of one line of a stream; of a compressed one, of what comes out"""
    max_sessions: PositiveInt = 100_000  # 100 MiB of states of 1 KiB (hidden 128, one layer)
    """Live sessions; beyond: 429, none is evicted"""
    max_sessions_per_tenant: PositiveInt | None = None
    """Live sessions of one tenant; a key may say otherwise; none: as many as the server takes"""
    max_queue: PositiveInt = 4_096  # a second of work for one core, then 429
    """Requests that wait, in each worker"""
    max_queue_per_tenant: PositiveInt | None = None  # see `tenant_queue`
    """Requests of one tenant that wait, in each worker; none: with keys a quarter of the queue"""
    request_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds after which a request is refused (504), and was not done; none: only if it says so"""
    max_connections: PositiveInt = 1_000  # fewer than the files that a process may open, mostly
    """WebSockets that are open, in each worker; of one tenant, with keys a quarter"""
    max_batch: PositiveInt = 256  # beyond it a batch of a small model gains nothing
    """Rows run together; set to more than 1, it also refuses models that are not isolated"""
    max_state_bytes: PositiveInt = 1 << 20  # 1 MiB: 16 times 8 LSTM layers of hidden 1024
    """Bytes of one session's state; a model that needs more is not served, with the reason"""
    idle_timeout_s: PositiveFloat = 3_600.0  # 1 h: a sensor that reports twice an hour lives on
    """Seconds after which an idle session expires"""
    ping_interval_s: PositiveFloat = 20.0  # proxies cut what is silent for 60 s
    """Seconds between pings to a WebSocket; its client is dead if it answers none for three times
    as long"""

    api_keys_file: Path | None = None  # service/key_ring.py says what is in it
    """Who may call: a file of API keys, as `python -m service.keys` writes it"""
    api_keys: str | None = Field(None, repr=False)
    """Who may call: the lines of such a file"""
    allow_anonymous: bool = False
    """Without API keys: answer the network too"""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()  # see service/protocols/around.py
    """Whose web pages may ask, from a browser: a comma list of origins (`https://app.example`), or
    `*`; none: this server's own"""
    snapshot_key: Annotated[tuple[str, ...], NoDecode] = Field((), repr=False)
    """Signs snapshots, 32 bytes or more; a comma list: the first signs, all verify; none: the
    `disk` store keeps one, the `memory` store's ends with it, `redis` has no snapshots"""

    # `disk` outlives a restart, and all workers of one machine share it; `redis`, all machines.
    store: Literal["memory", "disk", "redis"] = "disk"
    """Where sessions are. `disk`: they outlive the service, and all workers of the machine share
    them; `redis`: so do several machines; `memory`: a restart forgets them, and one worker only"""
    store_path: Path = Path("sessions")
    """The directory of the `disk` store"""
    # `power` waits for the disk at every commit, which takes a hundred times as long.
    durability: Literal["process", "power"] = "process"
    """What sessions survive, see below: `process` or `power` (Redis must then have `appendfsync
    always`, or nothing is served)"""
    redis_url: Annotated[str | None, Field(validate_default=True, repr=False)] = None
    """Of the `redis` store: `redis://HOST:PORT/0`, `rediss://` (TLS), `unix:///PATH`,
    `redis+cluster://HOST:PORT`"""
    workers: PositiveInt = 1  # one keeps a core busy; the memory store cannot be shared
    """Processes that answer, any of them any session"""
    threads: PositiveInt = 1  # one step of a small model is too short to share out
    """Threads of one model run"""
    log_format: Literal["console", "json"] = "console"
    """Of the log: `console`, as BentoML writes it; `json`, one object a line"""
    access_log: bool = False  # /metrics counts requests without it
    """Whether the log has a line for every request"""

    grpc_port: Annotated[int, Field(ge=0, le=65_535)] = 3_001  # next to BentoML's own, 3000
    """Where gRPC listens, on HTTP's host, and all workers; 0: nowhere. Two services on one machine
    need two"""

    @property
    def has_keys(self) -> bool:
        return self.api_keys_file is not None or self.api_keys is not None

    @property
    def is_loopback_only(self) -> bool:
        """Whoever may call without a key must be on this machine, unless the operator says so."""
        return not (self.has_keys or self.allow_anonymous)

    @property
    def tenant_queue(self) -> int:
        """Requests of one tenant that may wait: of several, none can fill the queue for all."""
        share = self.max_queue // 4 if self.has_keys else self.max_queue
        return self.max_queue_per_tenant or max(share, 1)

    @property
    def tenant_connections(self) -> int:
        """WebSockets of one tenant that may be open."""
        return max(self.max_connections // 4, 1) if self.has_keys else self.max_connections

    @property
    def asked_batch(self) -> int | None:
        """`max_batch` where the operator set it; None: the default, which asks for nothing."""
        return self.max_batch if "max_batch" in self.model_fields_set else None

    @field_validator("models", "snapshot_key", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @model_validator(mode="after")
    def _keys_or_anybody(self) -> Self:
        if self.has_keys and self.allow_anonymous:
            raise ValueError(
                f"{PREFIX}ALLOW_ANONYMOUS=true and API keys contradict each other: where there are "
                f"keys, nobody is served without one; unset it, or {PREFIX}API_KEYS_FILE and "
                f"{PREFIX}API_KEYS"
            )
        return self

    @model_validator(mode="after")
    def _not_every_page(self) -> Self:
        if "*" in self.cors_origins and self.is_loopback_only:
            raise ValueError(
                f"{PREFIX}CORS_ORIGINS=* without API keys would let every web page that a browser "
                "on this machine shows ask, and change, everything here; name the origins, or set "
                f"{PREFIX}API_KEYS_FILE, or {PREFIX}ALLOW_ANONYMOUS=true"
            )
        return self

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in origins and len(origins) > 1:
            raise ValueError(
                "`*` is every origin, and others are named beside it; keep one of both"
            )
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"`{origin}` is not an origin, expected `*`, or as browsers write it: scheme "
                    "and host in lower case, a port unless it is the scheme's own, no path, as "
                    "https://app.example or http://localhost:8080"
                )
        return origins

    @field_validator("snapshot_key")
    @classmethod
    def _long_enough(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if (size := len(key.encode())) < MIN_KEY_BYTES:
                raise ValueError(
                    f"a key has {size} bytes, expected {MIN_KEY_BYTES} or more; "
                    "`openssl rand -hex 32` makes one"
                )
        return keys

    @field_validator("workers")
    @classmethod
    def _memory_is_not_shared(cls, workers: int, info: ValidationInfo) -> int:
        if workers > 1 and info.data.get("store") == "memory":
            raise ValueError(
                f"{workers} workers cannot share the `memory` store: each would answer from "
                "states of its own; set CAROUSEL_WORKERS=1, or CAROUSEL_STORE=disk"
            )
        return workers

    @field_validator("redis_url")
    @classmethod
    def _url_of_the_redis_store(cls, url: str | None, info: ValidationInfo) -> str | None:
        store = info.data.get("store")
        if url is None and store == "redis":
            raise ValueError(f"CAROUSEL_STORE=redis needs it, expected {EXPECTED}")
        if url is not None and not is_redis_url(url):
            raise ValueError(f"it is not a URL of Redis, expected {EXPECTED}")
        if url is not None and store not in ("redis", None):
            raise ValueError(
                f"the store is `{store}`; set CAROUSEL_STORE=redis, or leave CAROUSEL_REDIS_URL out"
            )
        return url


def load_config() -> Config:
    """The settings in force, from the environment.

    Raises:
        SettingsError: a CAROUSEL_* variable is unknown, malformed, or contradicts another. The
            start must stop; the message is one line for the operator.
    """
    _refuse_unknown(os.environ)
    try:
        return Config()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # two settings that contradict each other
            raise SettingsError(reason) from error
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        if SECRETS.intersection(first["loc"]):  # neither here nor in a traceback
            raise SettingsError(f"{name}: {reason}", setting=name) from None
        raise SettingsError(f"{_shown(name, first['input'])}: {reason}", setting=name) from error


def _shown(name: str, value: object) -> str:
    """A setting as the operator wrote it, but for a password."""
    if value is None:
        return f"{name} is not set"
    is_url = name == PREFIX + "REDIS_URL"
    return f"{name}={without_password(str(value)) if is_url else value}"


def _refuse_unknown(names: Iterable[str]) -> None:
    known = [field.upper() for field in Config.model_fields]
    for name in sorted(names):
        setting = name.upper().removeprefix(PREFIX)
        if not name.upper().startswith(PREFIX) or setting in known:
            continue
        close = difflib.get_close_matches(setting, known, n=1)
        hint = (
            f"did you mean {PREFIX}{close[0]}?"
            if close
            else f"the settings are {', '.join(PREFIX + one for one in known)}"
        )
        raise SettingsError(f"{name} is not a setting of Carousel; {hint}", setting=name)
