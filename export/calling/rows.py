"""A module that takes one row alone, run for many: its traced step under `torch.func.vmap`.

Some modules have no axis of the batch, or work with a batch of one only. One step of one row is
traced to plain operations, and these are mapped over the batch; the module by itself is called row
by row, and the gate holds the one against the other.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from export.algebra.trace import make_graph
from export.calling.call import Call
from export.calling.module import CalledModule
from export.errors import CallError
from export.reference import Reference, State, StateSpec


class RowByRow(Reference):
    """Many rows of a module that takes one."""

    def __init__(self, row: CalledModule, x: Tensor) -> None:
        """Args:
        x: (1, T, ...), an input.

        Raises:
            CallError: its step cannot be mapped over a batch.
        """
        self._row = row
        self._step = _mapped_step(row, x[:1, :1])
        state = self.initial(2)
        both = torch.cat([x[:1, :2], x[:1, :2].flip(1)])
        try:
            y, after = self.run(both, state)
            alone, alone_after = row.run(both[1:], row.initial(1))
        except Exception as error:  # whatever its operations raise
            raise CallError(f"it takes one row alone, and cannot be mapped: {error}") from error
        pairs = [(y[1:], alone), *((after[name][1:], alone_after[name]) for name in after)]
        if not all(torch.allclose(a, b, atol=1e-5, equal_nan=True) for a, b in pairs):
            raise CallError("it takes one row alone, and gives another answer when mapped over two")

    @property
    def call(self) -> Call:
        return self._row.call

    @property
    def module(self) -> torch.nn.Module:
        return self._row.module

    @property
    def name(self) -> str:
        return self._row.name

    @property
    def mode(self) -> Literal["causal"]:
        return "causal"

    @property
    def states(self) -> Sequence[StateSpec]:
        return self._row.states

    @property
    def axis_sizes(self) -> set[int]:
        return self._row.axis_sizes

    def describe(self) -> str:
        return f"{self._row.describe()}; it takes one row, and is mapped over the batch"

    def initial(self, batch: int) -> State:
        return self._row.initial(batch)

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        names = [spec.name for spec in self.states]
        values = [state[name] for name in names]
        ys = []
        for t in range(x.shape[1]):
            y, *values = self._step(x[:, t : t + 1], *values)
            ys.append(y)
        return torch.cat(ys, dim=1), dict(zip(names, values, strict=True))

    def whole_steps(self, steps: int) -> Sequence[int] | None:
        return self._row.whole_steps(steps)

    def whole(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        return torch.cat([self._row.whole(row[None], steps) for row in x])

    def what_looks_ahead(self) -> str:
        return self._row.what_looks_ahead()


def _mapped_step(row: CalledModule, x: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """(x (B, 1, ...), *states (B, ...)) -> (y (B, 1, ...), *states')."""
    names = [spec.name for spec in row.states]

    def step(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        y, state = row.run(x, dict(zip(names, states, strict=True)))
        return (y, *(state[name] for name in names))

    try:
        graph = make_graph(step, (x, *row.initial(1).values()))
    except Exception as error:  # whatever the user's code raises
        raise CallError(f"it takes one row alone, and cannot be traced: {error}") from error

    def one(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        y, *after = graph(x[None], *(value[None] for value in states))
        return (y[0], *(value[0] for value in after))

    mapped: Callable[..., tuple[Tensor, ...]] = torch.func.vmap(one)
    return mapped
