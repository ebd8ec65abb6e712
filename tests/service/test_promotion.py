"""Sessions that move from one version to another, and those that may not."""

import numpy as np
import pytest

from service.catalog import Catalog
from service.engine import Engine
from service.errors import (
    CapacityError,
    IncompatibleError,
    ModelConflictError,
    RequestError,
    StepConflictError,
    UnknownModelError,
)
from service.model import Model
from service.promotion import Promotions, follow, with_move
from service.session import SessionKey
from service.store.memory import MemoryStore
from service.wire import Array
from tests.service.build_artifact import Spec, build_artifact, scaling
from tests.service.test_engine import ROOM, Clock, Kept, request, rows, run, running

A = SessionKey("", "a")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """Three versions of `m`: other weights, other units, and a wider state."""
    root = tmp_path_factory.mktemp("versions")
    specs = [
        Spec("m", seed=1),
        Spec("m", seed=2, scaling=scaling(1, 1)),
        Spec("m", seed=3, hidden_size=9),
    ]
    return [Model.load(build_artifact(root, spec)) for spec in specs]


@pytest.fixture
def old(versions: list[Model]) -> Model:
    return versions[0]


@pytest.fixture
def new(versions: list[Model]) -> Model:
    return versions[1]


@pytest.fixture
def wide(versions: list[Model]) -> Model:
    return versions[2]


async def begin_on(engine: Engine, model: Model, x: Array, session_id: str = "a") -> Array:
    return (await engine.predict(request(session_id, x, 0, model.reference))).y


def test_a_promoted_session_moves_with_its_next_request_and_its_state(
    old: Model, new: Model
) -> None:
    """At a step boundary: the old version's steps, then the new one's from their state."""
    x = rows(7)

    async def scenario() -> None:
        async with running(Catalog([old, new])) as engine:
            await begin_on(engine, old, x[:3])
            moved = await engine.promote("m", None, None)
            assert (moved.sources, moved.to, moved.refused) == ([old.version], new.version, [])
            before = await engine.look_up(A)
            assert before.version == old.version
            answer = await engine.predict(request("a", x[3:5], 3, None))
            assert (answer.version, answer.step, answer.created) == (new.version, 5, False)
            (y,), (state,), _ = new.run([new.encode(x[3:5])], [before.state])
            assert np.array_equal(answer.y, new.decode(y))
            after = await engine.look_up(A)
            assert (after.version, after.state) == (new.version, state)
            assert after.birth != before.birth
            assert (await engine.predict(request("a", x[5:], 5, "m"))).version == new.version

    run(scenario())


def test_replays_go_on_after_a_promotion(old: Model, new: Model) -> None:
    """The last reply of the old version before the session moves, the new one's after."""
    x = rows(5)

    async def scenario() -> None:
        async with running(Catalog([old, new])) as engine:
            y = await begin_on(engine, old, x[:3])
            await engine.promote("m", None, None)
            again = await engine.predict(request("a", x[:3], 0, None))
            assert (again.version, again.step, again.created) == (old.version, 3, True)
            assert np.array_equal(again.y, y)
            moved = await engine.predict(request("a", x[3:], 3, None))
            again = await engine.predict(request("a", x[3:], 3, None))
            assert (again.version, again.step) == (new.version, 5)
            assert np.array_equal(again.y, moved.y)
            with pytest.raises(StepConflictError, match="stands at step 5, request says 0"):
                await engine.predict(request("a", x[:3], 0, None))

    run(scenario())


def test_a_request_that_names_the_old_version_keeps_its_session_there(
    old: Model, new: Model
) -> None:
    """The other way round, one that names the new one moves it; then the old one is a conflict."""

    async def scenario() -> None:
        async with running(Catalog([old, new])) as engine:
            await begin_on(engine, old, rows(1))
            with pytest.raises(ModelConflictError):
                await engine.predict(request("a", rows(1), 1, new.reference))
            await engine.promote("m", old.version, new.version)
            stays = await engine.predict(request("a", rows(1), 1, old.reference))
            assert stays.version == old.version
            moved = await engine.predict(request("a", rows(1), 2, new.reference))
            assert moved.version == new.version
            with pytest.raises(ModelConflictError, match=f"lives on {new.reference}"):
                await engine.predict(request("a", rows(1), 3, old.reference))

    run(scenario())


def test_an_incompatible_version_is_refused_with_the_ports_that_differ(
    old: Model, new: Model, wide: Model
) -> None:
    """Alone: 409. Beside others that can move, they move and it is told."""

    async def scenario() -> None:
        async with running(Catalog([old, wide])) as engine:
            await begin_on(engine, old, rows(1))
            with pytest.raises(IncompatibleError, match="`c` is float32") as caught:
                await engine.promote("m", None, None)
            assert caught.value.data["ports"] == [
                {"port": s, "from": "float32 (B, 1, 8)", "to": "float32 (B, 1, 9)"}
                for s in ("c", "h")
            ]
            assert (await engine.predict(request("a", rows(1), 1, None))).version == old.version
        async with running(Catalog([wide, old, new])) as engine:
            moved = await engine.promote("m", None, None)
            assert moved.sources == [old.version]
            assert [entry["from"] for entry in moved.refused] == [wide.version]

    run(scenario())


def test_nothing_to_promote_is_refused(old: Model, new: Model, series: Model) -> None:
    """No such model, no such version, one version alone, a version to itself."""

    async def scenario() -> None:
        async with running(Catalog([series, old, new])) as engine:
            for name, source, to in [("no", None, None), ("m", "no", None), ("m", None, "no")]:
                with pytest.raises(UnknownModelError, match="no` is not served"):
                    await engine.promote(name, source, to)
            with pytest.raises(RequestError, match=r"expected `from` to be one of \[\]"):
                await engine.promote("series-lstm", None, None)
            with pytest.raises(RequestError, match=f"one of \\['{old.version}'\\]"):
                await engine.promote("m", new.version, None)

    run(scenario())


def test_a_promotion_is_known_to_all_who_share_the_store(old: Model, new: Model) -> None:
    """After their next look; one that has not looked runs a session where it stands."""
    store = MemoryStore(**ROOM)
    catalog = Catalog([old, new])

    async def scenario() -> None:
        async with (
            running(catalog, store=Kept(store)) as one,
            running(catalog, store=Kept(store)) as other,
        ):
            await begin_on(one, old, rows(1))
            await one.promote("m", None, None)
            assert (await other.predict(request("a", rows(1), 1, None))).version == old.version
            assert (await one.predict(request("a", rows(1), 2, None))).version == new.version
            assert (await other.predict(request("a", rows(1), 3, None))).version == new.version
            await begin_on(other, old, rows(1), "b")
            await other.promotions.refresh(["m", "nobody"])
            assert (await other.predict(request("b", rows(1), 1, None))).version == new.version
            assert other.promotions.moves_of("m") == {old.version: new.version}

    run(scenario())


def test_a_roll_back_is_a_promotion_back(old: Model, new: Model) -> None:
    """It undoes the one that it reverses."""

    async def scenario() -> None:
        async with running(Catalog([old, new])) as engine:
            await begin_on(engine, old, rows(1))
            await engine.promote("m", old.version, new.version)
            assert (await engine.predict(request("a", rows(1), 1, None))).version == new.version
            await engine.promote("m", new.version, old.version)
            assert (await engine.predict(request("a", rows(1), 2, None))).version == old.version
            assert engine.promotions.moves_of("m") == {new.version: old.version}

    run(scenario())


def test_a_version_that_is_not_here_leaves_a_session_where_it_is(old: Model, new: Model) -> None:
    """Of two machines one has the new version: the other serves the session as it stands."""
    store = MemoryStore(**ROOM)

    async def scenario() -> None:
        async with (
            running(Catalog([old, new]), store=Kept(store)) as one,
            running(Catalog([old]), store=Kept(store)) as other,
        ):
            await begin_on(one, old, rows(1))
            await one.promote("m", None, None)
            await other.promotions.refresh(["m"])
            assert (await other.predict(request("a", rows(1), 1, None))).version == old.version

    run(scenario())


def test_a_session_whose_old_version_is_gone_moves_all_the_same(old: Model, new: Model) -> None:
    """The operator took the old artifact away before the session's next request."""
    store = MemoryStore(**ROOM)

    async def scenario() -> None:
        async with running(Catalog([old, new]), store=Kept(store)) as engine:
            await begin_on(engine, old, rows(1))
            await engine.promote("m", None, None)
        async with running(Catalog([new]), store=Kept(store)) as engine:
            await engine.promotions.refresh(["m"])
            answer = await engine.predict(request("a", rows(1), 1, None))
            assert (answer.version, answer.step) == (new.version, 2)

    run(scenario())


def test_a_last_reply_is_not_read_with_another_versions_units(
    old: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same rows, the same digest: but who gave the reply is gone."""
    store = MemoryStore(**ROOM)
    root = tmp_path_factory.mktemp("same-units")
    newer = Model.load(build_artifact(root, Spec("m", seed=5)))

    async def scenario() -> None:
        async with running(Catalog([old, newer]), store=Kept(store)) as engine:
            await begin_on(engine, old, rows(1))
            await engine.promote("m", None, None)
        async with running(Catalog([newer]), store=Kept(store)) as engine:
            await engine.promotions.refresh(["m"])
            with pytest.raises(UnknownModelError, match="the last reply was given by m:") as caught:
                await engine.predict(request("a", rows(1), 0, None))
            assert caught.value.data["expected"] == 1
            assert (await engine.predict(request("a", rows(1), 1, None))).step == 2

    run(scenario())


def test_a_promotion_is_renewed_while_a_server_runs(old: Model, new: Model) -> None:
    """It outlives the store's idle timeout, until nobody has looked for that long."""
    clock = Clock()
    store = MemoryStore(100, 60.0, clock)

    async def scenario() -> None:
        promotions = Promotions(store, renew_s=15.0, clock=clock)
        await promotions.add("m", ["a"], "b")
        for _ in range(20):
            clock.now += 10.0
            await promotions.refresh(["m"])
            assert promotions.moves_of("m") == {"a": "b"}
        clock.now += 61.0
        await promotions.refresh(["m"])
        assert promotions.moves_of("m") == {}

    run(scenario())


def test_a_full_store_cannot_note_a_promotion() -> None:
    """And says so."""

    async def scenario() -> None:
        with pytest.raises(CapacityError, match="cannot note a promotion"):
            await Promotions(MemoryStore(0, 60.0)).add("m", ["a"], "b")

    run(scenario())


def test_moves_are_followed_and_never_in_a_circle() -> None:
    """a to b, b to c: a goes to c; then c back to a: all go to a."""
    moves = with_move({}, ["a"], "b")
    moves = with_move(moves, ["b"], "c")
    assert [follow(moves, version) for version in "abcd"] == ["c", "c", "c", "d"]
    moves = with_move(moves, ["c"], "a")
    assert [follow(moves, version) for version in "abcd"] == ["a", "a", "a", "d"]
