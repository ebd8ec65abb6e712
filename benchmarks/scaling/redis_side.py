"""Redis under the sessions: its memory for each, its CPU and its network for a step.

A `redis-server` of its own, on loopback and without files; what it says of itself (INFO) before and
after, nothing of ours. Its CPU and network are of an engine that runs batches of `BATCH`.
"""

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.scaling.sleepers import (
    IDLE_TIMEOUT_S,
    MAX_BATCH,
    MAX_QUEUE,
    MAX_STEPS,
    Seed,
    put_to_sleep,
    sleeper,
)
from benchmarks.wire.servers import free_port
from service.catalog import Catalog
from service.engine import Engine
from service.store.redis import RedisStore
from service.store.redis_link import Link

BATCH = 64
TURNS = 60  # batches that are measured
START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class RedisPoint:
    """So many sessions of this state on one Redis server."""

    asleep: int
    state_bytes: int
    memory_bytes: float  # of the server, a session
    server_us: float  # of its CPU, a step: one read and one commit
    wire_bytes: float  # to and from it, a step, payload


def is_installed() -> bool:
    return shutil.which("redis-server") is not None


async def measure_redis(seed: Seed, asleep: int) -> RedisPoint:
    """With a server of its own."""
    with _redis() as (url, info):
        store = RedisStore(Link(url, must_survive_power_cuts=False), 2 * asleep, IDLE_TIMEOUT_S)
        before = info()
        await put_to_sleep(store, seed, range(asleep))
        held = info()
        engine = Engine(
            Catalog([seed.model]),
            store,
            max_batch=MAX_BATCH,
            max_queue=MAX_QUEUE,
            max_steps=MAX_STEPS,
        )
        engine.start()
        at = 0
        for turn in range(-5, TURNS):
            if turn == 0:
                begun = info()
            keys = [sleeper((at + n) % asleep) for n in range(BATCH)]
            at += BATCH
            await asyncio.gather(*(engine.predict(seed.request(key, at)) for key in keys))
        after = info()
        await engine.close()
    steps = BATCH * TURNS
    cpu_s = sum(after[name] - begun[name] for name in ("used_cpu_user", "used_cpu_sys"))
    names = ("total_net_input_bytes", "total_net_output_bytes")
    return RedisPoint(
        asleep,
        len(seed.state),
        (held["used_memory"] - before["used_memory"]) / asleep,
        cpu_s / steps * 1e6,
        sum(after[name] - begun[name] for name in names) / steps,
    )


class Info:
    """What a server says of itself, by name."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __call__(self) -> dict[str, float]:
        with socket.create_connection(("127.0.0.1", self._port), timeout=10) as one:
            one.sendall(b"INFO\r\nQUIT\r\n")
            text = b""
            while piece := one.recv(1 << 16):
                text += piece
        found: dict[str, float] = {}
        for line in text.decode().splitlines():
            name, _, value = line.partition(":")
            if value.replace(".", "", 1).isdigit():
                found[name] = float(value)
        return found


@contextmanager
def _redis() -> Iterator[tuple[str, Info]]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
        try:
            info, deadline = Info(port), time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    if info():
                        break
                except OSError:
                    if time.monotonic() > deadline:
                        raise SystemExit("scaling: redis-server does not start") from None
                    time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}/0", info
        finally:
            process.terminate()
            process.wait()
