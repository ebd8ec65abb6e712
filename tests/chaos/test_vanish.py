"""A client that vanishes in the middle: whole requests count, parts of one never do."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.model import Model
from tests.chaos.clients import Load, Mischief
from tests.chaos.conftest import disk
from tests.chaos.http_client import STREAM_HEAD, Connection, ask, connect, request
from tests.chaos.run import Size, run
from tests.chaos.servers import Service

SETTLE_S = 10


@pytest.fixture(scope="module", params=["memory", "disk"])
def one(
    request: pytest.FixtureRequest, artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One service of each store for all: each test has sessions of its own."""
    directory = tmp_path_factory.mktemp("vanish")
    store = disk(directory) if request.param == "disk" else {"CAROUSEL_STORE": "memory"}
    settings = {"CAROUSEL_ARTIFACTS": str(artifacts), "CAROUSEL_MAX_QUEUE": "64", **store}
    service = Service(directory, settings)
    try:
        service.start()
        service.running.wait_until_it_listens()
        yield service
    finally:
        service.stop()


def predict(session_id: str, step: int, steps: int = 2) -> bytes:
    x = [[0.1 * (step + n)] for n in range(steps)]
    return json.dumps({"session_id": session_id, "step": step, "x": x}).encode()


async def stand(service: Service, session_id: str) -> int:
    """Where it stands; 0 where it never began."""
    reply = await ask(service.port, "GET", f"/sessions/{session_id}")
    return int(reply.json()["step"]) if reply.status == 200 else 0


async def vanish(service: Service, data: bytes, wait_s: float) -> None:
    async with connect(service.port) as connection:
        await connection.send(data)
        await asyncio.sleep(wait_s)


def test_half_a_body_runs_nothing(one: Service) -> None:
    """Cut after any part of its head or body."""

    async def whole() -> None:
        message = request("POST", "/predict", predict("half", 0))
        for size in range(1, len(message), 7):
            await vanish(one, message[:size], 0)
        assert await stand(one, "half") == 0
        reply = await ask(one.port, "POST", "/predict", predict("half", 0))
        assert (reply.json()["step"], reply.json()["created"]) == (2, True)

    asyncio.run(whole())
    assert "Traceback" not in one.text()


def test_half_a_line_runs_nothing(one: Service) -> None:
    """The lines before it are run; the half is not, though it may be JSON."""

    async def whole() -> None:
        async with connect(one.port) as connection:
            await connection.send(STREAM_HEAD)
            for n in range(3):
                await connection.send_line(predict("line", 2 * n))
            assert (await connection.read_head())[0] == 200
            for n in range(3):
                line = await connection.read_line()
                assert line is not None and json.loads(line)["step"] == 2 * n + 2
            last = predict("line", 6)
            await connection.send(b"%x\r\n%s\r\n" % (len(last), last))  # all but its newline
        await asyncio.sleep(0.1)
        assert await stand(one, "line") == 6

    asyncio.run(whole())
    assert "Traceback" not in one.text()


def test_a_request_whose_client_left_before_its_reply_runs_once_or_never(one: Service) -> None:
    """The retry is answered, and the session moved once."""

    async def whole() -> None:
        for n in range(60):
            body = predict("reply", 2 * n)
            await vanish(one, request("POST", "/predict", body), 0.0005 * (n % 8))
            reply = await ask(one.port, "POST", "/predict", body)
            assert (reply.status, reply.json()["step"]) == (200, 2 * n + 2)

    asyncio.run(whole())
    assert "Traceback" not in one.text()


def test_clients_that_vanish_leave_nothing_behind(one: Service, model: Model) -> None:
    """No connection, no place in the queue; those beside them are served as ever."""

    async def trouble(load: Load) -> None:
        idle: list[Connection] = []
        for n in range(200):
            await vanish(one, request("POST", "/predict", predict(f"gone-{n}", 0)), 0)
            stream = await Connection.open(one.port)
            idle.append(stream)
            await stream.send(STREAM_HEAD)
            await stream.send_line(predict(f"gone-stream-{n}", 0))
        for stream in idle:
            stream.cut()

    async def whole() -> None:
        size, mischief = Size(unary=2, stream=1), Mischief(cut=0.05)
        verdict = await run([one.port], model, trouble, steps=2_000, size=size, mischief=mischief)
        assert verdict.faults == []

    asyncio.run(whole())
    deadline = time.monotonic() + SETTLE_S
    while any(len(_connections(worker)) > 0 for worker in one.workers()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "Traceback" not in one.text()


def _connections(worker: psutil.Process) -> list[object]:
    """What is open to clients; a keep-alive that timed out is closed within five seconds."""
    return [one for one in worker.net_connections("tcp") if one.status == "ESTABLISHED"]
