"""The CPU time of a step in process: by the age of its session, and by how many others sleep.

The real `Engine` over the real `DiskStore`, as a worker has them; no protocol. Each store takes its
turn with all others, in another order each round.

Two loads. `awake`: 64 sessions of one age go on and on, whatever sleeps beside them. `any`: each
step wakes one of the sleepers, drawn anew; its record is in no cache, neither ours nor, where they
are many, the processor's.
"""

import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.scaling.sleepers import AWAKE, House, awake, sleeper
from service.session import SessionKey

CALLS = {1: 150, AWAKE: 12}  # batch -> batches in a slice: some 30 ms each

Tell = Callable[[], None]


@dataclass(frozen=True)
class Point:
    """A step of one session among others."""

    load: str  # "awake" or "any"
    asleep: int
    age: int  # steps that its sessions had lived when it began
    batch: int
    cpu_us: float  # a step, the least of the rounds: what others do on the machine only adds
    to_first: float  # that to the first point's of the same load and batch
    faults: float  # pages that a step found not mapped


@dataclass(frozen=True)
class Contestant:
    load: str
    house: House
    age: int
    batch: int

    def keys(self, rng: random.Random) -> list[SessionKey]:
        """Those of one batch."""
        if self.load == "any":
            numbers = rng.sample(range(self.house.asleep), min(self.batch, self.house.asleep))
            return [sleeper(number) for number in numbers]
        return rng.sample(awake(self.age), self.batch)


async def measure(
    houses: Sequence[House], ages: Sequence[int], rounds: int, told: Tell
) -> list[Point]:
    """All points; `told` is called after each round."""
    contestants = [
        *(Contestant("awake", h, age, batch) for batch in CALLS for h in houses for age in ages),
        *(Contestant("any", h, 1, batch) for batch in CALLS for h in houses if h.asleep >= batch),
    ]
    rng = random.Random(0)
    slices: dict[Contestant, list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        order = rng.sample(contestants, len(contestants))
        for one in order:
            found = await _slice(one, rng)
            if number:  # the first round warms up
                slices.setdefault(one, []).append(found)
        told()
    first: dict[tuple[str, int], float] = {}
    points = []
    for one in contestants:
        cpu_us = min(cpu_us for cpu_us, _ in slices[one])
        faults = median(faults for _, faults in slices[one])
        ratio = cpu_us / first.setdefault((one.load, one.batch), cpu_us)
        points.append(Point(one.load, one.house.asleep, one.age, one.batch, cpu_us, ratio, faults))
    return points


async def _slice(one: Contestant, rng: random.Random) -> tuple[float, float]:
    """CPU time of a step in us, and page faults."""
    batches = [one.keys(rng) for _ in range(CALLS[one.batch])]
    faults, begun = _faults(), time.process_time()
    for keys in batches:
        await one.house.ask(keys)
    took_s = time.process_time() - begun
    steps = sum(map(len, batches))
    return took_s / steps * 1e6, (_faults() - faults) / steps


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
