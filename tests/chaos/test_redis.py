"""Three services on one Redis, asked in turn; it dies, and connections to it are cut."""

import asyncio
import random
import signal
import time
from collections.abc import Sequence

import pytest

from service.model import Model
from tests.chaos.clients import Load
from tests.chaos.conftest import StartService
from tests.chaos.run import Verdict, intervals, run
from tests.chaos.servers import Proxy, Redis, Service

pytestmark = [pytest.mark.needs("redis-server"), pytest.mark.slow]
SERVERS = 3


def on_redis(service: StartService, port: int, count: int = SERVERS) -> list[Service]:
    """Services that share the Redis at `port`."""
    settings = {"CAROUSEL_STORE": "redis", "CAROUSEL_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    return [service(**settings) for _ in range(count)]


async def start_all(services: Sequence[Service]) -> None:
    await asyncio.gather(*(one.start_and_wait() for one in services))


def no_traceback(services: Sequence[Service]) -> None:
    for one in services:
        assert "Traceback" not in one.text()


def test_connections_to_redis_that_are_cut_lose_nothing(
    service: StartService, redis: Redis, model: Model
) -> None:
    """In the middle of whatever they carry, and refused for a while."""
    cuts = 0

    async def whole() -> tuple[Verdict, list[Service]]:
        async with Proxy(redis.port) as proxy:
            services = on_redis(service, proxy.port)

            async def trouble(load: Load) -> None:
                nonlocal cuts
                rng = random.Random(7)
                for n in range(25):
                    await asyncio.sleep(rng.uniform(0.05, 0.2))
                    proxy.refuse(n % 5 == 4)
                    proxy.cut()
                    cuts += 1
                await asyncio.sleep(0.3)
                proxy.refuse(False)

            await start_all(services)
            verdict = await run([one.port for one in services], model, trouble, steps=2_000)
            for one in services:
                await asyncio.to_thread(one.stop)
            return verdict, services

    verdict, services = asyncio.run(whole())
    print(f"{cuts} cuts; {verdict}")
    assert verdict.faults == []
    no_traceback(services)


def test_a_redis_that_dies_and_comes_back_loses_nothing(
    service: StartService, redis: Redis, model: Model
) -> None:
    """SIGKILL; it appends every write to its file before it answers (`appendonly yes`)."""
    services = on_redis(service, redis.port)

    async def trouble(load: Load) -> None:
        for _ in range(4):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(redis.stop, signal.SIGKILL)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(redis.start)

    async def whole() -> Verdict:
        await start_all(services)
        return await run([one.port for one in services], model, trouble, steps=2_000)

    verdict = asyncio.run(whole())
    print(verdict)
    assert verdict.faults == []
    no_traceback(services)


def test_services_that_are_killed_beside_others_lose_nothing(
    service: StartService, redis: Redis, model: Model
) -> None:
    """Each in turn; the others answer for its sessions meanwhile."""
    services = on_redis(service, redis.port)

    async def trouble(load: Load) -> None:
        for one in services:
            await asyncio.sleep(0.3)
            await asyncio.to_thread(one.kill)
            await one.start_and_wait()

    async def whole() -> Verdict:
        await start_all(services)
        return await run([one.port for one in services], model, trouble, steps=2_000)

    verdict = asyncio.run(whole())
    print(verdict)
    assert verdict.faults == []
    no_traceback(services)


@pytest.mark.long
def test_nothing_is_lost_over_fifty_troubles(
    service: StartService, redis: Redis, model: Model
) -> None:
    """`make chaos`: SIGKILL of a service or of Redis, or cut connections, over 200,000 steps."""
    at: list[float] = []

    async def whole() -> tuple[Verdict, list[Service]]:
        async with Proxy(redis.port) as proxy:
            services = on_redis(service, proxy.port)

            async def kill_redis() -> None:
                await asyncio.to_thread(redis.stop, signal.SIGKILL)
                await asyncio.to_thread(redis.start)

            async def kill_service(one: Service) -> None:
                await asyncio.to_thread(one.kill)
                await one.start_and_wait()

            async def trouble(load: Load) -> None:
                rng = random.Random(50)
                while len(at) < 50 or load.ledger.steps < 200_000:
                    await asyncio.sleep(rng.uniform(0.1, 0.5))
                    at.append(time.monotonic())
                    match rng.randrange(3):
                        case 0:
                            await kill_service(rng.choice(services))
                        case 1:
                            await kill_redis()
                        case 2:
                            proxy.cut()

            await start_all(services)
            ports = [one.port for one in services]
            verdict = await run(ports, model, trouble, timeout_s=900)
            for one in services:
                await asyncio.to_thread(one.stop)
            return verdict, services

    verdict, services = asyncio.run(whole())
    print(f"{len(at)} troubles, {intervals(at)}; {verdict}")
    assert verdict.faults == []
    assert len(at) >= 50 and verdict.steps >= 200_000
    no_traceback(services)
