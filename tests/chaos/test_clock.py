"""The wall clock is set back, and forward, under load: no session expires early, none is lost.

The service runs under libfaketime, which reads from a file how far off the clock is, for every
clock that a program can ask. Sessions must live on whatever the wall clock says; of the other
clocks, none may go back, and libfaketime is told to leave them alone.
"""

import asyncio
import subprocess
from pathlib import Path

import pytest

from service.model import Model
from tests.chaos.clients import Load
from tests.chaos.conftest import StartService
from tests.chaos.run import Verdict, run

LIBRARY = "libfaketime.so.1"
IDLE_TIMEOUT_S = 60  # less than the clock is moved


def library() -> str:
    """Where Debian's package puts it: beside the multiarch libraries."""
    listed = subprocess.run(
        ["faketime", "-f", "+0", "sh", "-c", "echo $LD_PRELOAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.strip()


@pytest.mark.needs("faketime")
def test_a_clock_that_is_set_back_loses_no_session(
    service: StartService, local_store: dict[str, str], tmp_path: Path, model: Model
) -> None:
    """An hour back, an hour forward, and back again; a restart at each where the store lasts."""
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    one = service(
        **local_store,
        CAROUSEL_IDLE_TIMEOUT_S=str(IDLE_TIMEOUT_S),
        LD_PRELOAD=library(),
        FAKETIME_TIMESTAMP_FILE=str(offset),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )

    async def trouble(load: Load) -> None:
        for hours in ("-1h", "+1h", "-2h"):
            await asyncio.sleep(0.3)
            offset.write_text(f"{hours}\n")
            await asyncio.sleep(0.3)
            if local_store["CAROUSEL_STORE"] != "memory":
                await asyncio.to_thread(one.kill)
                await one.start_and_wait()

    async def whole() -> Verdict:
        await one.start_and_wait()
        return await run([one.port], model, trouble)

    verdict = asyncio.run(whole())
    print(verdict)
    assert verdict.faults == []
    assert "Traceback" not in one.text()
    hours = {line[11:13] for line in one.text().splitlines() if line[:2] == "20"}
    assert local_store["CAROUSEL_STORE"] == "memory" or len(hours) >= 3  # its log's clock did move
