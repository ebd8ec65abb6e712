"""A store whose failures are counted, whoever called it: a batch, a look-up, a sweep, /readyz."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from service.errors import StoreFullError, StoreUnavailableError
from service.session import Record, SessionKey
from service.store import Commit, Outcome, Store
from service.store.record_bytes import RecordRows
from service.store.table import Array, Look, Table

T = TypeVar("T")


class CountedStore:
    """Another store, whose methods it has."""

    def __init__(self, store: Store, failed: Callable[[str], None]) -> None:
        """`failed` is called with the code of each error that a call of the store raised."""
        self._store = store
        self._failed = failed
        self.table = CountedTable(store.table, self)

    async def get(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        return await self.counting(self._store.get(keys))

    async def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        outcomes = await self.counting(self._store.commit(commits))
        if Outcome.NO_SPACE in outcomes:
            self._failed(StoreFullError.code)
        return outcomes

    async def count(self, tenant: str | None = None) -> int:
        return await self.counting(self._store.count(tenant))

    async def room_in_s(self, tenant: str | None = None) -> float:
        return await self.counting(self._store.room_in_s(tenant))

    async def sweep(self) -> list[SessionKey]:
        return await self.counting(self._store.sweep())

    async def close(self) -> None:
        await self._store.close()

    async def counting(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except (StoreUnavailableError, StoreFullError) as error:
            self._failed(error.code)
            raise


class CountedTable:
    """The table of a counted store."""

    def __init__(self, table: Table, store: CountedStore) -> None:
        self._table = table
        self._store = store
        self.note = table.note
        self.seat = table.seat
        self.known = table.known
        self.keys = table.keys

    @property
    def generation(self) -> int:
        return self._table.generation

    async def read(self, seats: Array, records: RecordRows) -> Look:
        return await self._store.counting(self._table.read(seats, records))

    async def commit(
        self,
        look: Look,
        wanted: Array,
        records: RecordRows,
        steps: int,
        digests: Array,
        states: Array,
        y: Array,
    ) -> Array:
        return await self._store.counting(
            self._table.commit(look, wanted, records, steps, digests, states, y)
        )
