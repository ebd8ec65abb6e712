"""Lines of the log, in both forms."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from service.logs import WithFields, about, json_formatter

ROOT = Path(__file__).parents[2]
PLAIN = logging.Formatter("[%(levelname)s] %(message)s")


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("carousel.engine", logging.ERROR, "f.py", 1, message, args, None)
    made.__dict__.update(about(**fields))
    return made


def failed() -> logging.LogRecord:
    """With a traceback."""
    try:
        raise RuntimeError("oh no")
    except RuntimeError:
        made = record("a batch of %d requests failed", 3, request_ids=["r-1", "r-2"])
        made.exc_info = sys.exc_info()
    return made


def test_a_json_line_has_what_it_concerns_as_fields() -> None:
    """Beside the time, the level, the text, and who wrote it."""
    line = json.loads(json_formatter().format(record("no %s", "room", session_id="a\nb", code="x")))
    assert (line["event"], line["level"], line["logger"]) == ("no room", "error", "carousel.engine")
    assert (line["session_id"], line["code"]) == ("a\nb", "x")
    assert line["time"].endswith("Z")


def test_a_traceback_is_in_the_line_of_its_error() -> None:
    """In JSON as a field: one line, whatever happened."""
    text = json_formatter().format(failed())
    assert "\n" not in text
    line = json.loads(text)
    assert line["event"] == "a batch of 3 requests failed"
    assert line["request_ids"] == ["r-1", "r-2"]
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("RuntimeError: oh no")


def test_what_is_no_json_is_written_as_its_text() -> None:
    """A log line never raises."""
    line = json.loads(json_formatter().format(record("text", what=object)))
    assert line["what"] == "<class 'object'>"


def test_on_a_console_it_stands_at_the_end_of_the_line() -> None:
    """Before the traceback, and escaped: an id may hold anything."""
    text = WithFields(PLAIN).format(
        record("no room", session_id="a\n[INFO] b", code="x", model=None)
    )
    assert text == "[ERROR] no room session_id='a\\n[INFO] b' code=x"
    first, second, *_ = WithFields(PLAIN).format(failed()).splitlines()
    assert first == "[ERROR] a batch of 3 requests failed request_ids=\"['r-1', 'r-2']\""
    assert second.startswith("Traceback")


def test_all_that_a_process_says_is_json() -> None:
    """Other loggers with handlers of their own, warnings, what ends a thread or the process."""
    code = """
import logging, threading, warnings
from service.logs import set_up_logging

logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler())
set_up_logging("json", has_access_lines=False)
logging.getLogger("uvicorn.error").error("not there")
warnings.warn("soon gone")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("the end")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    levels = [line["level"] for line in lines]
    assert levels == ["error", "warning", "error", "critical"]
    assert lines[0]["event"] == "not there"
    assert "soon gone" in lines[1]["event"]
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert lines[3]["exception"].endswith("RuntimeError: the end")


@pytest.mark.parametrize("value", [None, ""])
def test_what_there_is_not_is_left_out(value: object) -> None:
    """No field without a value."""
    assert WithFields(PLAIN).format(record("text", tenant=value)) == "[ERROR] text"
