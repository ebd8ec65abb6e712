"""Requests that came together, in one read of a socket or one frame: how they reach the engine.

Rules
- Those of sessions with a seat go as blocks, whatever else came with them: one block for each model
  and number of steps, and for the second request of one session, the third, ..
- All others are submitted one by one, in their places: a block holds nothing that came after them.
- At any moment those handed over are the first so many that came: where a drain ends the reading,
  what was not run is one piece, and `reached` has told where it begins.
- A block costs as much as some `LEAST_ROWS` requests by themselves; where blocks would be smaller
  there are none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from service.blocks import Block, Done
from service.errors import DrainingError
from service.job import Request
from service.model import Model
from service.origin import Origin
from service.protocols.exchange import Exchange
from service.protocols.seating import NO_SEAT

Array = np.ndarray

LEAST_ROWS = 4
NO_STEP = -1  # as a block says that a request has none

Tag = TypeVar("Tag")
Out = TypeVar("Out")
Tag_co = TypeVar("Tag_co", covariant=True)
Out_co = TypeVar("Out_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Requests alike among those that came: of one model, of equally many steps."""

    model: Model
    rows: Array  # (n,) int64: which of those that came, ascending
    x: Array  # (n, T, ...) in raw units, float64, or int64 for ids


@dataclass(frozen=True, slots=True)
class Arrival(Generic[Tag_co, Out_co]):
    """What came together, N requests of one connection."""

    seats: Array  # (N,) int64; `NO_SEAT`: it is submitted by itself
    steps: Array  # (N,) int64, -1: none
    bundles: Sequence[Bundle]  # of all that have seats
    generation: int  # of the seats
    origin: Origin
    tag: Callable[[int], Tag_co]
    read: Callable[[int], Request]  # may raise a CarouselError where there is no seat
    left: Callable[[int], object]  # called of a row that left its block
    write: Callable[[Array, Block, Done], Out_co]  # of (n,) rows of this arrival that are done


async def hand_over(
    exchange: Exchange[Tag, Out],
    tenant: str,
    came: Arrival[Tag, Out],
    reached: Callable[[int], object],
) -> None:
    """Submit all that came; `reached(n)` tells before each that the first n are."""
    for start, end in _stretches(came.seats != NO_SEAT, exchange.max_block):
        reached(start)
        blocks = _blocks(tenant, came, start, end)
        if blocks and await _are_taken(exchange, came, blocks):
            continue
        for row in range(start, end):
            reached(row)
            await exchange.submit(came.tag(row), partial(came.read, row))


async def _are_taken(
    exchange: Exchange[Tag, Out], came: Arrival[Tag, Out], blocks: dict[Block, Array]
) -> bool:
    """Submit the blocks; False where the server drains, and tells each request so by itself."""

    def write(block: Block, done: Done) -> Out:
        return came.write(blocks[block][done.rows], block, done)

    def tag_of(block: Block, row: int) -> Tag:
        place = int(blocks[block][row])
        came.left(place)
        return came.tag(place)

    try:
        await exchange.submit_blocks(list(blocks), write, tag_of)
    except DrainingError:
        return False
    return True


def _stretches(is_seated: Array, most: int) -> Iterator[tuple[int, int]]:
    """Where the seated stand beside each other, at most so many, and where the others do."""
    if not len(is_seated):
        return
    ends = [*(np.flatnonzero(is_seated[1:] != is_seated[:-1]) + 1).tolist(), len(is_seated)]
    start = 0
    for end in ends:
        if is_seated[start]:
            while end - start > most:
                yield start, start + most
                start += most
        yield start, end
        start = end


def _blocks(tenant: str, came: Arrival[Tag, Out], start: int, end: int) -> dict[Block, Array]:
    """The blocks of a stretch, in the order in which they must run, and their rows.

    None where its requests go by themselves.
    """
    if came.seats[start] == NO_SEAT or end - start < LEAST_ROWS:
        return {}
    parts = [
        (bundle, low, high)
        for bundle in came.bundles
        for low, high in [np.searchsorted(bundle.rows, (start, end)).tolist()]
        if low < high
    ]
    waves = _waves(came.seats[start:end])
    count = 1 if waves is None else int(waves.max()) + 1
    if end - start < LEAST_ROWS * count * len(parts):
        return {}
    found: dict[Block, Array] = {}
    for wave in range(count):
        for bundle, low, high in parts:
            rows, x = bundle.rows[low:high], bundle.x[low:high]
            if waves is not None:
                mine = waves[rows - start] == wave
                rows, x = rows[mine], x[mine]
            if len(rows):
                block = Block(
                    tenant,
                    bundle.model,
                    came.seats[rows],
                    x,
                    came.steps[rows],
                    came.origin,
                    partial(_request, came, rows),
                    came.generation,
                )
                found[block] = rows
    return found


def _request(came: Arrival[Tag, Out], rows: Array, row: int) -> Request:
    return came.read(int(rows[row]))


def _waves(seats: Array) -> Array | None:
    """(n,) how often each seat came before; None: none comes twice."""
    order = np.argsort(seats, kind="stable")
    sought = seats[order]
    is_first = np.append(True, sought[1:] != sought[:-1])
    if is_first.all():
        return None
    at = np.arange(len(seats))
    waves = np.empty_like(at)
    waves[order] = at - np.maximum.accumulate(np.where(is_first, at, 0))
    return waves


def alike(keys: Array) -> Iterator[Array]:
    """The positions of equal keys (n,) together, each ascending."""
    if len(keys) and (keys == keys[0]).all():
        yield np.arange(len(keys))
        return
    for key in np.unique(keys):
        yield np.flatnonzero(keys == key)
