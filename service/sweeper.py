"""Idle sessions are forgotten in the background: no request pays for it.

A session whose time is up does not exist, swept or not; the sweep frees its room, counts it and
logs it. Every worker sweeps; of all who share a store, one is told of each session.
"""

import asyncio
import logging
import random

from service.errors import CarouselError
from service.metrics import Metrics
from service.session import CONTROL, SessionKey
from service.store import Store

SHARE_OF_TIMEOUT = 0.1  # a session is noticed a tenth of its idle timeout late, or less ..
SHORTEST_S, LONGEST_S = 0.25, 30.0  # .. within these
JITTER = 0.25  # of a period, so that workers and replicas do not all sweep at once
MAX_LOGGED = 20  # ids in a line of the log

logger = logging.getLogger("carousel.sessions")


def period_of(idle_timeout_s: float) -> float:
    """Seconds between two sweeps."""
    return min(max(idle_timeout_s * SHARE_OF_TIMEOUT, SHORTEST_S), LONGEST_S)


async def sweep_forever(store: Store, metrics: Metrics, period_s: float) -> None:
    """Sweep every `period_s` or so, until cancelled; a store that fails is asked again later."""
    while True:
        await asyncio.sleep(period_s * random.uniform(1 - JITTER, 1 + JITTER))
        try:
            await sweep(store, metrics)
        except CarouselError as error:
            logger.error("idle sessions could not be swept: %s", error.message)
        except Exception:
            logger.exception("idle sessions could not be swept")


async def sweep(store: Store, metrics: Metrics) -> int:
    """Forget all sessions whose time is up; how many this store's caller was told of."""
    count = 0
    named: list[SessionKey] = []
    while found := await store.sweep():
        expired = [key for key in found if key.tenant != CONTROL]
        metrics.expired.inc(len(expired))
        count += len(expired)
        named += expired[: MAX_LOGGED - len(named)]
        await asyncio.sleep(0)  # many at once: requests have their turn in between
    if count:
        logger.info("%d idle sessions expired: %s", count, _names(named, count))
    return count


def _names(keys: list[SessionKey], count: int) -> str:
    """Escaped: an id may hold anything, line breaks too."""
    names = ", ".join(ascii("/".join(filter(None, (k.tenant, k.session_id)))) for k in keys)
    return f"{names} and {count - len(keys)} more" if count > len(keys) else names
