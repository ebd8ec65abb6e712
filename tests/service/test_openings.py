"""Requests that start a session, want it live, end it, or carry an idempotency key."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from service.catalog import Catalog
from service.copying import fork
from service.errors import (
    ArtifactError,
    CapacityError,
    IdempotencyConflictError,
    ModelConflictError,
    RequestError,
    SessionGoneError,
    SessionNotFoundError,
    StepConflictError,
    StoreUnavailableError,
    UnknownModelError,
)
from service.job import Answer, Opening, Request
from service.metrics import unread_metrics
from service.model import Model
from service.session import Record, SessionKey
from service.store import Commit, Outcome
from service.store.memory import MemoryStore
from service.wire import Array
from tests.service.build_artifact import Spec, build_artifact, scaling
from tests.service.test_engine import ROOM, Contended, Kept, request, rows, run, running, whole

S = SessionKey("", "s")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """Two of `m`, in other units."""
    root = tmp_path_factory.mktemp("versions")
    specs = [Spec("m", seed=1), Spec("m", seed=2, scaling=scaling(1, 1))]
    return [Model.load(build_artifact(root, spec)) for spec in specs]


def start(x: Array, step: int | None = None, **also: Any) -> Request:
    return replace(request("s", x, step), opening=Opening.START, **also)


def live(x: Array, step: int | None = None, **also: Any) -> Request:
    return replace(request("s", x, step), opening=Opening.LIVE, **also)


def keyed(x: Array, key: str, step: int | None = None, **also: Any) -> Request:
    return replace(request("s", x, step), idempotency_key=key, **also)


def assert_same(one: Answer, other: Answer) -> None:
    """Every field, and y bit for bit."""
    blank = np.zeros(0)
    assert replace(one, y=blank, result={}) == replace(other, y=blank, result={})
    assert one.y.tobytes() == other.y.tobytes()


class Watched(MemoryStore):
    """A store that says what was asked of it; it may lose the replies to commits."""

    def __init__(self, **room: Any) -> None:
        super().__init__(**{**ROOM, **room})
        self.calls: list[str] = []
        self.loses_replies = False

    async def get(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        self.calls.append("get")
        return await super().get(keys)

    async def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        self.calls.append("commit")
        outcomes = await super().commit(commits)
        if self.loses_replies:
            raise StoreUnavailableError("the connection broke")
        return outcomes


# Start ------------------------------------------------------------------------------------------


def test_a_start_begins_a_session_and_begins_it_anew_where_it_lives(sine: Model) -> None:
    """The answer says so; the record has another birth, and nothing of the old one is left."""
    x = rows(9)

    async def scenario() -> None:
        metrics = unread_metrics()
        async with running(Catalog([sine]), metrics=metrics) as engine:
            first = await engine.predict(start(x[:3]))
            assert (first.created, first.restarted, first.step) == (True, False, 3)
            old = await engine.look_up(S)
            again = await engine.predict(start(x[3:7]))
            assert (again.created, again.restarted, again.step) == (True, True, 4)
            assert np.array_equal(again.y, whole(sine, x[3:7]))
            new = await engine.look_up(S)
            assert new.birth != old.birth
            on = await engine.predict(request("s", x[7:], 4))
            assert (on.created, on.restarted) == (False, False)
            assert np.array_equal(on.y, whole(sine, x[3:])[4:])
            assert metrics.opened._value.get() == 2

    run(scenario())


@pytest.mark.parametrize("live_before", [False, True])
def test_a_start_again_is_the_same_reply(sine: Model, live_before: bool) -> None:
    """Whether it began the session or began it anew; by its step, or by its key."""
    x = rows(4)

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            for sent in (start(x, 0), start(x, idempotency_key="k")):
                if live_before:
                    await engine.predict(request("s", rows(2, seed=1)))
                one = await engine.predict(sent)
                assert (one.created, one.restarted) == (True, live_before)
                record = await engine.look_up(S)
                assert_same(await engine.predict(sent), one)
                assert await engine.look_up(S) == record
                await engine.drop(S)

    run(scenario())


def test_a_start_without_step_or_key_begins_anew_each_time(sine: Model) -> None:
    """Nothing tells it from another one; and with other rows, it is another one."""
    x = rows(4)

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            for sent in (start(x), start(x), start(x[:2], 0), start(x[:3], 0)):
                before = await engine._store.get([S])
                answer = await engine.predict(sent)
                assert (answer.created, answer.restarted) == (True, before != [None])
                assert answer.step == len(answer.y)

    run(scenario())


@pytest.mark.parametrize("there", [False, True])
def test_a_start_at_another_step_than_0_is_refused(sine: Model, there: bool) -> None:
    """It contradicts itself, and nothing moves."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            if there:
                await engine.predict(request("s", rows(3)))
            before = await engine._store.get([S])
            with pytest.raises(RequestError, match="`step` is 3 in a request that begins session"):
                await engine.predict(start(rows(1), 3))
            assert await engine._store.get([S]) == before

    run(scenario())


def test_a_start_never_ends_another_models_session(sine: Model, series: Model) -> None:
    """Only that of its own model; and without a name, it stays on the session's."""

    async def scenario() -> None:
        async with running(Catalog([sine, series])) as engine:
            x = rows(2, width=8)
            await engine.predict(request("s", x, model="series-lstm"))
            with pytest.raises(ModelConflictError, match="lives on series-lstm:"):
                await engine.predict(start(rows(1)))
            assert (await engine.look_up(S)).step == 2
            answer = await engine.predict(start(x, model=None))
            assert (answer.model, answer.restarted) == ("series-lstm", True)

    run(scenario())


def test_a_start_begins_on_the_newest_version_or_on_the_one_it_names(
    versions: list[Model],
) -> None:
    """A session that begins anew need not stay where the old one was."""
    old, new = versions
    x = rows(3)

    async def scenario() -> None:
        async with running(Catalog([old, new])) as engine:
            on_old = start(x, 0, model=old.reference)
            first = await engine.predict(on_old)
            assert first.version == old.version
            assert_same(await engine.predict(replace(on_old, model=None)), first)  # a retry
            anew = await engine.predict(replace(start(rows(2)), model="m"))
            assert (anew.version, anew.restarted) == (new.version, True)
            assert np.array_equal(anew.y, whole(new, rows(2)))
            back = await engine.predict(on_old)
            assert (back.version, back.restarted) == (old.version, True)
            assert np.array_equal(back.y, whole(old, x))
            there = await engine.predict(replace(on_old, model=new.reference))  # no retry
            assert (there.version, there.restarted) == (new.version, True)

    run(scenario())


@pytest.mark.parametrize("goes_on", [1, 0], ids=["other units", "same units"])
def test_a_start_is_not_kept_back_by_a_version_that_is_gone(
    versions: list[Model], sine: Model, tmp_path_factory: pytest.TempPathFactory, goes_on: int
) -> None:
    """Even as the last request again: that reply cannot be given any more, so it begins anew."""
    root = tmp_path_factory.mktemp("after")
    after = [Model.load(build_artifact(root, Spec("m", seed=7))), versions[1]][goes_on]

    async def scenario() -> None:
        store = MemoryStore(**ROOM)
        sent = start(rows(3), 0, model=None)
        async with running(Catalog([versions[0]]), store=Kept(store)) as engine:
            await engine.predict(sent)
            on = await engine.predict(replace(keyed(rows(1), "k"), model=None))
            assert on.step == 4
        async with running(Catalog([after]), store=Kept(store)) as engine:
            with pytest.raises(UnknownModelError):
                await engine.predict(replace(keyed(rows(1), "k"), model=None))
            answer = await engine.predict(sent)
            assert (answer.version, answer.restarted) == (after.version, True)

        async with running(Catalog([versions[0]]), store=Kept(store)) as engine:
            await engine.predict(replace(sent, model="m"))
        broken = {f"m:{versions[0].version}": ArtifactError("a byte was changed")}
        async with running(Catalog([after], broken), store=store) as engine:
            answer = await engine.predict(replace(sent, model=after.reference))
            assert (answer.version, answer.restarted) == (after.version, True)

    run(scenario())


def test_what_ran_from_the_old_session_is_not_put_over_the_new_one(sine: Model) -> None:
    """A start on another worker wins over a step that was under way, and the step runs after it."""
    x = rows(5)

    async def scenario() -> None:
        store = Contended(0, lambda: rival())

        async def rival() -> None:
            async with running(Catalog([sine]), store=Kept(store)) as other:
                assert (await other.predict(start(x[:2]))).restarted

        async with running(Catalog([sine]), store=store) as engine:
            await engine.predict(request("s", rows(2, seed=5)))  # both stand at step 2 ..
            store.rivals = 1
            answer = await engine.predict(request("s", x[2:], 2))  # .. and the births differ
            assert np.array_equal(answer.y, whole(sine, x)[2:])
            assert not answer.created

    run(scenario())


def test_a_start_that_another_worker_overtakes_begins_anew_over_it(sine: Model) -> None:
    """And says so, though there was no session when it was read."""
    x = rows(5)

    async def scenario() -> None:
        store = Contended(1, lambda: rival())

        async def rival() -> None:
            async with running(Catalog([sine]), store=Kept(store)) as other:
                assert (await other.predict(request("s", x[:1]))).created

        async with running(Catalog([sine]), store=store) as engine:
            answer = await engine.predict(start(x[1:]))
            assert (answer.created, answer.restarted) == (True, True)
            assert np.array_equal(answer.y, whole(sine, x[1:]))

    run(scenario())


def test_a_start_over_a_live_session_needs_no_room(sine: Model) -> None:
    """A full server takes it, and no session that is not there."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_sessions=1) as engine:
            await engine.predict(start(rows(1), most=1))
            assert (await engine.predict(start(rows(2), most=1))).restarted
            with pytest.raises(CapacityError):
                await engine.predict(replace(start(rows(1)), key=SessionKey("", "t")))

    run(scenario())


# Live -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 0, 4])
def test_a_request_for_a_live_session_never_begins_one(sine: Model, step: int | None) -> None:
    """410, and what a sequence's first request must say; after a start it goes on."""
    x = rows(6)

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            with pytest.raises(SessionGoneError, match=r"first request of .* must .* START"):
                await engine.predict(live(x[4:], step))
            with pytest.raises(SessionNotFoundError):
                await engine.look_up(S)
            await engine.predict(start(x[:4]))
            answer = await engine.predict(live(x[4:], step or None))
            assert np.array_equal(answer.y, whole(sine, x)[4:])
            assert_same(await engine.predict(live(x[4:], 4)), answer)

    run(scenario())


# End --------------------------------------------------------------------------------------------


def test_a_request_that_ends_its_session_leaves_nothing(sine: Model) -> None:
    """It runs like any other; sent again it finds no session, and begins none unasked."""
    x = rows(6)

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await engine.predict(start(x[:4]))
            end = live(x[4:], 4, ends=True)
            answer = await engine.predict(end)
            assert (answer.step, answer.created, answer.restarted) == (6, False, False)
            assert np.array_equal(answer.y, whole(sine, x)[4:])
            with pytest.raises(SessionNotFoundError):
                await engine.look_up(S)
            for again in (end, replace(end, step=None), replace(end, opening=Opening.ANY)):
                with pytest.raises(SessionGoneError):
                    await engine.predict(again)

    run(scenario())


def test_what_waits_behind_an_end_finds_the_session_ended(sine: Model) -> None:
    """Requests of a session run in their order, ends too."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            sent = [start(rows(3)), live(rows(200), ends=True), live(rows(1)), start(rows(2))]
            jobs = [await engine.submit(one) for one in sent]
            done = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
            steps = [one.step if isinstance(one, Answer) else type(one) for one in done]
            assert steps == [3, 203, SessionGoneError, 2]
            assert isinstance(done[3], Answer)
            assert not done[3].restarted

    run(scenario())


def test_an_end_whose_reply_was_lost_has_ended_the_session(sine: Model) -> None:
    """Crashed between commit and reply: the retry says gone, and never runs its rows from zero."""

    async def scenario() -> None:
        store = Watched()
        async with running(Catalog([sine]), store=store) as engine:
            await engine.predict(start(rows(3)))
            store.loses_replies = True
            end = live(rows(2), 3, ends=True)
            with pytest.raises(StoreUnavailableError):
                await engine.predict(end)
            store.loses_replies = False
            with pytest.raises(SessionGoneError):
                await engine.predict(end)

    run(scenario())


def test_an_end_that_another_worker_overtakes_runs_after_it(sine: Model) -> None:
    """Its commit is compared like any other: no step of another's is lost with the session."""
    x = rows(5)

    async def scenario() -> None:
        store = Contended(0, lambda: rival())

        async def rival() -> None:
            async with running(Catalog([sine]), store=Kept(store)) as other:
                await other.predict(request("s", x[2:4]))

        async with running(Catalog([sine]), store=store) as engine:
            await engine.predict(start(x[:2]))
            store.rivals = 1
            answer = await engine.predict(live(x[4:], ends=True))
            assert answer.step == 5
            assert np.array_equal(answer.y, whole(sine, x)[4:])
            assert await store.get([S]) == [None]

    run(scenario())


def test_the_last_request_again_but_as_an_end_is_another_request(sine: Model) -> None:
    """It was answered without ending anything; what stands there now is said."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await engine.predict(request("s", rows(3), 0))
            with pytest.raises(StepConflictError, match="stands at step 3, request says 0"):
                await engine.predict(live(rows(3), 0, ends=True))
            await engine.predict(keyed(rows(2), "k"))
            with pytest.raises(IdempotencyConflictError):
                await engine.predict(keyed(rows(2), "k", ends=True))
            assert (await engine.look_up(S)).step == 5

    run(scenario())


@pytest.mark.parametrize(("is_unnamed", "calls"), [(False, ["get"]), (True, [])])
def test_a_request_that_begins_and_ends_writes_nothing(
    sine: Model, is_unnamed: bool, calls: list[str]
) -> None:
    """Nor does it need room; nor is the store read where nobody else can know the id."""
    x = rows(300)

    async def scenario() -> None:
        store, metrics = Watched(max_sessions=1), unread_metrics()
        async with running(Catalog([sine]), store=store, metrics=metrics) as engine:
            await engine.predict(request("other", rows(1)))
            store.calls.clear()
            answer = await engine.predict(start(x, ends=True, is_unnamed=is_unnamed, most=1))
            assert (answer.created, answer.restarted, answer.step) == (True, False, 300)
            assert np.array_equal(answer.y, whole(sine, x))
            assert set(store.calls) == set(calls)
            assert await store.get([S]) == [None]
            assert metrics.opened._value.get() == 1

    run(scenario())


def test_what_begins_and_ends_drops_the_session_that_was_there(sine: Model) -> None:
    """It is restarted, and then it is over."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await engine.predict(request("s", rows(2)))
            answer = await engine.predict(start(rows(3), ends=True))
            assert (answer.created, answer.restarted, answer.step) == (True, True, 3)
            with pytest.raises(SessionNotFoundError):
                await engine.look_up(S)

    run(scenario())


def test_a_failed_commit_of_others_does_not_fail_what_commits_nothing(sine: Model) -> None:
    """Of one batch: the one that leaves no record is answered, whatever becomes of the store."""

    async def scenario() -> None:
        store = Watched()
        store.loses_replies = True
        async with running(Catalog([sine]), store=store) as engine:
            nobody = replace(start(rows(1), ends=True), key=SessionKey("", "t"))
            one, other = await asyncio.gather(
                engine.predict(request("s", rows(1))),
                engine.predict(nobody),
                return_exceptions=True,
            )
            assert isinstance(one, StoreUnavailableError)
            assert isinstance(other, Answer)

    run(scenario())


# Idempotency keys -------------------------------------------------------------------------------


def test_the_last_key_again_is_the_same_reply(sine: Model) -> None:
    """However often, for the first request too; and the state does not move."""
    x = rows(5)

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            for at, key in ((0, "first"), (2, "second")):
                sent = keyed(x[at : at + 2], key)
                one = await engine.predict(sent)
                assert (one.step, one.created) == (at + 2, at == 0)
                record = await engine.look_up(S)
                for _ in range(2):
                    assert_same(await engine.predict(sent), one)
                assert await engine.look_up(S) == record
            last = await engine.predict(request("s", x[4:]))
            assert np.array_equal(last.y, whole(sine, x)[4:])

    run(scenario())


def test_the_same_key_with_other_rows_is_refused(sine: Model) -> None:
    """422, and nothing moves; without a key, or with another, the same rows run again."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await engine.predict(keyed(rows(2), "k"))
            before = await engine.look_up(S)
            with pytest.raises(IdempotencyConflictError, match="stands at step 2; use a new key"):
                await engine.predict(keyed(rows(2) + 1, "k"))
            assert await engine.look_up(S) == before
            assert (await engine.predict(keyed(rows(2), "l"))).step == 4
            assert (
                await engine.predict(keyed(rows(2), "k"))
            ).step == 6  # it is not the last any more
            assert (await engine.predict(request("s", rows(2)))).step == 8
            assert (await engine.predict(keyed(rows(2), "k"))).step == 10

    run(scenario())


def test_where_there_is_a_step_it_decides_and_the_key_is_remembered(sine: Model) -> None:
    """One request may be sent again by either name."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            one = await engine.predict(keyed(rows(2), "k", 0))
            assert_same(await engine.predict(keyed(rows(2), "k")), one)
            assert_same(await engine.predict(keyed(rows(2), "other", 0)), one)
            with pytest.raises(StepConflictError):
                await engine.predict(keyed(rows(2), "k", 1))
            assert (await engine.predict(keyed(rows(2), "k", 2))).step == 4

    run(scenario())


def test_a_request_with_a_key_whose_reply_was_lost_is_done_once(sine: Model) -> None:
    """Crashed between commit and reply, then asked of another worker."""

    async def scenario() -> None:
        store = Watched()
        sent = keyed(rows(3), "k")
        store.loses_replies = True
        async with running(Catalog([sine]), store=Kept(store)) as engine:
            with pytest.raises(StoreUnavailableError):
                await engine.predict(sent)
        store.loses_replies = False
        async with running(Catalog([sine]), store=store) as engine:
            answer = await engine.predict(sent)
            assert (answer.step, answer.created) == (3, True)
            assert np.array_equal(answer.y, whole(sine, rows(3)))

    run(scenario())


def test_two_at_once_with_one_key_are_done_once(sine: Model) -> None:
    """The second waits for the first, and gets its reply."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            jobs = [await engine.submit(keyed(rows(200), "k")) for _ in range(3)]
            one, *others = [await job.future for job in jobs]
            for other in others:
                assert_same(other, one)
            assert (await engine.look_up(S)).step == 200

    run(scenario())


def test_a_key_is_copied_with_the_session(sine: Model) -> None:
    """As the last reply is: a retry, sent to the fork, gets it."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            one = await engine.predict(keyed(rows(2), "k"))
            key, _ = await fork(engine, S, "t", None)
            again = await engine.predict(replace(keyed(rows(2), "k"), key=key))
            assert_same(replace(again, session_id="s"), one)

    run(scenario())


def test_a_promotion_keeps_the_key_of_the_old_versions_reply(versions: list[Model]) -> None:
    """Until the session moves with its next request; then that one's counts."""
    old, new = versions

    async def scenario() -> None:
        async with running(Catalog([old, new])) as engine:
            sent = replace(keyed(rows(2), "k"), model=None)
            one = await engine.predict(replace(sent, model=old.reference))
            await engine.promote("m", None, None)
            assert_same(await engine.predict(sent), one)
            with pytest.raises(IdempotencyConflictError):
                await engine.predict(replace(keyed(rows(3), "k"), model=None))
            moved = await engine.predict(replace(keyed(rows(1), "l"), model=None))
            assert moved.version == new.version
            assert_same(await engine.predict(replace(keyed(rows(1), "l"), model=None)), moved)

    run(scenario())
