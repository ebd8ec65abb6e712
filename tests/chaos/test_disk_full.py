"""A disk that fills up under load: refused in words, nothing lost, and on again once there is room.

The disk is a small tmpfs of the test's own, which it takes root to mount; elsewhere it skips.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.model import Model
from tests.chaos.clients import Load
from tests.chaos.conftest import StartService, disk
from tests.chaos.http_client import Reply, ask
from tests.chaos.run import Verdict, run
from tests.chaos.servers import Service

pytestmark = pytest.mark.slow
DISK_BYTES = 24 << 20
STEPS = 2_000  # of each request: its session keeps the last reply, of 8 kB
TRIES = 3_000  # such sessions: more than the disk holds


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of 24 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("it takes root to mount a small disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(b"\0" * 4096)
        except OSError:
            return ballast


def predict(session_id: str, step: int = 0) -> bytes:
    return json.dumps({"session_id": session_id, "x": [[0.5]] * STEPS, "step": step}).encode()


async def open_until_refused(service: Service, name: str) -> tuple[int, Reply]:
    """How many sessions began, and the refusal of the next."""
    for n in range(TRIES):
        reply = await ask(service.port, "POST", "/predict", predict(f"{name}-{n}"))
        if reply.status != 200:
            return n, reply
    raise AssertionError(f"{TRIES} sessions fit on a disk that is full")


def test_a_full_disk_refuses_new_sessions_and_loses_none(
    service: StartService, small_disk: Path
) -> None:
    """503 `store_full` with Retry-After; what there was is there, a restart later too."""
    one = service(**disk(small_disk, workers=1), CAROUSEL_MAX_SESSIONS="20000")

    async def whole() -> None:
        await one.start_and_wait()
        await ask(one.port, "POST", "/predict", predict("first"))
        ballast = fill(small_disk)
        began, refused = await open_until_refused(one, "more")
        assert (refused.status, refused.json()["error"]["code"]) == (503, "store_full")
        assert int(refused.headers["retry-after"]) >= 1
        for name in ["first", *(f"more-{n}" for n in range(began))]:
            assert (await ask(one.port, "GET", f"/sessions/{name}")).json()["step"] == STEPS
        again = await ask(one.port, "POST", "/predict", predict("first", STEPS))
        assert again.status in (200, 503)
        stand = 2 * STEPS if again.status == 200 else STEPS
        assert (await ask(one.port, "GET", "/sessions/first")).json()["step"] == stand
        one.stop()
        await one.start_and_wait()  # on the full disk
        assert (await ask(one.port, "GET", "/sessions/first")).json()["step"] == stand
        ballast.unlink()
        for n in range(50):
            reply = await ask(one.port, "POST", "/predict", predict(f"more-{began + n}"))
            assert (reply.status, reply.json()["created"]) == (200, True)
        again = await ask(one.port, "POST", "/predict", predict("first", stand))
        assert (again.status, again.json()["step"]) == (200, stand + STEPS)

    asyncio.run(whole())
    assert "Traceback" not in one.text()


def test_a_disk_that_is_full_now_and_then_loses_nothing(
    service: StartService, small_disk: Path, model: Model
) -> None:
    """Under load of two workers, with a SIGKILL while it is full."""
    one = service(**disk(small_disk), CAROUSEL_MAX_SESSIONS="20000")

    async def trouble(load: Load) -> None:
        for n in range(3):
            await asyncio.sleep(0.3)
            ballast = await asyncio.to_thread(fill, small_disk)
            _, refused = await open_until_refused(one, f"filler-{n}")
            assert refused.json()["error"]["code"] == "store_full"
            await asyncio.sleep(0.3)
            if n == 1:
                await asyncio.to_thread(one.kill)
                await one.start_and_wait()
            ballast.unlink()

    async def whole() -> Verdict:
        await one.start_and_wait()
        return await run([one.port], model, trouble)

    verdict = asyncio.run(whole())
    print(verdict)
    assert verdict.faults == []
    assert "Traceback" not in one.text()
