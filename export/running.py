"""A model over thousands of steps with its state carried, whatever it is that advances.

Rules
- The reference and every variant are run by the same code.
- A row whose y is not finite is over: y is NaN from that step on, and its place goes on from a
  zero state, so that the rows beside it can be seen to the end (torch's int8 products refuse a
  whole batch for one NaN).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from service.layout import State

Array = np.ndarray
Advance = Callable[[Array, State], tuple[Array, State]]  # x (B, T, ...), state -> y, state'
Tell = Callable[[int], None]  # told how many steps are done
TELL_EVERY = 250  # steps


@dataclass(frozen=True)
class Run:
    """What a model answered.

    y (B, T, ...), x (B, T, ...) as it was taken, the states before the steps that were asked for,
    and the least and greatest value of each state where chunks begin.
    """

    x: Array
    y: Array
    states: dict[int, State]
    ranges: dict[str, tuple[float, float]]


def chunks(cuts: Sequence[int], steps: int) -> list[tuple[int, int]]:
    """The start and the end of each chunk."""
    return list(zip(cuts, [*cuts[1:], steps], strict=True))


def drive(
    advance: Advance,
    x: Array,
    state: State,
    cuts: Sequence[int],
    keep: Collection[int] = (),
    rows: int | None = None,
    tell: Tell = lambda done: None,
) -> Run:
    """Give the model x (B, T, ...) in chunks that begin at `cuts`.

    Args:
        state: name -> (B, ...) before the first step. Not changed.
        keep: the cuts before which the states of the first `rows` rows are kept.
        rows: those whose states count; None: all.
        tell: told now and then how many steps are done.
    """
    ys: list[Array] = []
    states: dict[int, State] = {}
    ranges = _Ranges()
    over = np.zeros(len(x), bool)
    for start, stop in chunks(cuts, x.shape[1]):
        seen = {name: value[:rows] for name, value in state.items()}
        ranges.see(seen)
        if start in keep:
            states[start] = seen
        y, state = advance(np.ascontiguousarray(x[:, start:stop]), state)
        y, state = _end_rows(y, state, over)
        ys.append(y)
        tell(stop)
    return Run(x, np.concatenate(ys, axis=1), states, ranges.found)


def feed(
    advance: Advance,
    x: Array,
    state: State,
    lengths: Array,
    follow: Callable[[Array], Array],
    tell: Tell = lambda done: None,
) -> Run:
    """Let the model lead itself: each next x is made of the y before.

    Args:
        x: (B, 1, ...) the first step.
        lengths: (B,) int64, longest first: the steps of each row; past them y is zero.
        follow: y (B, 1, ...) -> the next x.
    """
    xs: list[Array] = []
    ys: list[Array] = []
    batch, steps = len(x), int(lengths[0])
    over = np.zeros(batch, bool)
    ends = set(lengths.tolist())
    for step in range(steps):
        if step in ends:
            alive = int((lengths > step).sum())
            x, over = x[:alive], over[:alive]
            state = {name: value[:alive] for name, value in state.items()}
        y, state = advance(x, state)
        y, state = _end_rows(y, state, over)
        xs.append(x)
        ys.append(y)
        x = np.ascontiguousarray(follow(np.nan_to_num(y, nan=0.0) if over.any() else y))
        if step % TELL_EVERY == 0:
            tell(step)
    return Run(_joined(xs), _joined(ys), {}, {})


class _Ranges:
    """The least and greatest value of each state."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float]] = {}

    def see(self, state: State) -> None:
        for name, value in state.items():
            low, high = self.found.get(name, (np.inf, -np.inf))
            self.found[name] = (min(low, float(value.min())), max(high, float(value.max())))


def _end_rows(y: Array, state: State, over: Array) -> tuple[Array, State]:
    """y with NaN from each row's first step that is not finite on; `over` is brought up to date."""
    if not over.any() and np.isfinite(y).all():
        return y, state
    fine = np.isfinite(y).reshape(*y.shape[:2], -1).all(axis=2) & ~over[:, None]
    fine = np.logical_and.accumulate(fine, axis=1)
    y = y.copy()
    y[~fine] = np.nan
    over |= ~fine.all(axis=1)
    state = {name: value.copy() for name, value in state.items()}
    for value in state.values():
        value[over] = 0
    return y, state


def _joined(steps: list[Array]) -> Array:
    """(B, T, ...) of steps that have ever fewer rows; those that are over are zero."""
    joined = np.zeros((len(steps[0]), len(steps), *steps[0].shape[2:]), steps[0].dtype)
    for at, values in enumerate(steps):
        joined[: len(values), at] = values[:, 0]
    return joined
