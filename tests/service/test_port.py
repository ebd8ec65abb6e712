"""Who gets a port that several processes may open."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from service import port as ports
from service.errors import SettingsError
from service.port import address_of, hold_port, told_host
from tests.e2e.conftest import ROOT, free_port

SETTING = "CAROUSEL_GRPC_PORT"
TRY = "import sys; from service.port import *; hold_port('127.0.0.1', int(sys.argv[1]), 0, 'IT')"


@pytest.fixture(autouse=True)
def _let_go(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of what a test held, and of what it told its workers."""
    monkeypatch.setenv("_CAROUSEL_GRPC_HOST", "127.0.0.1")
    yield
    while ports._held:
        ports._held.pop().close()


def shared_listener(port: int) -> socket.socket:
    """As a worker listens."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_workers_share_a_port_that_is_held() -> None:
    """And get its connections; the holder gets none."""
    port = free_port()
    hold_port("127.0.0.1", port, 0, SETTING)
    assert told_host() == "127.0.0.1"
    with closing(shared_listener(port)), closing(shared_listener(port)):
        for _ in range(50):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    hold_port("127.0.0.1", port, 0, SETTING)  # connections that are still closing hold nobody up


def test_a_port_that_is_held_is_nobody_elses() -> None:
    """From the start of the process that holds it, before a worker listens."""
    port = free_port()
    hold_port("127.0.0.1", port, 0, SETTING)
    command = [sys.executable, "-c", TRY, str(port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"SettingsError: IT={port}: 127.0.0.1 port {port} cannot be had" in done.stderr


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "sharing"])
def test_a_port_that_somebody_has_is_refused(shares: bool) -> None:
    """Also of somebody who would share it."""
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", 0))
        plain.listen()
        port = free_port() if shares else plain.getsockname()[1]
        with closing(shared_listener(port) if shares else plain):
            with pytest.raises(SettingsError, match="Set CAROUSEL_GRPC_PORT to another port, or"):
                hold_port("127.0.0.1", port, 0, SETTING)
            assert ports._held == []


def test_the_port_of_http_is_not_taken() -> None:
    """HTTP would fail to open it, after the models were found."""
    with pytest.raises(SettingsError, match="CAROUSEL_GRPC_PORT=3000 is where HTTP listens"):
        hold_port("127.0.0.1", 3000, 3000, SETTING)
    assert ports._held == []


def test_an_address_of_six_is_in_brackets() -> None:
    """As gRPC reads it."""
    assert (address_of("::1", 1), address_of("127.0.0.1", 1)) == ("[::1]:1", "127.0.0.1:1")
