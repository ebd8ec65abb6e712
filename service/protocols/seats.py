"""How many WebSockets may be open at once in one process, and whose.

Rules
- At most `most` in all, and `most_per_tenant` of one tenant.
- At most a quarter are of clients that have not shown their key yet, so that nobody keeps those
  out who have one.
"""

from collections import Counter

from service.errors import CapacityError

RETRY_AFTER_S = 5  # long-lived connections: a place is free when somebody leaves
UNKNOWN_SHARE = 4  # one in so many


class Seats:
    """Places for connections."""

    def __init__(self, most: int, most_per_tenant: int) -> None:
        self._most = most
        self._most_per_tenant = most_per_tenant
        self._taken: Counter[str | None] = Counter()  # by tenant; None: not known yet

    def take(self, tenant: str | None) -> None:
        """Take a place; CapacityError if there is none."""
        if self._taken.total() >= self._most:
            raise _full(f"{self._most} connections are open, as many as the server takes", "")
        if tenant is None and self._taken[None] >= max(self._most // UNKNOWN_SHARE, 1):
            raise _full("too many connections are open that have shown no API key", "unknown_")
        self._seat(tenant)

    def know(self, tenant: str) -> None:
        """Whoever had shown no key is of `tenant`; CapacityError if that has no place left."""
        self._seat(tenant)
        self.leave(None)

    def _seat(self, tenant: str | None) -> None:
        if tenant is not None and self._taken[tenant] >= self._most_per_tenant:
            raise _full(
                f"{self._most_per_tenant} of your connections are open, as many as the server "
                "takes of one tenant",
                "tenant_",
            )
        self._taken[tenant] += 1

    def leave(self, tenant: str | None) -> None:
        """Give a place back."""
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]


def _full(message: str, whose: str) -> CapacityError:
    return CapacityError(
        f"{message}; retry in {RETRY_AFTER_S} s",
        limit=f"{whose}connections",
        retry_after_s=RETRY_AFTER_S,
    )
