"""Over a real server: the time to its first answer, the CPU of a step, and its bytes on the wire.

The server is `bentoml serve` with the disk store; its CPU time is that of all of its processes. The
load is `benchmarks.peers`' own. Bytes are what the kernel counted for the connection (TCP_INFO):
payload of both directions, and `HEADER_BYTES` for each segment that carried some or acknowledged.
"""

import asyncio
import json
import random
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.wire import servers
from benchmarks.wire.carousel import UNARY, Way, ways
from benchmarks.wire.client import wait_until_it_answers
from benchmarks.wire.job import Job, run_load
from benchmarks.wire.links import kind_of
from benchmarks.wire.load import cpu_seconds
from benchmarks.wire.network import WIDTH
from benchmarks.wire.servers import Server

WAYS = ways("")  # of tritonclient's, which name the model, none is asked
MAX_SESSIONS = 2_000_000
IDLE_TIMEOUT_S = 86_400
HEADER_BYTES = 66  # of a segment: Ethernet 14, IPv4 20, TCP 20 and its timestamps 12
START_TIMEOUT_S = 60.0
_TCP_INFO_BYTES = 200
_COUNTS_AT = 120  # of tcpi_bytes_acked, bytes_received (u64), segs_out, segs_in (u32): linux/tcp.h


@dataclass(frozen=True)
class WayPoint:
    """A step asked in one way, by so many sessions at once, beside so many asleep."""

    way: str
    sessions: int
    asleep: int
    state_bytes: int
    cpu_us: float  # of all of the server's processes
    steps_per_s: float  # of the moment


@dataclass(frozen=True)
class WireBytes:
    """What a step of one session takes on the network, both directions."""

    way: str
    sessions: int  # on one connection, each with one step under way
    payload: float
    segments: float
    total: float  # with `HEADER_BYTES` for each segment


@dataclass(frozen=True)
class StartUp:
    """From the start of the process to the first 200 of /predict."""

    models: int
    wall_s: float
    cpu_s: float  # of all processes, until then
    memory_mib: float  # of all processes then: proportional set size


def command(port: int) -> list[str]:
    bentoml = str(Path(sys.executable).parent / "bentoml")
    return [bentoml, "serve", "--host", "127.0.0.1", "--port", str(port)]


def start(artifacts: Path, folder: Path, store: Path) -> Server:
    """Not waited for."""
    settings = {
        "CAROUSEL_ARTIFACTS": str(artifacts.resolve()),
        "CAROUSEL_STORE_PATH": str(store),
        "CAROUSEL_MAX_SESSIONS": str(MAX_SESSIONS),
        "CAROUSEL_IDLE_TIMEOUT_S": str(IDLE_TIMEOUT_S),
        "CAROUSEL_GRPC_PORT": str(servers.free_port()),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    if names := sorted(path.name for path in artifacts.iterdir()):
        settings["CAROUSEL_DEFAULT_MODEL"] = names[0]
    port = servers.free_port()
    return servers.start(command(port), ROOT, settings, folder / "log", port)


@contextmanager
def serving(artifacts: Path, store: Path | None = None) -> Iterator[Server]:
    """A server that answers, over the sessions in `store`."""
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        folder = Path(name)
        server = start(artifacts, folder, store or folder / "sessions")
        try:
            asyncio.run(wait_until_it_answers(server, WAYS[UNARY].link, WAYS[UNARY].path, WIDTH))
            yield server
        finally:
            server.stop()


def measure_start(artifacts: Path) -> StartUp:
    """One start, of all models under `artifacts`."""
    models = len(list(artifacts.iterdir()))
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        folder = Path(name)
        begun = time.perf_counter()
        server = start(artifacts, folder, folder / "sessions")
        try:
            while not _answers(server.port):
                if not server.is_alive() or time.perf_counter() - begun > START_TIMEOUT_S:
                    raise SystemExit(f"scaling: the server does not start\n{server.tail()}")
                time.sleep(0.01)
            wall_s, pids = time.perf_counter() - begun, server.pids()
            return StartUp(models, wall_s, cpu_seconds(pids), sum(map(_pss_bytes, pids)) / 2**20)
        finally:
            server.stop()


def _answers(port: int) -> bool:
    body = json.dumps({"session_id": "first", "x": [[0.0] * WIDTH]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT_S) as one:
            one.sendall(head.encode() + body)
            return one.recv(4096).startswith(b"HTTP/1.1 200")
    except OSError:  # it does not listen yet
        return False


def _pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def measure_way(
    server: Server, way: str, sessions: int, seconds: float, asleep: int, state_bytes: int
) -> WayPoint:
    """A closed loop for so long; its first answers warm up."""
    how = WAYS[way]
    job = Job(
        how.link,
        how.path,
        server.port,
        sessions,
        seconds,
        warm_s=0.5,
        width=WIDTH,
        prefix=f"{way.replace(' ', '-')}-{time.monotonic_ns()}",
        pids=server.pids(),
    )
    found = run_load(job)
    cpu_us = found.server_cpu_s / found.steps * 1e6
    return WayPoint(way, sessions, asleep, state_bytes, cpu_us, found.steps / found.seconds)


def measure_bytes(server: Server, way: str, sessions: int, turns: int) -> WireBytes:
    """All sessions ask one step, and the next when all have their answers."""
    return asyncio.run(_bytes(server.port, way, WAYS[way], sessions, turns))


async def _bytes(port: int, way: str, how: Way, sessions: int, turns: int) -> WireBytes:
    loop = asyncio.get_running_loop()
    left = 0
    done = asyncio.Event()

    def answered(place: int, body: bytes) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    names = [f"{way.replace(' ', '-')}-bytes-{number}" for number in range(sessions)]
    link = kind_of(how.link)(how.path, names, answered)
    await loop.create_connection(lambda: link, "127.0.0.1", port)
    await link.opened
    rng = random.Random(0)
    before = (0, 0)
    for turn in range(turns + 1):
        if turn == 1:  # the first binds names to handles, or begins the sessions
            before = _counts(link.transport.get_extra_info("socket"))
        left = sessions
        done.clear()
        for place in range(sessions):
            x = [rng.uniform(-1, 1) for _ in range(WIDTH)]
            link.ask(place, link.question(place, x, is_first=turn == 0))
        link.flush()
        await asyncio.wait_for(done.wait(), START_TIMEOUT_S)
    after = _counts(link.transport.get_extra_info("socket"))
    await link.close()
    steps = sessions * turns
    payload, segments = ((b - a) / steps for a, b in zip(before, after, strict=True))
    return WireBytes(way, sessions, payload, segments, payload + HEADER_BYTES * segments)


def _counts(one: socket.socket) -> tuple[int, int]:
    """Payload bytes and segments so far, both directions."""
    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    acked, received, out, into = struct.unpack_from("=QQII", info, _COUNTS_AT)
    return acked + received, out + into
