"""How long to go on trying, and how long to wait in between. No clock and no chance of its own."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_S = 0.05  # a restart of a worker is over in some of these
MAX_PAUSE_S = 2.0  # nobody waits longer than this for a server that is back


@dataclass(frozen=True, slots=True)
class Patience:
    """What the caller allows."""

    timeout_s: float = 30.0  # for one try, from its first byte to its answer
    retry_for_s: float = 60.0  # for all tries of one call; 0: one try
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random  # in [0, 1)

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"`timeout_s` is {self.timeout_s}, expected more than 0")
        if not self.retry_for_s >= 0:
            raise ValueError(f"`retry_for_s` is {self.retry_for_s}, expected 0 or more")


class Backoff:
    """The pauses of one call, or of one trouble of a stream."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._until = patience.clock() + patience.retry_for_s
        self._tries = 0

    @property
    def left_s(self) -> float:
        """Of all the time that there was."""
        return self._until - self._patience.clock()

    @property
    def try_for_s(self) -> float:
        """How long the next try may take; the first one is always made."""
        patience = self._patience
        if self._tries == 0:
            return patience.timeout_s
        return max(0.001, min(patience.timeout_s, self.left_s))

    def pause_s(self, retry_after_s: float | None = None) -> float | None:
        """How long to wait before the next try; None: that would be too late.

        Args:
            retry_after_s: what the server asks for; it is never asked before.
        """
        grown = min(MAX_PAUSE_S, FIRST_PAUSE_S * math.pow(2, min(self._tries, 16)))
        self._tries += 1
        spread = 0.5 + self._patience.chance()  # clients that were cut together part here
        pause = grown * spread
        if retry_after_s is not None:
            pause = retry_after_s + min(pause, 0.1 * retry_after_s)
        return pause if pause < self.left_s else None
