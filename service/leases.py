"""Which older versions live sessions may still need, on any server that shares their store.

Rules
- A version that is not its model's newest has a lease in the store while sessions of it are used.
  The store forgets a lease as it forgets a session: when nobody has renewed it for the idle
  timeout. So where there is no lease, there is no live session.
- A server renews the lease of each version that it used, at most once in `renew_s`. A server that
  was killed may leave sessions that live up to `renew_s` longer than their lease: for so long a
  version counts as needed.
"""

import random
import time
from collections.abc import Callable, Collection

from service.session import CONTROL, LastReply, Record, SessionKey
from service.store import Commit, Store

NO_REPLY = LastReply(step=0, digest=b"", y=b"", created=False)


class Leases:
    """The leases as one process knows and renews them."""

    def __init__(
        self, store: Store, renew_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`renew_s`: a fraction of the store's idle timeout."""
        self._store = store
        self._renew_s = renew_s
        self._clock = clock
        self._due: set[str] = set()  # used since they were renewed
        self._renewed: dict[str, float] = {}  # `name:version` -> when, by this process
        self._seen: dict[str, float] = {}  # when there was a lease, or need of one

    async def needed(self, versions: Collection[str], used: Collection[str]) -> set[str]:
        """Renew what was used of `versions` (`name:version`); those that sessions may need."""
        now = self._clock()
        self._due |= set(used)
        keys = {version: SessionKey(CONTROL, f"lease {version}") for version in versions}
        leases = await self._store.get(list(keys.values()))
        for (version, key), lease in zip(keys.items(), leases, strict=True):
            is_due = version in self._due
            if is_due and (lease is None or now - self._renewed.get(version, 0) >= self._renew_s):
                await self._store.commit([Commit(key, lease, _next(lease, version))])
                self._due.discard(version)
                self._renewed[version] = now
            if lease is not None or is_due:
                self._seen[version] = now
        return {v for v in versions if now - self._seen.setdefault(v, now) < self._renew_s}


def _next(record: Record | None, version: str) -> Record:
    birth, step = (record.birth, record.step + 1) if record else (random.getrandbits(63), 1)
    return Record(birth, version, "", step, b"", NO_REPLY)
