"""One run: clients under load, trouble made meanwhile, and the verdict of the oracle."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from service.model import Model
from tests.chaos.clients import Hand, Load, Mischief, StreamClient, UnaryClient
from tests.chaos.oracle import Fault

POLL_S = 0.05

Client = UnaryClient | StreamClient


@dataclass(frozen=True)
class Size:
    """How many clients, with how many sessions each."""

    unary: int = 4
    stream: int = 2
    sessions_each: int = 6
    shared_sessions: int = 4  # that every client takes part in


@dataclass(frozen=True)
class Verdict:
    """What came of a run."""

    steps: int  # acknowledged, each once
    sessions: int
    in_doubt: int  # chunks of shared sessions whose replies were lost
    wall_s: float
    counts: dict[str, int]
    faults: list[Fault]

    def __str__(self) -> str:
        found = [f"{self.steps} steps of {self.sessions} sessions in {self.wall_s:.1f} s"]
        found += [f"{self.in_doubt} chunks in doubt", f"{len(self.faults)} faults"]
        found += [f"{name}: {count}" for name, count in sorted(self.counts.items())]
        return "; ".join(found)


def clients_of(load: Load, size: Size, seed: int) -> list[Client]:
    """Each with sessions of its own, and its part in the shared ones."""
    clients: list[Client] = []
    for n in range(size.unary + size.stream):
        hands = [
            Hand(load, f"alone-{seed}-{n}-{m}", f"{seed} {n} {m}", shared=False)
            for m in range(size.sessions_each)
        ]
        hands += [
            Hand(load, f"shared-{seed}-{m}", f"{seed} {n} shared {m}", shared=True)
            for m in range(size.shared_sessions)
        ]
        kind = UnaryClient if n < size.unary else StreamClient
        clients.append(kind(load, hands, seed * 1000 + n))
    return clients


async def run(
    ports: Sequence[int],
    model: Model,
    trouble: Callable[[Load], Awaitable[None]],
    *,
    steps: int = 0,
    size: Size | None = None,
    seed: int = 1,
    timeout_s: float = 120,
    mischief: Mischief | None = None,
) -> Verdict:
    """Drive the servers at `ports` until `trouble` is over and `steps` were acknowledged.

    Args:
        trouble: leaves the servers well, and none of it must still be going on at its end.
    """
    load = Load(ports, model.name, mischief=mischief or Mischief())
    start = time.monotonic()
    async with asyncio.timeout(timeout_s):
        async with asyncio.TaskGroup() as group:
            for client in clients_of(load, size or Size(), seed):
                group.create_task(client.run())
            await trouble(load)
            while load.ledger.steps < steps and not load.done.is_set():
                await asyncio.sleep(POLL_S)
            load.done.set()
        stands_at = await load.stands_at()
    wall_s = time.monotonic() - start
    faults = load.ledger.judge(model, stands_at)
    in_doubt = len(load.ledger.in_doubt)
    counts = dict(load.counts)
    return Verdict(load.ledger.steps, len(stands_at), in_doubt, wall_s, counts, faults)


def intervals(times: Sequence[float]) -> str:
    """The gaps between moments, seconds, in words."""
    gaps = [after - before for before, after in pairwise(times)]
    if not gaps:
        return "no interval"
    return f"{min(gaps):.2f}, {median(gaps):.2f} and {max(gaps):.2f} s apart (least, median, most)"
