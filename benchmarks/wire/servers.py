"""A server's processes: started, counted, killed, stopped, the same way for everybody.

The processes of a server are those that carry its mark in their environment, and all of their
descendants: Ray leaves its parent's tree, and its workers write over their environment.
"""

import itertools
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "PEERS_MARK"
START_TIMEOUT_S = 120.0  # Ray takes twenty on two busy cores
STOP_TIMEOUT_S = 20.0
ON_LOOPBACK = "127.0.0.1"
OURS = ("CAROUSEL_", "BENTOML_", "MLSERVER_", "RAY_", "PEERS_", "PYTHONPATH", "VIRTUAL_ENV")


class ServerError(Exception):
    """A server did not start, or ended; the message has the end of its log."""


@dataclass
class Server:
    """A running server."""

    process: psutil.Popen
    port: int
    log: Path
    mark: str
    grpc_port: int = 0  # 0: it has none

    def pids(self) -> list[int]:
        """All of its processes, now."""
        return sorted(process.pid for process in self._family())

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-1500:]

    def kill(self) -> None:
        """End all of its processes by SIGKILL, at once."""
        with suppress(psutil.NoSuchProcess):
            self.process.suspend()  # or it would start a worker anew in the meantime
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while family := self._family():
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=1)
            if time.monotonic() > deadline:
                raise ServerError(f"processes do not end by SIGKILL: {family}")

    def stop(self) -> None:
        """End it as an operator would; by SIGKILL what is left after STOP_TIMEOUT_S."""
        if self.is_alive():
            self.process.send_signal(signal.SIGTERM)
            with suppress(psutil.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        self.kill()

    def _family(self) -> list[psutil.Process]:
        mark = f"{MARK}={self.mark}\0".encode()
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                    found[process.pid] = process
                    found |= {child.pid: child for child in process.children(recursive=True)}
        if self.process.pid in found:
            found[self.process.pid] = self.process  # this object must see its end
        return [p for p in found.values() if p.is_running() and not _is_dead(p)]


def _is_dead(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# Below the ports that the kernel gives to whoever connects: one that waits for its server to listen
# could be given the very port that it connects to.
_ports = itertools.cycle(range(10_000 + os.getpid() % 8_000, 20_000))


def free_port() -> int:
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ON_LOOPBACK, port))
            return port
    raise AssertionError("a cycle has no end")


def start(
    command: Sequence[str],
    cwd: Path,
    settings: Mapping[str, str],
    log: Path,
    port: int,
    grpc_port: int = 0,
) -> Server:
    """Run `command`, with its output in `log`; it is not waited for."""
    mark = uuid.uuid4().hex
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **settings, MARK: mark}
    with log.open("ab") as out:
        process = psutil.Popen(
            list(command), cwd=cwd, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    return Server(process, port, log, mark, grpc_port)
