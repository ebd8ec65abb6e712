"""What every store must do; one subclass for each store."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from service.session import LastReply, Record, SessionKey
from service.store import Commit, Outcome, Store
from service.store.memory import MemoryStore

MAX_SESSIONS, IDLE_TIMEOUT_S = 3, 10.0
T = TypeVar("T")


@dataclass
class Clock:
    """Time that passes when the test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def key(session_id: str, tenant: str = "") -> SessionKey:
    return SessionKey(tenant, session_id)


def record(step: int, birth: int = 1) -> Record:
    last = LastReply(step - 1, b"digest", b"y", created=step == 1)
    return Record(birth, "sine-cell", "aaaa", step, f"state {step}".encode(), last)


A, B, C, D = (key(name) for name in "ABCD")


class StoreContract:
    """Subclass it with a `make` that opens an empty store, and a `wait` for time to pass."""

    @pytest.fixture
    def make(self, clock: Clock) -> Callable[[], Store]:
        raise NotImplementedError

    @pytest.fixture
    def store(self, make: Callable[[], Store]) -> Store:
        return make()

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    def wait(self, clock: Clock, seconds: float) -> None:
        """Let `seconds` of the store's time pass."""
        clock.now += seconds

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(coroutine)

    def commit(
        self,
        store: Store,
        at: SessionKey,
        before: Record | None,
        after: Record | None,
        most: int | None = None,
    ) -> Outcome:
        (outcome,) = self.run(store.commit([Commit(at, before, after, most)]))
        return outcome

    def get(self, store: Store, at: SessionKey) -> Record | None:
        (found,) = self.run(store.get([at]))
        return found

    def test_what_was_committed_is_what_is_read(self, store: Store) -> None:
        """Every field comes back."""
        assert self.commit(store, A, None, record(1)) is Outcome.DONE
        assert self.get(store, A) == record(1)

    def test_many_are_read_and_committed_in_the_order_given(self, store: Store) -> None:
        """One call for a batch, each commit judged for itself."""
        self.commit(store, B, None, record(5))
        commits = [
            Commit(A, None, record(1)),
            Commit(B, record(4), record(6)),
            Commit(C, None, record(2)),
        ]
        outcomes = self.run(store.commit(commits))
        assert outcomes == [Outcome.DONE, Outcome.LOST, Outcome.DONE]
        assert self.run(store.get([C, D, A, B])) == [record(2), None, record(1), record(5)]

    @pytest.mark.parametrize("after", [record(9), None])
    @pytest.mark.parametrize(
        ("held", "before"),
        [
            (None, record(1)),  # the session was dropped meanwhile
            (record(1), None),  # another began it meanwhile
            (record(2), record(1)),  # another advanced it meanwhile
            (record(1, birth=2), record(1, birth=1)),  # dropped, and began again to the same step
        ],
    )
    def test_a_commit_over_another_record_is_lost_and_changes_nothing(
        self, store: Store, held: Record | None, before: Record | None, after: Record | None
    ) -> None:
        """Compare and set, on existence, birth and step."""
        if held is not None:
            self.commit(store, A, None, held)
        assert self.commit(store, A, before, after) is Outcome.LOST
        assert self.get(store, A) == held

    def test_the_same_id_of_two_tenants_is_two_sessions(self, store: Store) -> None:
        """The tenant is part of the key."""
        self.commit(store, key("A", "one"), None, record(1))
        assert self.get(store, key("A", "two")) is None
        assert self.commit(store, key("A", "two"), record(1), None) is Outcome.LOST
        assert self.get(store, key("A", "one")) == record(1)

    def test_a_session_that_is_dropped_is_forgotten(self, store: Store) -> None:
        """And begins again as another."""
        self.commit(store, A, None, record(1))
        assert self.commit(store, A, record(1), None) is Outcome.DONE
        assert self.get(store, A) is None
        assert self.commit(store, A, None, None) is Outcome.DONE
        assert self.commit(store, A, None, record(1, birth=2)) is Outcome.DONE
        assert self.run(store.count()) == 1
        assert self.run(store.sweep()) == []

    def test_an_expired_session_does_not_exist(self, store: Store, clock: Clock) -> None:
        """Neither to be read, nor counted, dropped, or committed over."""
        self.commit(store, A, None, record(1))
        assert self.get(store, A) is not None
        self.wait(clock, IDLE_TIMEOUT_S)
        assert self.get(store, A) is None
        assert self.run(store.count()) == 0
        assert self.commit(store, A, record(1), record(2)) is Outcome.LOST
        assert self.commit(store, A, record(1), None) is Outcome.LOST
        assert self.commit(store, A, None, record(1, birth=2)) is Outcome.DONE

    def test_an_expired_session_is_told_once(self, store: Store, clock: Clock) -> None:
        """To whoever sweeps, and not the ones that were dropped, or live."""
        for at in (A, key("B", "tenant"), C):
            self.commit(store, at, None, record(1))
        self.commit(store, C, record(1), None)
        assert self.run(store.sweep()) == []
        self.wait(clock, IDLE_TIMEOUT_S)
        self.commit(store, D, None, record(1))
        told = self.run(store.sweep()) + self.run(store.sweep())
        assert sorted(told, key=lambda one: one.session_id) == [A, key("B", "tenant")]
        assert self.get(store, D) == record(1)

    def test_a_full_store_refuses_new_sessions_and_keeps_the_live_ones(self, store: Store) -> None:
        """Existing sessions go on; dropping one makes room."""
        for at in (A, B, C):
            assert self.commit(store, at, None, record(1)) is Outcome.DONE
        assert self.commit(store, D, None, record(1)) is Outcome.FULL
        assert self.get(store, D) is None
        assert self.commit(store, A, record(1), record(2)) is Outcome.DONE
        assert self.run(store.count()) == MAX_SESSIONS
        self.commit(store, B, record(1), None)
        assert self.commit(store, D, None, record(1)) is Outcome.DONE

    def test_a_full_store_makes_room_of_expired_sessions_only(
        self, store: Store, clock: Clock
    ) -> None:
        """Those whose time is up go first; `room_in_s` says when the next will."""
        assert self.run(store.room_in_s()) == math.inf
        for at in (A, B, C):
            self.commit(store, at, None, record(1))
            self.wait(clock, 0.3 * IDLE_TIMEOUT_S)
        assert self.run(store.room_in_s()) == pytest.approx(0.1 * IDLE_TIMEOUT_S, rel=0.5)
        assert self.commit(store, D, None, record(1)) is Outcome.FULL
        self.wait(clock, 0.15 * IDLE_TIMEOUT_S)
        assert self.commit(store, D, None, record(1)) is Outcome.DONE
        assert self.run(store.get([A, B, C, D])) == [None, record(1), record(1), record(1)]
        assert self.run(store.count()) == 3

    def test_a_session_in_use_outlives_an_idle_one(self, store: Store, clock: Clock) -> None:
        """Each commit gives its session the whole time again."""
        self.commit(store, A, None, record(1))
        self.commit(store, B, None, record(1))
        self.wait(clock, 0.7 * IDLE_TIMEOUT_S)
        self.commit(store, A, record(1), record(2))
        self.wait(clock, 0.5 * IDLE_TIMEOUT_S)
        assert self.run(store.get([A, B])) == [record(2), None]
        assert self.run(store.count()) == 1

    def test_a_tenant_has_no_more_sessions_than_it_may(self, store: Store, clock: Clock) -> None:
        """Others have their own; what it drops, or lets expire, it may open again."""
        mine, other = [key(name, "mine") for name in "ABC"], key("A", "other")
        assert self.commit(store, mine[0], None, record(1), most=1) is Outcome.DONE
        assert self.commit(store, mine[1], None, record(1), most=1) is Outcome.TENANT_FULL
        assert self.commit(store, mine[0], record(1), record(2), most=1) is Outcome.DONE
        assert self.commit(store, other, None, record(1), most=1) is Outcome.DONE
        counts = [self.run(store.count(tenant)) for tenant in ("mine", "other", "third", None)]
        assert counts == [1, 1, 0, 2]
        self.commit(store, mine[0], record(2), None)
        assert self.commit(store, mine[1], None, record(1), most=1) is Outcome.DONE
        assert self.run(store.room_in_s("mine")) == pytest.approx(IDLE_TIMEOUT_S, rel=0.5)
        self.wait(clock, IDLE_TIMEOUT_S)
        assert self.commit(store, mine[2], None, record(1), most=1) is Outcome.DONE


class TestMemoryStore(StoreContract):
    """Sessions in this process's memory."""

    @pytest.fixture
    def make(self, clock: Clock) -> Callable[[], Store]:
        return lambda: MemoryStore(MAX_SESSIONS, IDLE_TIMEOUT_S, clock)

    def test_close_forgets_everything(self, store: Store) -> None:
        """Nothing outlives the process, nor the store."""
        self.commit(store, A, None, record(1))
        self.run(store.close())
        assert self.run(store.count()) == 0
