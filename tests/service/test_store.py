"""What every store must do; one subclass for each store."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from service.session import LastReply, Record, SessionKey
from service.store import Commit, Outcome, Store
from service.store.memory import MemoryStore

MAX_SESSIONS = 3
T = TypeVar("T")


def key(session_id: str, tenant: str = "") -> SessionKey:
    return SessionKey(tenant, session_id)


def record(step: int, birth: int = 1, expires_at: float = 100.0) -> Record:
    last = LastReply(step - 1, b"digest", b"y", created=step == 1)
    return Record(birth, "sine-cell", "aaaa", step, f"state {step}".encode(), last, expires_at)


A, B, C, D = (key(name) for name in "ABCD")


class StoreContract:
    """Subclass it with a `make` that opens an empty store of MAX_SESSIONS."""

    @pytest.fixture
    def make(self) -> Callable[[], Store]:
        raise NotImplementedError

    @pytest.fixture
    def store(self, make: Callable[[], Store]) -> Store:
        return make()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(coroutine)

    def commit(
        self, store: Store, at: SessionKey, before: Record | None, after: Record, now: float = 0.0
    ) -> Outcome:
        (outcome,) = self.run(store.commit([Commit(at, before, after)], now))
        return outcome

    def get(self, store: Store, at: SessionKey, now: float = 0.0) -> Record | None:
        (found,) = self.run(store.get([at], now))
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
        outcomes = self.run(store.commit(commits, 0.0))
        assert outcomes == [Outcome.DONE, Outcome.LOST, Outcome.DONE]
        assert self.run(store.get([C, D, A, B], 0.0)) == [record(2), None, record(1), record(5)]

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
        self, store: Store, held: Record | None, before: Record | None
    ) -> None:
        """Compare and set, on existence, birth and step."""
        if held is not None:
            self.commit(store, A, None, held)
        assert self.commit(store, A, before, record(9)) is Outcome.LOST
        assert self.get(store, A) == held

    def test_the_same_id_of_two_tenants_is_two_sessions(self, store: Store) -> None:
        """The tenant is part of the key."""
        self.commit(store, key("A", "one"), None, record(1))
        assert self.get(store, key("A", "two")) is None
        assert self.run(store.drop(key("A", "two"), 0.0)) is None
        assert self.get(store, key("A", "one")) == record(1)

    def test_drop_gives_what_was_there_and_forgets_it(self, store: Store) -> None:
        """A second drop finds nothing."""
        self.commit(store, A, None, record(1))
        assert self.run(store.drop(A, 0.0)) == record(1)
        assert self.get(store, A) is None
        assert self.run(store.drop(A, 0.0)) is None

    def test_an_expired_session_does_not_exist(self, store: Store) -> None:
        """Neither to be read, nor counted, dropped, or committed over."""
        self.commit(store, A, None, record(1, expires_at=10.0))
        assert self.get(store, A, now=9.9) is not None
        assert self.get(store, A, now=10.0) is None
        assert self.run(store.count(10.0)) == 0
        assert self.commit(store, A, record(1), record(2), now=10.0) is Outcome.LOST
        assert self.run(store.drop(A, 10.0)) is None
        assert self.commit(store, A, None, record(1, birth=2), now=10.0) is Outcome.DONE

    def test_a_full_store_refuses_new_sessions_and_keeps_the_live_ones(self, store: Store) -> None:
        """Existing sessions go on; dropping one makes room."""
        for at in (A, B, C):
            assert self.commit(store, at, None, record(1)) is Outcome.DONE
        assert self.commit(store, D, None, record(1)) is Outcome.FULL
        assert self.get(store, D) is None
        assert self.commit(store, A, record(1), record(2)) is Outcome.DONE
        assert self.run(store.count(0.0)) == MAX_SESSIONS
        self.run(store.drop(B, 0.0))
        assert self.commit(store, D, None, record(1)) is Outcome.DONE

    def test_a_full_store_makes_room_of_expired_sessions_only(self, store: Store) -> None:
        """Those whose time is up go first; `room_in_s` says when the next will."""
        self.commit(store, A, None, record(1, expires_at=10.0))
        self.commit(store, B, None, record(1, expires_at=20.0))
        assert self.run(store.room_in_s(0.0)) == 0.0
        self.commit(store, C, None, record(1, expires_at=30.0))
        assert self.run(store.room_in_s(4.0)) == 6.0
        assert self.commit(store, D, None, record(1, expires_at=40.0), now=9.0) is Outcome.FULL
        assert self.commit(store, D, None, record(1, expires_at=40.0), now=10.0) is Outcome.DONE
        assert self.run(store.get([A, B, C, D], 10.0))[0] is None
        assert self.run(store.count(10.0)) == 3

    def test_a_session_in_use_outlives_an_idle_one(self, store: Store) -> None:
        """Each commit carries a new expiry."""
        self.commit(store, A, None, record(1, expires_at=10.0))
        self.commit(store, B, None, record(1, expires_at=11.0))
        self.commit(store, A, record(1), record(2, expires_at=20.0), now=9.0)
        assert self.get(store, A, now=15.0) == replace(record(2), expires_at=20.0)
        assert self.get(store, B, now=15.0) is None
        assert self.run(store.count(15.0)) == 1


class TestMemoryStore(StoreContract):
    """Sessions in this process's memory."""

    @pytest.fixture
    def make(self) -> Callable[[], Store]:
        return lambda: MemoryStore(MAX_SESSIONS)

    def test_close_forgets_everything(self, store: Store) -> None:
        """Nothing outlives the process, nor the store."""
        self.commit(store, A, None, record(1))
        self.run(store.close())
        assert self.run(store.count(0.0)) == 0
