"""The form of the server's log: as BentoML writes it, or one JSON object a line.

Rules
- All lines have one form, whoever writes them: ours, BentoML's, uvicorn's, warnings, and what
  ends a process. Only what stops the start is one plain line, as there is no server yet.
- Beside its text a line says what it concerns, where it concerns something: request_id,
  session_id, model, code, as fields of the object, or `key=value` at the line's end. `about`
  gives them to a logger. Never x or y, a key, or what a client sent as a body.
- A refused request (4xx) is no line: a client could fill the disk with them. `/metrics` counts
  them by reason, and CAROUSEL_ACCESS_LOG=true writes a line for every request.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import orjson
from structlog.processors import JSONRenderer, format_exc_info
from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import EventDict

Form = Literal["console", "json"]

ABOUT = "carousel_about"  # the attribute of a record; BentoML's filter sets `request_id` itself
# Of BentoML and of what it runs: they have handlers of their own, or print twice.
FOREIGN = ("bentoml", "circus", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")

logger = logging.getLogger("carousel")
access = logging.getLogger("carousel.access")


def about(**fields: object) -> dict[str, dict[str, object]]:
    """What a line concerns, as `extra` of a logger's methods; None and "" are left out."""
    return {ABOUT: {name: value for name, value in fields.items() if value not in (None, "")}}


def writes_access_lines() -> bool:
    """Whether the operator wants a line for each request."""
    return access.isEnabledFor(logging.INFO)


def set_up_logging(form: Form, has_access_lines: bool) -> None:
    """Give all lines of this process their form; called again, it does nothing new."""
    if has_access_lines:
        access.setLevel(logging.INFO)
    if form == "json":
        _write_json()
        return
    for handler in _handlers():
        if not isinstance(handler.formatter, WithFields):
            handler.setFormatter(WithFields(handler.formatter or logging.Formatter()))


class WithFields(logging.Formatter):
    """A line as another formatter writes it, and what it concerns at its end."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        text = self._inner.format(record)
        fields: Mapping[str, object] = getattr(record, ABOUT, {})
        if not fields:
            return text
        first, newline, rest = text.partition("\n")  # of a traceback
        shown = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
        return f"{first} {shown}{newline}{rest}"


def _quoted(value: object) -> str:
    """An id may hold anything, line breaks too."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else ascii(text)


def json_formatter() -> logging.Formatter:
    """One JSON object a line: time, level, event, logger, what it concerns, exception."""
    return ProcessorFormatter(
        foreign_pre_chain=[
            _add_time,
            add_log_level,
            add_logger_name,
            _add_about,
            format_exc_info,
        ],
        processors=[
            ProcessorFormatter.remove_processors_meta,
            JSONRenderer(serializer=_dump),
        ],
    )


def _add_time(logger: Any, name: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return {"time": time.replace("+00:00", "Z"), "pid": os.getpid(), **event}


def _add_about(logger: Any, name: str, event: EventDict) -> EventDict:
    return {**event, **getattr(event["_record"], ABOUT, {})}


def _dump(event: EventDict, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def _write_json() -> None:
    """One handler, at the root, for all."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(json_formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for name in FOREIGN:
        one = logging.getLogger(name)
        one.handlers.clear()
        one.propagate = True
    logging.captureWarnings(True)
    sys.excepthook = _log_end
    threading.excepthook = _log_end_of_thread


def _log_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logger.critical("the process ends by an error", exc_info=(kind, error, trace))


def _log_end_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        what = (args.exc_type, args.exc_value, args.exc_traceback)
        logger.error("a thread ends by an error", exc_info=what)


def _handlers() -> list[logging.Handler]:
    names = ("", *FOREIGN)
    return list({h: None for name in names for h in logging.getLogger(name).handlers})
