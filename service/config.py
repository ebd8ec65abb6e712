"""The settings of a service: one frozen object, read from CAROUSEL_* once, at the start.

Refused, so that nothing is silently ignored: a CAROUSEL_* variable that is not a setting, a value
of the wrong kind, and settings that contradict each other. Each stops the start with one line.
"""

import difflib
import os
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
MIN_KEY_BYTES = 32  # of a key that signs snapshots: what HMAC-SHA256 can use (RFC 2104)


class Config(BaseSettings):
    """What the operator may choose; every default has its reason beside it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    artifacts: Path = Path("artifacts")  # where `python -m export` writes
    models: Annotated[tuple[str, ...], NoDecode] = ()  # none named: see service/api.py
    variant: str | None = None  # none: each manifest's default_variant
    default_model: str | None = None  # none: needed only where several models are served

    # `disk` outlives a restart, and all workers of one machine share it; `redis`, all machines.
    store: Literal["memory", "disk", "redis"] = "disk"
    store_path: Path = Path("sessions")  # the directory of the disk store
    # `power` waits for the disk at every commit, which takes a hundred times as long.
    durability: Literal["process", "power"] = "process"
    redis_url: Annotated[str | None, Field(validate_default=True)] = None  # of `redis`
    workers: PositiveInt = 1  # one keeps a core busy; the memory store cannot be shared

    # Beside HTTP's, on the same host; 0: no gRPC.
    grpc_port: Annotated[int, Field(ge=0, le=65_535)] = 3_001  # next to BentoML's own, 3000

    max_batch: PositiveInt = 256  # rows; beyond it a batch of a small model gains nothing
    max_steps_per_request: PositiveInt = 16_384  # one slice after another, seconds of work at most
    max_forecast_steps: PositiveInt = 100_000  # horizon x samples; some ten seconds at most
    max_body_bytes: PositiveInt = 8 << 20  # 8 MiB: 16,384 rows of 24 numbers of 20 digits
    max_sessions: PositiveInt = 100_000  # 100 MiB of states of 1 KiB (hidden 128, one layer)
    max_queue: PositiveInt = 4_096  # requests; a second of work for one core, then 429
    max_sessions_per_tenant: PositiveInt | None = None  # none: as many as the server takes
    max_queue_per_tenant: PositiveInt | None = None  # none: see `tenant_queue`
    max_state_bytes: PositiveInt = 1 << 20  # 1 MiB: 16 times 8 LSTM layers of hidden 1024
    idle_timeout_s: PositiveFloat = 3_600.0  # 1 h: a sensor that reports twice an hour lives on
    snapshot_key: Annotated[tuple[str, ...], NoDecode] = Field((), repr=False)  # the first signs
    threads: PositiveInt = 1  # per model run; one step of a small model is too short to share out

    api_keys_file: Path | None = None  # service/key_ring.py says what is in it
    api_keys: str | None = None  # the same lines, from the environment
    allow_anonymous: bool = False  # without keys: answer others than this machine

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
    def asked_batch(self) -> int | None:
        """`max_batch` where the operator set it; None: the default, which asks for nothing."""
        return self.max_batch if "max_batch" in self.model_fields_set else None

    @field_validator("models", "snapshot_key", mode="before")
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
        if "snapshot_key" in first["loc"]:  # a secret: neither here nor in a traceback
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
