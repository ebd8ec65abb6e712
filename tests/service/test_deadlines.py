"""Deadlines: what is not done in time is refused, and was not done."""

import asyncio
import time
from typing import Any

import pytest
from msgspec.structs import replace

from service.batcher import SLICE_STEPS
from service.catalog import Catalog
from service.engine import Engine
from service.errors import RequestError, SessionNotFoundError, TimedOutError
from service.forecast import ForecastRequest
from service.job import Request
from service.model import Model
from service.origin import Origin, origin_of
from service.session import SessionKey
from service.store.disk.store import DiskStore
from service.store.memory import MemoryStore
from tests.service.test_blocks import NAMES, begin, draw, offer
from tests.service.test_engine import ROOM, request, rows, run, running

KEY = SessionKey("", "s")
NOT_DONE = r"took longer than its timeout of 0.02 s; it was not done, and its session stands where"


class Slow(Model):
    """Takes 0.1 s a batch, in a thread."""

    def run(self, chunks: Any, states: Any) -> Any:
        time.sleep(0.1)
        return super().run(chunks, states)


class Late(MemoryStore):
    """Commits take 0.1 s."""

    async def commit(self, commits: Any) -> Any:
        await asyncio.sleep(0.1)
        return await super().commit(commits)


def slow(model: Model) -> Model:
    return Slow(model.artifact, model.runtime, type(model.cost)(base_s=1.0, per_row_s=0.0))


def in_time(asked: Request, timeout_s: float | None) -> Request:
    return replace(asked, origin=Origin(timeout_s=timeout_s))


async def refused(engine: Engine, asked: Request) -> float:
    """Seconds until it was refused as too late."""
    begun = time.monotonic()
    with pytest.raises(TimedOutError, match=NOT_DONE):
        await engine.predict(asked)
    return time.monotonic() - begun


def test_what_waits_is_not_run_once_its_time_is_up(sine: Model) -> None:
    """It is refused then, not when its turn would come; the request behind it runs."""

    async def scenario() -> None:
        async with running(Catalog([slow(sine)])) as engine:
            first = await engine.submit(request("s", rows(1), 0))
            second = asyncio.ensure_future(
                refused(engine, in_time(request("s", rows(1, seed=1), 1), 0.02))
            )
            await asyncio.sleep(0)
            third = await engine.submit(request("s", rows(1, seed=2), 1))
            await second
            assert not first.future.done()
            assert (await first.future).step == 1
            assert (await third.future).step == 2

    run(scenario())


@pytest.mark.parametrize("steps", [1, 3 * SLICE_STEPS])
def test_what_runs_when_its_time_is_up_is_thrown_away(sine: Model, steps: int) -> None:
    """The session stands where it stood, and goes on from there, whole or between slices."""

    async def scenario() -> None:
        async with running(Catalog([slow(sine)])) as engine:
            await engine.predict(request("s", rows(2), 0))
            before = await engine.look_up(KEY)
            await refused(engine, in_time(request("s", rows(steps, seed=1)), 0.02))
            await engine.settle(KEY)
            after = await engine.predict(request("s", rows(1), 2))
            assert (before.step, after.step) == (2, 3)
            await refused(engine, in_time(request("new", rows(1)), 0.02))
            while engine._batcher.depth:
                await asyncio.sleep(0.001)
            with pytest.raises(SessionNotFoundError):
                await engine.look_up(SessionKey("", "new"))

    run(scenario())


def test_what_is_being_committed_is_answered(sine: Model) -> None:
    """Nobody is told that it was not done when it was."""

    async def scenario() -> None:
        async with running(Catalog([sine]), store=Late(**ROOM)) as engine:
            answer = await engine.predict(in_time(request("s", rows(1), 0), 0.05))
            assert (answer.step, (await engine.look_up(KEY)).step) == (1, 1)

    run(scenario())


def test_what_is_in_time_is_answered_and_its_timer_is_gone(sine: Model) -> None:
    """As without a limit."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            for step in range(3):
                asked = in_time(request("s", rows(1), step), 30.0)
                assert (await engine.predict(asked)).step == step + 1
            await asyncio.sleep(0)
            timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
            ours = [timer for timer in timers if "_time_out" in repr(timer)]
            assert [timer for timer in ours if not timer.cancelled()] == []

    run(scenario())


@pytest.mark.parametrize(
    ("own_s", "server_s", "found_s"),
    [(None, None, None), (None, 2.0, 2.0), (1.0, None, 1.0), (1.0, 2.0, 1.0), (3.0, 2.0, 2.0)],
)
def test_the_shorter_of_the_clients_and_the_servers_time_counts(
    own_s: float | None, server_s: float | None, found_s: float | None
) -> None:
    """No client may ask for more than the server gives."""
    assert Origin(timeout_s=own_s).within(server_s).timeout_s == found_s


def test_the_server_limits_what_has_no_limit_of_its_own(sine: Model) -> None:
    """CAROUSEL_REQUEST_TIMEOUT_S."""

    async def scenario() -> None:
        async with running(Catalog([slow(sine)]), request_timeout_s=0.02) as engine:
            await refused(engine, request("s", rows(1)))
            await refused(engine, in_time(request("s", rows(1)), 30.0))

    run(scenario())


def test_a_forecast_ends_when_its_time_is_up(sine: Model) -> None:
    """Its reader gets the lines so far, then the error."""

    async def scenario() -> None:
        async with running(Catalog([slow(sine)])) as engine:
            await engine.predict(request("s", rows(2), 0))
            asked = ForecastRequest("", "s", 1000, origin=Origin(timeout_s=0.02))
            forecast = await engine.forecast(asked)
            with pytest.raises(TimedOutError):
                while await engine.read_forecast(forecast):
                    continue
            while engine._batcher.depth:
                await asyncio.sleep(0.001)

    run(scenario())


def test_a_block_whose_time_is_up_is_refused_when_its_turn_comes(
    sine: Model, tmp_path: Any
) -> None:
    """All of its rows, and its sessions stand where they stood."""

    async def scenario() -> None:
        store = DiskStore(tmp_path / "store", 100, 60.0)
        async with running(Catalog([sine]), store=store, request_timeout_s=0.02) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), "sine-cell")
            told = offer(engine, NAMES, draw(4, 1, 1, seed=1))
            time.sleep(0.05)  # the loop is held, as by a long batch
            results = await told.results()
            assert [type(result) for result in results] == [TimedOutError] * 4
            told = offer(engine, NAMES, draw(4, 1, 1, seed=1), [1] * 4)
            assert [step for step, _ in await told.results()] == [2] * 4

    run(scenario())


@pytest.mark.parametrize("value", [b"0", b"-5", b"1.5", b"soon", b"", b"1e3", b"9" * 13])
def test_a_timeout_that_is_none_is_refused(value: bytes) -> None:
    """With what it was, and what is expected."""
    with pytest.raises(RequestError, match=r"X-Request-Timeout-Ms is .*, expected a whole number"):
        origin_of([(b"x-request-timeout-ms", value)], "predict")


def test_a_timeout_is_read_from_the_header() -> None:
    """In milliseconds."""
    assert origin_of([(b"x-request-timeout-ms", b" 250")], "predict").timeout_s == 0.25
    assert origin_of([], "predict").timeout_s is None
