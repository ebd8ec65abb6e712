"""The wall clock is set back, and forward, under load: no session expires early, none is lost.

What is moved runs under libfaketime, which reads from a file how far off the clock is, for every
clock that a program can ask. The clocks that nobody can set (since boot) are left alone. The stores
of one machine live by those; services that share a Redis, by its clock and never by their own.
(Redis itself does not run under libfaketime, which its allocator calls too early.)
"""

import asyncio
import subprocess
from pathlib import Path

import pytest

from service.model import Model
from tests.chaos.clients import Load
from tests.chaos.conftest import StartService
from tests.chaos.run import Verdict, run
from tests.chaos.servers import Redis

pytestmark = pytest.mark.slow
IDLE_TIMEOUT_S = "60"  # less than the clock is moved


class FakeClock:
    """The wall clock of what is started in its environment."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._offset = directory / "offset"
        self.set("+0")

    def set(self, offset: str) -> None:
        """So far from the true time: -1h."""
        self._offset.write_text(f"{offset}\n")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def _library() -> str:
    """Where this machine has libfaketime, as its own command says."""
    command = ["faketime", "-f", "+0", "sh", "-c", "echo $LD_PRELOAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.needs("faketime")
def test_a_clock_that_is_set_loses_no_session(
    service: StartService, local_store: dict[str, str], tmp_path: Path, model: Model
) -> None:
    """An hour back, an hour forward, and back again; a SIGKILL at each where the store lasts."""
    clock = FakeClock(tmp_path)
    one = service(**local_store, **clock.environment, CAROUSEL_IDLE_TIMEOUT_S=IDLE_TIMEOUT_S)
    survives = local_store["CAROUSEL_STORE"] != "memory"

    async def trouble(load: Load) -> None:
        for offset in ("-1h", "+1h", "-2h"):
            await asyncio.sleep(0.3)
            clock.set(offset)
            await asyncio.sleep(0.3)
            if survives:
                await asyncio.to_thread(one.kill)
                await one.start_and_wait()

    async def whole() -> Verdict:
        await one.start_and_wait()
        return await run([one.port], model, trouble)

    verdict = asyncio.run(whole())
    print(verdict)
    assert verdict.faults == []
    assert "Traceback" not in one.text()
    hours = {line[11:13] for line in one.text().splitlines() if line.startswith("20")}
    assert not survives or len(hours) >= 3  # the clock of its log did move


@pytest.mark.needs("faketime", "redis-server")
def test_services_whose_clocks_disagree_share_their_sessions(
    service: StartService, redis: Redis, tmp_path: Path, model: Model
) -> None:
    """Three on one Redis, hours apart, one of them set back and forth."""
    clocks = [FakeClock(tmp_path / name) for name in ("early", "late", "wild")]
    clocks[0].set("-3h")
    clocks[1].set("+3h")
    settings = {
        "CAROUSEL_STORE": "redis",
        "CAROUSEL_REDIS_URL": f"redis://127.0.0.1:{redis.port}/0",
        "CAROUSEL_IDLE_TIMEOUT_S": IDLE_TIMEOUT_S,
    }
    services = [service(**settings, **clock.environment) for clock in clocks]

    async def trouble(load: Load) -> None:
        for offset in ("-1h", "+2h", "-3h"):
            await asyncio.sleep(0.3)
            clocks[2].set(offset)
        await asyncio.sleep(0.3)

    async def whole() -> Verdict:
        await asyncio.gather(*(one.start_and_wait() for one in services))
        return await run([one.port for one in services], model, trouble, steps=2_000)

    verdict = asyncio.run(whole())
    print(verdict)
    assert verdict.faults == []
    assert all("Traceback" not in one.text() for one in services)
