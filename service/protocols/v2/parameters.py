"""The parameters of an inference: which sequence, what becomes of it, how long the client waits.

A parameter that is not known is refused: a misspelled `step` would otherwise be no step.
"""

from collections.abc import Mapping

from msgspec import Struct

from service.errors import RequestError
from service.protocols.idempotency import MAX_CHARS
from service.wire import MAX_SESSION_ID_CHARS, MAX_STEP

MAX_SEQUENCE_ID = 2**64 - 1
IGNORED_PREFIX = "triton_"  # what other servers read
KNOWN = (
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "step",
    "idempotency_key",
    "timeout",
    "priority",
)


class Said(Struct, frozen=True):
    """What the parameters say."""

    session_id: str | None  # None: there is no sequence
    starts: bool
    ends: bool
    step: int | None
    idempotency_key: str | None
    timeout_s: float | None  # None: the client waits as long as it takes


def read_parameters(parameters: Mapping[str, object]) -> Said:
    """RequestError if one is unknown, is not what it should be, or contradicts another."""
    for name in parameters:
        if name not in KNOWN and not name.startswith(IGNORED_PREFIX):
            raise RequestError(
                f"there is no parameter `{name}`, expected some of {', '.join(KNOWN)}"
            )
    _count(parameters, "priority")
    said = Said(
        session_id=_session_of(parameters),
        starts=_flag(parameters, "sequence_start"),
        ends=_flag(parameters, "sequence_end"),
        step=_count(parameters, "step"),
        idempotency_key=_key_of(parameters),
        timeout_s=read_timeout_s(parameters),
    )
    if said.session_id is None:
        of_sequences = {
            "sequence_start": said.starts,
            "sequence_end": said.ends,
            "step": said.step,
        }
        for name, value in of_sequences.items():
            if value:
                raise RequestError(f"`{name}` is of a sequence; send its `sequence_id` too")
    return said


def read_timeout_s(parameters: Mapping[str, object]) -> float | None:
    """How long the client waits; None: as long as it takes."""
    timeout_us = _count(parameters, "timeout")
    return timeout_us / 1e6 if timeout_us else None


def _session_of(parameters: Mapping[str, object]) -> str | None:
    value = parameters.get("sequence_id", 0)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RequestError(f"`sequence_id` is {_show(value)}, expected an integer or a string")
    if isinstance(value, int) and not 0 <= value <= MAX_SEQUENCE_ID:
        raise RequestError(f"`sequence_id` is {value}, expected 0 to 2^64 - 1")
    if isinstance(value, str) and len(value) > MAX_SESSION_ID_CHARS:
        raise RequestError(
            f"`sequence_id` has {len(value)} characters, expected at most {MAX_SESSION_ID_CHARS}"
        )
    return str(value) if value else None


def _flag(parameters: Mapping[str, object], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"`{name}` is {_show(value)}, expected true or false")
    return value


def _count(parameters: Mapping[str, object], name: str) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_STEP:
        raise RequestError(f"`{name}` is {_show(value)}, expected an integer from 0 to {MAX_STEP}")
    return value


def _key_of(parameters: Mapping[str, object]) -> str | None:
    value = parameters.get("idempotency_key")
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"`idempotency_key` is {_show(value)}, expected a string")
    if not 0 < len(value) <= MAX_CHARS:
        raise RequestError(
            f"`idempotency_key` has {len(value)} characters, expected 1 to {MAX_CHARS}"
        )
    return value


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
