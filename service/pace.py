"""How fast the queue is emptied, for an honest Retry-After. Pure: no clock.

Only the time in which requests were run counts, and what is long past counts less: by half for
every `HALF_LIFE_S` of such time. Before anything ran, the queue is taken to be a second of work.
"""

import math

HALF_LIFE_S = 2.0  # of running; after 20 s nothing is left of a pace that was 100 times as fast
PRIOR_S = 0.1  # how much the guess from before the first request weighs
LONGEST_S = 60  # sessions and clients come and go: look again soon


class Pace:
    """Requests finished per second of running."""

    def __init__(self, max_queue: int) -> None:
        self._finished = max_queue * PRIOR_S
        self._running_s = PRIOR_S

    def note(self, finished: int, running_s: float) -> None:
        """`finished` requests left the queue in a batch that took `running_s` seconds."""
        kept = 0.5 ** (running_s / HALF_LIFE_S)
        self._finished = self._finished * kept + finished
        self._running_s = self._running_s * kept + running_s

    def retry_after_s(self, waiting: int) -> int:
        """Seconds until what waits now is done, from 1 to `LONGEST_S`."""
        if self._finished <= 0:
            return LONGEST_S
        seconds = waiting * self._running_s / self._finished
        return math.ceil(min(max(seconds, 1.0), LONGEST_S))
