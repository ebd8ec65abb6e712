"""The benchmark of the session stores runs, and its sessions are small enough."""

import re

import pytest

from benchmarks.sessions import STATE_BYTES, main


def test_it_compares_the_stores_and_fills_one(capsys: pytest.CaptureFixture[str]) -> None:
    """In short form; what it says of the disk holds whatever the machine does."""
    assert main(["--rounds", "1", "--sessions", "40000"]) == 0
    out = capsys.readouterr().out
    for name in ("memory", "disk (process)", "disk (power)", "SQLite, WAL"):
        assert name in out
    found = re.search(r"state: (\d+) bytes of disk", out.replace("\n", " "))
    assert found is not None
    assert STATE_BYTES < int(found[1]) <= 1.5 * STATE_BYTES + 200
