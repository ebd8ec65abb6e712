"""Real `bentoml serve` processes that are killed, and started again on the port that they had."""

import asyncio
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.conftest import Server, free_port, start_server

WORKER = "_bentoml_impl.worker.service"
REDIS_START_TIMEOUT_S = 10


@dataclass
class Service:
    """One service on one port, through all its lives."""

    directory: Path
    settings: dict[str, str]
    port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    killed_at: list[float] = field(default_factory=list)  # seconds, monotonic; each SIGKILL
    server: Server | None = None

    def start(self) -> None:
        """Start it; returns before it listens."""
        settings: dict[str, Any] = {
            **self.settings,
            "port": self.port,
            "grpc_port": self.grpc_port,
        }
        self.server = start_server(self.directory, **settings)

    async def start_and_wait(self) -> None:
        self.start()
        await asyncio.to_thread(self.running.wait_until_it_listens)

    @property
    def running(self) -> Server:
        if self.server is None:
            raise RuntimeError("the service was not started")
        return self.server

    def workers(self) -> list[psutil.Process]:
        """Its live workers."""
        children = self.running.process.children()
        return [child for child in children if _is_worker(child)]

    def kill_worker(self, rng: random.Random) -> None:
        """SIGKILL one of its workers, if there is one; the others are not told."""
        if workers := self.workers():
            rng.choice(workers).kill()
            self.killed_at.append(time.monotonic())

    def kill(self) -> None:
        """SIGKILL all of it."""
        self.killed_at.append(time.monotonic())
        self.running.kill()

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()

    def text(self) -> str:
        return self.running.text()


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE and WORKER in process.cmdline()
    return False


@dataclass
class Redis:
    """A real redis-server that appends every write to a file, and survives its own death."""

    directory: Path
    port: int = field(default_factory=free_port)
    process: psutil.Popen | None = None

    def start(self) -> None:
        """Start it, and return once it answers."""
        log = self.directory / "redis.log"
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        arguments += ["--appendonly", "yes", "--dir", str(self.directory)]
        with log.open("ab") as out:
            command = ["redis-server", *arguments]
            self.process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + REDIS_START_TIMEOUT_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not start:\n{log.read_text()}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; by SIGKILL, as it dies."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), "ping"], capture_output=True, text=True
        )
        return done.stdout.strip() == "PONG"


class Proxy:
    """A TCP proxy before a port of this machine, whose connections can be cut."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            self.cut()
            await self._server.wait_closed()

    def cut(self) -> None:
        """Reset every connection, in the middle of whatever it carries."""
        for writer in list(self._writers):
            writer.transport.abort()

    def refuse(self, refuses: bool) -> None:
        """Reset whoever connects, from now on."""
        self._refuses = refuses

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self._writers |= ends
        try:
            pumps = [
                asyncio.create_task(_pump(*pair)) for pair in ((reader, back), (there, writer))
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
