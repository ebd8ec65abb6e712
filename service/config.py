"""The settings of a service: one frozen object, read from CAROUSEL_* once, at the start.

Refused, so that nothing is silently ignored: a CAROUSEL_* variable that is not a setting, a value
of the wrong kind, and settings that contradict each other. Each stops the start with one line.
"""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import PositiveFloat, PositiveInt, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError

PREFIX = "CAROUSEL_"


class Config(BaseSettings):
    """What the operator may choose; every default has its reason beside it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    artifacts: Path = Path("artifacts")  # where `python -m export` writes
    models: Annotated[tuple[str, ...], NoDecode] = ()  # none named: see service/api.py
    variant: str | None = None  # none: each manifest's default_variant
    default_model: str | None = None  # none: needed only where several models are served

    store: Literal["memory"] = "memory"
    workers: PositiveInt = 1  # the memory store cannot be shared

    max_batch: PositiveInt = 256  # rows; beyond it a batch of a small model gains nothing
    max_steps_per_request: PositiveInt = 16_384  # one slice after another, seconds of work at most
    max_forecast_steps: PositiveInt = 100_000  # horizon x samples; some ten seconds at most
    max_body_bytes: PositiveInt = 8 << 20  # 8 MiB: 16,384 rows of 24 numbers of 20 digits
    max_sessions: PositiveInt = 100_000  # 100 MiB of states of 1 KiB (hidden 128, one layer)
    max_queue: PositiveInt = 4_096  # requests; a second of work for one core, then 429
    idle_timeout_s: PositiveFloat = 3_600.0  # 1 h: a sensor that reports twice an hour lives on
    threads: PositiveInt = 1  # per model run; one step of a small model is too short to share out

    @property
    def asked_batch(self) -> int | None:
        """`max_batch` where the operator set it; None: the default, which asks for nothing."""
        return self.max_batch if "max_batch" in self.model_fields_set else None

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("workers")
    @classmethod
    def _memory_is_not_shared(cls, workers: int) -> int:
        if workers > 1:
            raise ValueError(
                f"{workers} workers cannot share the `memory` store: each would answer from "
                "states of its own; set CAROUSEL_WORKERS=1"
            )
        return workers


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
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}={first['input']}: {reason}", setting=name) from error


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
