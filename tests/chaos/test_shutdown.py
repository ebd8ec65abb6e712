"""SIGTERM under load: what is checked, exactly.

- A request that the server has read is answered whole: by 200 if it was accepted before the
  signal, however long it takes, else by 503 `draining`.
- Any other one gets no reply at all: its connection was refused, or closed before the first byte
  of one. No reply breaks off in the middle.
- A stream gets an answer for each line before the one that the line `draining` names, none for
  that and later ones, and its proper end.
  (Its client has lines in flight, and sends no more: the server hangs up on whoever goes on
  sending, and TCP may then lose what was on its way; `step` makes that safe too.)
- What got no answer was not run: where the store outlives the process, each session then stands
  at the sum of what was answered.
- The process ends by itself, well within the 30 s that Kubernetes gives.
"""

import asyncio
import json
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest

from service.model import Model
from tests.chaos.conftest import StartService
from tests.chaos.http_client import STREAM_HEAD, Broken, ask, connect, request
from tests.chaos.servers import Service

GRACE_S = 20  # with room for a machine that does more than this
LONG_STEPS = 16_000  # the most there may be: some tenths of a second of work
LEAD_S = 0.5  # in which a request is read; on a busy machine not each of them is
WINDOW = 8  # lines of a stream in flight


def body(session_id: str, step: int, steps: int = 3) -> bytes:
    x = np.random.default_rng(step).normal(size=(steps, 1)).tolist()
    return json.dumps({"session_id": session_id, "step": step, "x": x}).encode()


@dataclass
class Told:
    """What the clients were told before the end."""

    stands: dict[str, int] = field(default_factory=dict)  # session -> steps answered
    statuses: list[int] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    is_over: bool = False  # streams send no further line


async def drive_unary(port: int, session_id: str, told: Told) -> None:
    """Chunk after chunk, until the first that is not answered by 200."""
    told.stands[session_id] = 0
    try:
        async with connect(port) as connection:
            while True:
                step = told.stands[session_id]
                await connection.send(request("POST", "/predict", body(session_id, step)))
                reply = await connection.read_reply()
                told.statuses.append(reply.status)
                if reply.status != 200:
                    assert reply.json()["error"]["code"] == "draining"
                    return
                told.stands[session_id] = reply.json()["step"]
    except Broken as error:
        told.broken.append(error)


async def drive_stream(port: int, session_id: str, told: Told) -> None:
    """A window of lines, until the line that says that the server drains, and the end."""
    told.stands[session_id] = 0
    sent = answered = 0
    async with connect(port) as connection:
        await connection.send(STREAM_HEAD)
        status, _ = await connection.read_head()
        assert status == 200
        while True:
            while sent < answered + WINDOW and not told.is_over:
                await connection.send_line(body(session_id, 3 * sent))
                sent += 1
            line = await connection.read_line()
            assert line is not None
            reply = json.loads(line)
            if "error" in reply:
                break
            answered += 1
            told.stands[session_id] = reply["step"]
            assert reply["step"] == 3 * answered
        assert (reply["error"]["code"], reply["line"]) == ("draining", answered + 1)
        assert await connection.read_line() is None


async def drive_long(port: int, session_id: str, told: Told) -> None:
    """One request that takes a while: it gets a whole reply, 503 if it came too late."""
    async with connect(port) as connection:
        await connection.send(request("POST", "/predict", body(session_id, 0, LONG_STEPS)))
        reply = await connection.read_reply()
    told.statuses.append(reply.status)
    if reply.status == 200:
        assert reply.json()["step"] == LONG_STEPS
        told.stands[session_id] = LONG_STEPS
    else:
        assert (reply.status, reply.json()["error"]["code"]) == (503, "draining")


async def terminate_under_load(service: Service) -> tuple[Told, float]:
    """What the clients were told, and how long the process took to end."""
    told = Told()
    async with asyncio.TaskGroup() as group:
        for n in range(8):
            group.create_task(drive_unary(service.port, f"unary-{n}", told))
        for n in range(4):
            group.create_task(drive_stream(service.port, f"stream-{n}", told))
        await asyncio.sleep(0.5)
        for n in range(4):
            group.create_task(drive_long(service.port, f"long-{n}", told))
        await asyncio.sleep(LEAD_S)
        told.is_over = True
        service.running.terminate()
        start = asyncio.get_running_loop().time()
        await asyncio.to_thread(psutil.wait_procs, [service.running.process], timeout=60)
        took_s = asyncio.get_running_loop().time() - start
    return told, took_s


def test_every_accepted_request_is_answered(
    service: StartService, local_store: dict[str, str], model: Model
) -> None:
    """As this file's docstring says."""
    stopped = service(**local_store)

    async def whole() -> None:
        await stopped.start_and_wait()
        told, took_s = await terminate_under_load(stopped)
        assert took_s < GRACE_S
        assert not any(error.reply_began for error in told.broken)
        assert set(told.statuses) <= {200, 503}
        assert told.stands.get("long-0") == LONG_STEPS  # the first of them had all the time
        if local_store["CAROUSEL_STORE"] == "memory":
            return
        await stopped.start_and_wait()
        for session_id, stand in told.stands.items():
            reply = await ask(stopped.port, "GET", f"/sessions/{session_id}")
            found = reply.json()["step"] if reply.status == 200 else 0
            assert (session_id, found) == (session_id, stand)

    asyncio.run(whole())
    assert "Traceback" not in stopped.text()


def test_nothing_is_accepted_after_sigterm_and_readiness_says_so(service: StartService) -> None:
    """While one long request is still answered: 503 on connections that are open, /readyz too."""
    stopped = service(CAROUSEL_STORE="memory")

    async def whole() -> None:
        await stopped.start_and_wait()
        told = Told()
        async with asyncio.TaskGroup() as group:
            group.create_task(drive_long(stopped.port, "long", told))
            await asyncio.sleep(LEAD_S)
            stopped.running.terminate()
            await asyncio.to_thread(psutil.wait_procs, [stopped.running.process], timeout=60)
        assert told.statuses in ([200], [503])
        with pytest.raises(Broken):
            await ask(stopped.port, "GET", "/readyz")

    asyncio.run(whole())
