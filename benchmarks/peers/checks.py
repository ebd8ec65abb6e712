"""Who loses what: what a server's replies say about the states that it keeps.

Every reply is compared with a plain loop of the model (`PlainLoop`); y has so many numbers that two
states give the same by chance never.

- `share`: many connections ask the same session at once. Any order is right, so replies must form
  one chain: each continues from where another ended. A reply that continues from a state from which
  another continued already is a step that was lost; one that continues from no state that anybody
  was told is wrong.
- `retry`: a client sends a step, hangs up before the reply comes, and sends it again. It may count
  once. Who can say the step's index says it.
- `crowd`: whether what one session gets changes by a bit when others ask at the same time.
- `Killed`: under load all processes are killed (-9), and the server is started again: which
  sessions go on from what they were told, or from the step that was under way.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.wire.agreement import PlainLoop, is_same, rows_of
from benchmarks.wire.carousel import Way
from benchmarks.wire.client import Client
from benchmarks.wire.link import LinkError

Array = np.ndarray
REPLY_LOST_AFTER_S = 1.0  # the step is done by then, the reply was sent, nobody has read it
CROWD_STEPS = 24


# One session, many connections -------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """What came of concurrent requests of one session."""

    replies: int
    lost: int  # steps on top of which nobody built: others went on from the state before them
    wrong: int  # replies that continue from no state that anybody was told
    refused: int  # requests without a reply

    def __str__(self) -> str:
        bad = [f"{n} {what}" for n, what in ((self.lost, "lost"), (self.wrong, "wrong")) if n]
        bad += [f"{self.refused} refused"] if self.refused else []
        return f"{', '.join(bad) or 'none'} of {self.replies}"


async def share(
    way: Way, port: int, loop: PlainLoop, name: str, connections: int, requests: int
) -> Shared:
    """`requests` by each of `connections`, all of one session, as fast as they are answered."""
    rows = rows_of(name, 1 + connections * requests, loop.width)
    replies: list[tuple[Array, list[float]]] = []
    refused = 0

    async def ask(number: int) -> None:
        nonlocal refused
        mine = rows[1 + number * requests :][:requests]
        async with Client(way.link, way.path, port, [name], begun=True) as client:
            for x in mine:
                try:
                    replies.append((x, await client.step(name, x.tolist())))
                except LinkError:
                    refused += len(mine)
                    return

    async with Client(way.link, way.path, port, [name]) as client:
        replies.append((rows[0], await client.step(name, rows[0].tolist())))
    await asyncio.gather(*(ask(number) for number in range(connections)))
    chain, explained = longest_chain(replies, loop)
    return Shared(len(replies), explained - chain, len(replies) - explained, refused)


def longest_chain(
    replies: Sequence[tuple[Array, Sequence[float]]], loop: PlainLoop
) -> tuple[int, int]:
    """How long the longest chain is that (x, y) form from the start, and how many have a place.

    Every state that a reply leads to is tried for every reply that has no place so far: in a chain
    one continues from each, and two that do are a fork.
    """
    left = list(replies)
    heads = [(loop.start(), 0)]
    longest = 0
    while heads:
        state, length = heads.pop()
        longest = max(longest, length)
        rest = []
        for x, y in left:
            expected, after = loop.step(x, state)
            if is_same(y, expected):
                heads.append((after, length + 1))
            else:
                rest.append((x, y))
        left = rest
    return longest, len(replies) - len(left)


# A reply that is lost ----------------------------------------------------------------------------


async def retry(way: Way, port: int, loop: PlainLoop, name: str, *, says_step: bool) -> str:
    """What a step counted for that was sent twice, since its reply was lost: "once", "twice", .."""
    first, lost, after = rows_of(name, 3, loop.width)
    index: Callable[[int], int | None] = lambda step: step if says_step else None  # noqa: E731
    async with Client(way.link, way.path, port, [name]) as client:
        await client.step(name, first.tolist(), index(0))
    async with Client(way.link, way.path, port, [name], begun=True) as client:
        client.send(name, lost.tolist(), index(1))
        await asyncio.sleep(REPLY_LOST_AFTER_S)
    async with Client(way.link, way.path, port, [name], begun=True) as client:
        again = await client.step(name, lost.tolist(), index(1))
        y = await client.step(name, after.tolist(), index(2))
    state = loop.start()
    for x in (first, lost):
        told, state = loop.step(x, state)
    for times in ("once", "twice"):
        expected, _ = loop.step(after, state)
        if is_same(again, told) and is_same(y, expected):
            return times
        told, state = loop.step(lost, state)
    return "neither once nor twice"


# Neighbours --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """How one session's replies among others differ from its replies alone."""

    steps: int
    changed: int  # steps of which a bit is another
    by: float  # the greatest difference

    def __str__(self) -> str:
        return f"{self.changed} of {self.steps}" + (f", by {self.by:.0e}" if self.changed else "")


async def crowd(way: Way, port: int, loop: PlainLoop, prefix: str, neighbours: int) -> Crowd:
    """The same steps of two sessions: one alone, one while `neighbours` send calm and huge x."""
    rows = rows_of(prefix, CROWD_STEPS, loop.width)

    async def one(name: str) -> Array:
        async with Client(way.link, way.path, port, [name]) as client:
            return np.array([await client.step(name, x.tolist()) for x in rows], np.float32)

    is_over = False

    async def neighbour(number: int) -> None:
        name, scale = f"{prefix}-neighbour-{number}", (1.0, 1e4)[number % 2]
        own = rows_of(name, CROWD_STEPS, loop.width) * scale
        async with Client(way.link, way.path, port, [name]) as client:
            step = 0
            while not is_over:
                await client.step(name, own[step % CROWD_STEPS].tolist())
                step += 1

    alone = await one(f"{prefix}-alone")
    noise = [asyncio.ensure_future(neighbour(number)) for number in range(neighbours)]
    await asyncio.sleep(0.2)
    among = await one(f"{prefix}-among")
    is_over = True
    await asyncio.gather(*noise)
    differs = (alone.view(np.int32) != among.view(np.int32)).any(axis=1)
    return Crowd(len(rows), int(differs.sum()), float(np.abs(alone - among).max()))


# A kill ------------------------------------------------------------------------------------------


class Killed:
    """Sessions under load, and what is left of them after their server was killed."""

    def __init__(self, way: Way, port: int, loop: PlainLoop, prefix: str, sessions: int) -> None:
        self._way, self._port, self._loop = way, port, loop
        self._names = [f"{prefix}-{number}" for number in range(sessions)]
        self._states = [loop.start() for _ in self._names]
        self._under_way: list[Array | None] = [None] * sessions
        self._told = [0] * sessions  # steps that were acknowledged

    async def load(self, kill: Callable[[], None], after_s: float) -> None:
        """Ask, in turn for each session; `kill` the server after a while, under way."""
        work = [asyncio.ensure_future(self._ask(place)) for place in range(len(self._names))]
        await asyncio.sleep(after_s)
        await asyncio.to_thread(kill)
        await asyncio.gather(*work)

    async def _ask(self, place: int) -> None:
        name = self._names[place]
        rng = np.random.default_rng(place)
        try:
            async with Client(self._way.link, self._way.path, self._port, [name]) as client:
                while True:
                    x = rng.uniform(-1, 1, self._loop.width)
                    self._under_way[place] = x
                    await client.step(name, x.tolist())
                    _, self._states[place] = self._loop.step(x, self._states[place])
                    self._told[place] += 1
                    self._under_way[place] = None
        except (LinkError, OSError):
            return  # killed, as it should be

    @property
    def begun(self) -> list[int]:
        """The places of the sessions that were told of a step: only they have what can be lost."""
        return [place for place, told in enumerate(self._told) if told]

    async def lost(self) -> int:
        """How many of those do not go on from what they were told."""
        return sum([not await self._goes_on(place) for place in self.begun])

    async def _goes_on(self, place: int) -> bool:
        name, x = self._names[place], np.full(self._loop.width, math.pi / 4)
        try:
            async with Client(
                self._way.link, self._way.path, self._port, [name], begun=True
            ) as client:
                y = await client.step(name, x.tolist())
        except LinkError:
            return False
        possible = [self._states[place]]
        if (under_way := self._under_way[place]) is not None:
            possible.append(self._loop.step(under_way, self._states[place])[1])
        return any(is_same(y, self._loop.step(x, state)[0]) for state in possible)
