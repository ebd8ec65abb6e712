"""Real Redis servers on loopback, each in a process and a folder of its own."""

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

START_TIMEOUT_S = 20
SLOTS = 16_384


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RedisServer:
    """One `redis-server`; it may be stopped, killed, frozen, and started again on its data."""

    folder: Path
    options: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        given = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["redis-server", *given, "--save", "", *self.options], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if self.command("PING") == "PONG":
                    return
            except OSError:
                pass  # it does not listen yet
            if time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.02)

    def command(self, *words: str) -> str:
        """What it answers, over a connection of its own, as redis-cli prints it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            parts = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{parts}".encode())
            reply = connection.recv(1 << 16).decode()
            while reply.startswith("$") and len(reply) < int(reply[1 : reply.index("\r\n")]):
                reply += connection.recv(1 << 16).decode()
        return reply[reply.index("\r\n") + 2 :] if reply[0] == "$" else reply[1:].strip()

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As a crash does: nothing is saved that is not on disk."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.send(number)
            self.process.wait()
            self.process = None


@contextmanager
def one_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def a_cluster(folder: Path, nodes: int = 3) -> Iterator[list[RedisServer]]:
    """Masters that share all slots; without `redis-cli --cluster create`, which asks questions."""
    servers = [
        RedisServer(
            folder / str(number),
            ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
            port=_port_with_a_bus(),
        )
        for number in range(nodes)
    ]
    try:
        for number, server in enumerate(servers):
            server.start()
            first, last = SLOTS * number // nodes, SLOTS * (number + 1) // nodes - 1
            assert server.command("CLUSTER", "ADDSLOTSRANGE", str(first), str(last)) == "OK"
            server.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for server in servers[1:]:
            server.command("CLUSTER", "MEET", "127.0.0.1", str(servers[0].port))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(_knows_all(server, nodes) for server in servers):
            if time.monotonic() > deadline:
                raise RuntimeError(servers[0].command("CLUSTER", "NODES"))
            time.sleep(0.05)
        yield servers
    finally:
        for server in servers:
            server.stop()


def _knows_all(server: RedisServer, nodes: int) -> bool:
    info = server.command("CLUSTER", "INFO")
    return "cluster_state:ok" in info and f"cluster_known_nodes:{nodes}" in info


def _port_with_a_bus() -> int:
    """A node's bus listens 10,000 above its port."""
    while True:
        port = free_port() % 20_000 + 20_000
        try:
            for one in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
        except OSError:
            continue
        return port


class CuttingProxy:
    """Between a client and a server; it can cut a connection in the middle of a call."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.cut: Literal["request", "reply"] | None = None  # the next one, and only that
        self.on_cut: Callable[[], Awaitable[object]] | None = None  # before the client notices

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """The URL of the way through it."""
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with listener:
            yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near, far = await asyncio.open_connection("127.0.0.1", self._server.port)
        pumps = [
            asyncio.create_task(self._pump(reader, far, "request")),
            asyncio.create_task(self._pump(near, writer, "reply")),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        far.close()
        writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, what: str
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if self.cut == what:
                    self.cut = None
                    if self.on_cut is not None:
                        await self.on_cut()
                    return
                sink.write(data)
                await sink.drain()
