"""SIGKILL under load: of a worker, and of the whole service; nothing is lost, doubled or mixed."""

import asyncio
import json
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from service.model import Model
from tests.chaos.clients import Load
from tests.chaos.conftest import StartService, disk
from tests.chaos.http_client import STREAM_HEAD, Broken, ask, chunked, connect
from tests.chaos.oracle import Chunk, Fault, Ledger
from tests.chaos.run import Verdict, intervals, run
from tests.chaos.servers import Service

RESPAWN_TIMEOUT_S = 30  # BentoML looks for dead workers every ten seconds


async def kill_for_ever(service: Service, load: Load, kills: int, steps: int) -> None:
    """One worker, then the other or all, some hundred ms apart; start again; and so on."""
    rng = random.Random(kills)
    while len(service.killed_at) < kills or load.ledger.steps < steps:
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        service.kill_worker(rng)
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        if rng.random() < 0.5:
            service.kill_worker(rng)
        await asyncio.to_thread(service.kill)
        await service.start_and_wait()


def kill_under_load(
    service: Service, model: Model, kills: int, steps: int, timeout_s: float
) -> Verdict:
    async def whole() -> Verdict:
        await service.start_and_wait()
        return await run(
            [service.port],
            model,
            lambda load: kill_for_ever(service, load, kills, steps),
            steps=steps,
            timeout_s=timeout_s,
        )

    verdict = asyncio.run(whole())
    print(f"{len(service.killed_at)} kills, {intervals(service.killed_at)}; {verdict}")
    return verdict


@pytest.mark.slow
def test_nothing_is_lost_when_workers_and_services_are_killed(
    service: StartService, model: Model, tmp_path: Path
) -> None:
    """Two workers on one disk store; the clients try again."""
    killed = service(**disk(tmp_path))
    verdict = kill_under_load(killed, model, kills=6, steps=2_000, timeout_s=100)
    assert verdict.faults == []
    assert len(killed.killed_at) >= 6
    assert verdict.steps >= 2_000
    assert "Traceback" not in killed.text()


@pytest.mark.long
def test_nothing_is_lost_over_fifty_kills(
    service: StartService, model: Model, tmp_path: Path
) -> None:
    """`make chaos`: the same, for at least 200,000 steps."""
    killed = service(**disk(tmp_path))
    verdict = kill_under_load(killed, model, kills=50, steps=200_000, timeout_s=900)
    assert verdict.faults == []
    assert len(killed.killed_at) >= 50
    assert verdict.steps >= 200_000
    assert "Traceback" not in killed.text()


@pytest.mark.slow
def test_a_killed_worker_comes_back_by_itself(
    service: StartService, model: Model, tmp_path: Path
) -> None:
    """The other one answers meanwhile; nobody but BentoML starts the new one."""
    killed = service(**disk(tmp_path))

    async def trouble(load: Load) -> None:
        killed.kill_worker(random.Random(1))
        deadline = time.monotonic() + RESPAWN_TIMEOUT_S
        begun = load.ledger.steps
        while len(killed.workers()) < 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert load.ledger.steps > begun

    async def whole() -> Verdict:
        await killed.start_and_wait()
        return await run([killed.port], model, trouble)

    verdict = asyncio.run(whole())
    assert verdict.faults == []
    assert "Traceback" not in killed.text()


@pytest.mark.slow
def test_lines_in_flight_are_run_whole_or_not_at_all(
    service: StartService, model: Model, tmp_path: Path
) -> None:
    """A stream sends far ahead of its answers; after a SIGKILL its session goes on from there."""
    killed = service(**disk(tmp_path, workers=1))
    ledger = Ledger()
    rng = random.Random(5)

    def chunk(start: int) -> Chunk:
        x = tuple((rng.gauss(0, 1),) for _ in range(rng.choice([1, 2, 30])))
        return Chunk("ahead", start, x)

    def body(one: Chunk) -> bytes:
        return json.dumps({"session_id": "ahead", "x": one.x, "step": one.start}).encode()

    async def stand() -> int:
        reply = await ask(killed.port, "GET", "/sessions/ahead")
        return int(reply.json()["step"]) if reply.status == 200 else 0

    async def one_life() -> None:
        sent = [chunk(await stand())]
        for _ in range(300):
            sent.append(chunk(sent[-1].end))
        answered = 0
        async with connect(killed.port) as connection:
            await connection.send(STREAM_HEAD + b"".join(chunked(body(one)) for one in sent))
            await connection.read_head()
            with suppress(Broken):
                while True:
                    line = await connection.read_line()
                    assert line is not None
                    y = tuple(map(tuple, json.loads(line)["y"]))
                    ledger.acknowledge(sent[answered], y)
                    answered += 1
                    if answered == 100:
                        await asyncio.to_thread(killed.kill)
        for one in sent[answered:]:
            ledger.doubt(one)
        await killed.start_and_wait()

    async def whole() -> list[Fault]:
        await killed.start_and_wait()
        for _ in range(3):
            await one_life()
        last = chunk(await stand())
        reply = await ask(killed.port, "POST", "/predict", body(last))
        ledger.acknowledge(last, tuple(map(tuple, reply.json()["y"])))
        return ledger.judge(model, {"ahead": await stand()})

    assert asyncio.run(whole()) == []
    assert len(ledger.acknowledged) > 300


def test_the_harness_finds_what_a_store_loses(service: StartService, model: Model) -> None:
    """The memory store forgets all with its process: every session that goes on is a fault."""
    forgetful = service(CAROUSEL_STORE="memory")

    async def trouble(load: Load) -> None:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(forgetful.kill)
        await forgetful.start_and_wait()

    async def whole() -> Verdict:
        await forgetful.start_and_wait()
        return await run([forgetful.port], model, trouble)

    verdict = asyncio.run(whole())
    assert any("session_gone" in fault.what for fault in verdict.faults)
    assert any("lost" in fault.what for fault in verdict.faults)
