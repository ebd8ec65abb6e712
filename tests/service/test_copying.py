"""Forks, snapshots and restores through the engine."""

import asyncio
from datetime import UTC, datetime

import numpy as np
import pytest
from msgspec.structs import replace

from service.catalog import Catalog
from service.copying import fork, restore, take_snapshot
from service.engine import Engine
from service.errors import (
    CapacityError,
    IdempotencyConflictError,
    ModelConflictError,
    SessionExistsError,
    SessionNotFoundError,
    StepConflictError,
    UnknownModelError,
)
from service.model import Model
from service.session import SessionKey
from service.snapshot import Keyring
from tests.service.test_engine import request, rows, run, running, whole

RING = Keyring((b"k" * 32,))
NOW = datetime(2026, 11, 24, tzinfo=UTC)
A, B = SessionKey("", "a"), SessionKey("", "b")


def test_a_fork_goes_its_own_way(sine: Model) -> None:
    """Both go on from the same state, and neither feels the other."""
    x = rows(12)

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await engine.predict(request("a", x[:5]))
            key, record = await fork(engine, A, "b", 5)
            assert (key, record.step) == (B, 5)
            original = await engine.predict(request("a", x[5:9], 5))
            other = await engine.predict(request("b", x[8:12], 5))
            assert np.array_equal(original.y, whole(sine, x)[5:9])
            assert np.array_equal(other.y, whole(sine, np.concatenate([x[:5], x[8:12]]))[5:])
            assert not other.created

    run(scenario())


def test_a_fork_waits_for_what_its_source_has_waiting(sine: Model) -> None:
    """It is asked for after them."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            for _ in range(3):
                await engine.submit(request("a", rows(200)))
            _, record = await fork(engine, A, None, None)
            assert record.step == 600

    run(scenario())


def test_a_fork_without_a_name_gets_one(sine: Model) -> None:
    """Another each time."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await engine.predict(request("a", rows(1)))
            one, _ = await fork(engine, A, None, None)
            two, _ = await fork(engine, A, None, None)
            assert one != two
            assert (await engine.look_up(one)).step == 1

    run(scenario())


def test_a_fork_with_a_key_is_made_once(sine: Model) -> None:
    """A retry finds the copy, whatever became of the session; and as it stands by then."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await engine.predict(request("a", rows(3)))
            key, record = await fork(engine, A, None, None, idempotency_key="k")
            await engine.predict(request("a", rows(1)))
            assert await fork(engine, A, None, None, idempotency_key="k") == (key, record)
            assert await fork(engine, A, None, 3, idempotency_key="k") == (key, record)
            await engine.drop(A)
            assert await fork(engine, A, None, None, idempotency_key="k") == (key, record)
            await engine.predict(request(key.session_id, rows(2), 3))
            assert (await fork(engine, A, None, None, idempotency_key="k"))[1].step == 5
            with pytest.raises(IdempotencyConflictError, match="stands at step 5, request says 3"):
                await fork(engine, A, None, 3, idempotency_key="k")

    run(scenario())


def test_forks_with_a_key_at_once_are_one(sine: Model) -> None:
    """Whoever comes second is told of the first one's copy, and no room is needed for another."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_sessions=2) as engine:
            await engine.predict(request("a", rows(3)))
            forks = [fork(engine, A, None, None, idempotency_key="k") for _ in range(4)]
            first, *others = await asyncio.gather(*forks)
            assert others == [first] * 3

    run(scenario())


def test_the_copy_of_a_key_is_of_one_tenant_session_and_key(sine: Model) -> None:
    """Another key, session or tenant makes another; an id of the client's own is as ever."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            sources = [A, B, SessionKey("acme", "a")]
            for source in sources:
                await engine.predict(replace(request("", rows(1)), key=source))
            keys = [
                (await fork(engine, source, None, None, idempotency_key=name))[0]
                for source in sources
                for name in ("k", "l")
            ]
            assert len({key.session_id for key in keys}) == 6
            await fork(engine, A, "mine", None, idempotency_key="k")
            with pytest.raises(SessionExistsError):
                await fork(engine, A, "mine", None, idempotency_key="k")

    run(scenario())


def test_a_fork_knows_the_last_reply(sine: Model) -> None:
    """A client that never heard it asks the fork, and gets it; the state does not move."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            first = await engine.predict(request("a", rows(3), 0))
            await fork(engine, A, "b", None)
            again = await engine.predict(request("b", rows(3), 0))
            assert (again.session_id, again.step, again.created) == ("b", 3, True)
            assert np.array_equal(again.y, first.y)
            assert (await engine.look_up(B)).step == 3

    run(scenario())


def test_what_cannot_be_forked_is_refused(sine: Model) -> None:
    """No source, another step, a session there, no room; and nothing changes."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_sessions=2) as engine:
            with pytest.raises(SessionNotFoundError, match="there is no session `a`"):
                await fork(engine, A, "b", None)
            await engine.predict(request("a", rows(3)))
            with pytest.raises(StepConflictError, match="stands at step 3, request says 2"):
                await fork(engine, A, "b", 2)
            with pytest.raises(SessionExistsError, match="`a` is there already, on sine-cell"):
                await fork(engine, A, "a", None)
            await fork(engine, A, "b", None)
            with pytest.raises(SessionExistsError, match="session `b` is there already"):
                await fork(engine, A, "b", None)
            with pytest.raises(CapacityError, match="holds 2 sessions"):
                await fork(engine, A, "c", None)
            assert (await engine.look_up(B)).step == 3

    run(scenario())


async def snapshot(engine: Engine, key: SessionKey = A) -> bytes:
    return await take_snapshot(engine, key, RING, NOW)


def test_a_restored_session_goes_on_on_another_server(sine: Model) -> None:
    """From the state, and with the last reply for a client that never heard it."""
    x = rows(9)

    async def scenario() -> None:
        async with running(Catalog([sine])) as one, running(Catalog([sine])) as other:
            await one.predict(request("a", x[:3], 0))
            heard = await one.predict(request("a", x[3:5], 3))
            before, record = await restore(other, A, await snapshot(one), RING, replace=False)
            assert (before, record.step) == (None, 5)
            again = await other.predict(request("a", x[3:5], 3))
            assert (again.step, again.created) == (5, False)
            assert np.array_equal(again.y, heard.y)
            on = await other.predict(request("a", x[5:], 5))
            assert np.array_equal(on.y, whole(sine, x)[5:])

    run(scenario())


def test_a_snapshot_goes_over_a_session_only_if_it_is_told_to(sine: Model, series: Model) -> None:
    """And never over one of another model."""
    x = rows(9)

    async def scenario() -> None:
        async with running(Catalog([series, sine])) as engine:
            await engine.predict(request("a", x[:5]))
            file = await snapshot(engine)
            await engine.predict(request("a", x[5:6]))
            with pytest.raises(SessionExistsError, match="`a` is there already"):
                await restore(engine, A, file, RING, replace=False)
            assert (await engine.look_up(A)).step == 6
            before, _ = await restore(engine, A, file, RING, replace=True)
            assert before is not None
            assert before.step == 6
            answer = await engine.predict(request("a", x[5:], 5))
            assert np.array_equal(answer.y, whole(sine, x)[5:])
            await engine.predict(request("b", rows(1, width=8), model="series-lstm"))
            with pytest.raises(ModelConflictError, match="lives on series-lstm"):
                await restore(engine, B, file, RING, replace=True)

    run(scenario())


def test_every_copy_has_a_birth_of_its_own(sine: Model) -> None:
    """Or what was computed from a session would be committed over its restored self."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await engine.predict(request("a", rows(1)))
            file = await snapshot(engine)
            births = {(await engine.look_up(A)).birth, (await fork(engine, A, "b", 1))[1].birth}
            for _ in range(3):
                await restore(engine, A, file, RING, replace=True)
                births.add((await engine.look_up(A)).birth)
            assert len(births) == 5

    run(scenario())


def test_a_model_that_is_not_served_takes_no_snapshot(sine: Model, series: Model) -> None:
    """It says which model the snapshot is of."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as one, running(Catalog([series])) as other:
            await one.predict(request("a", rows(1)))
            with pytest.raises(UnknownModelError, match=f"model `{sine.reference}` is not served"):
                await restore(other, A, await snapshot(one), RING, replace=False)

    run(scenario())
