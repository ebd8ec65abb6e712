"""Python's cycle collector, as a server wants it: no pauses on account of what is there for good.

Rules
- What the start made (modules, models, BentoML: some 300,000 objects) is put aside once, when the
  server is ready. Else every full collection walks all of it: 86 ms of CPU with BentoML's modules,
  for which every request of that moment waits; some 1 ms after.
- The youngest generation is looked at after `YOUNGEST` new containers more than are freed, not 700:
  64 requests under way hold more than that, so it was looked at 40 times in 1,000 requests and
  found nothing, as what a request leaves is freed by its count. One look takes some 2 ms at most.

A /predict among 64 sessions took 141 us of a core in process, and 95 with this; the p99 of what
passes while a request is under way was 11 times its p50, and is 1.8 times.
"""

import gc

YOUNGEST = 10_000  # containers


def settle_collector() -> None:
    """Put aside what is there, and look at the rest more seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNGEST, *gc.get_threshold()[1:])
