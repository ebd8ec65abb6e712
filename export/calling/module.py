"""A torch module as a reference, called as a notation says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from export.calling.binding import fill, match
from export.calling.call import COUNTER, LENGTHS, OUTPUTS, Call
from export.calling.extras import Form, cut_columns, extra_values
from export.calling.kept import Kept
from export.calling.lift import Lifted
from export.calling.shapes import Outside
from export.reference import Reference, State, StateSpec

PREFIXES = 12  # of a module that gives its last step only, each a call on all before it


@dataclass(frozen=True)
class Layout:
    """How x and y lie outside, besides the axis of time in X."""

    y_time: int | None = None  # of Y; None: as in X
    is_y_flat: bool = False  # Y has batch and time on one axis, in the order of X
    y_shape: tuple[int, ...] | None = None  # of one row's y at one step; None: not known yet
    is_batch_last: bool = False  # x and y of a step are (..., B)
    is_unbatched: bool = False  # x has no axis of the batch
    is_row: bool = False  # one row a call: its states have no axis of the batch
    doubles: bool = False  # a batch of one breaks the module, so its row is given twice
    forms: Mapping[str, Form] = field(default_factory=dict)  # of further inputs


class CalledModule(Reference):
    """A module that was found to work when called like `call`."""

    def __init__(
        self,
        module: nn.Module,
        call: Call,
        time_axis: int,
        outside: tuple[Outside, ...],
        *,
        layout: Layout | None = None,
        kept: Kept | None = None,
        kept_outside: tuple[Outside, ...] = (),
        start: State | None = None,
    ) -> None:
        """Args:
        time_axis: of X outside, 0 or 1; 1 where there is none.
        outside: the states that are given and returned, in the order of the call.
        kept: what the module keeps on itself, and `kept_outside` how that lies.
        start: name -> (1, ...), of the states that do not start from zeros.
        """
        self.module = module
        self.call = call
        self.time_axis = time_axis
        self.layout = layout or Layout()
        self.kept = kept or Kept(module)
        self.start = start or {}
        self.outside = outside
        self.kept_outside = kept_outside

    @property
    def name(self) -> str:
        return type(self._innermost()).__name__

    @property
    def mode(self) -> Literal["causal"]:
        return "causal"

    @property
    def states(self) -> tuple[StateSpec, ...]:
        counter = (StateSpec(COUNTER, (1,)),) if COUNTER in self.call.made else ()
        return (*(s.spec for s in (*self.outside, *self.kept_outside)), *counter)

    @property
    def axis_sizes(self) -> set[int]:
        tensors = {n for value in self.module.state_dict().values() for n in value.shape}
        return tensors | {n for spec in self.states for n in spec.shape}

    def describe(self) -> str:
        axes = ("; X is (time, batch, ...)", "; X is (batch, time, ...)")[self.time_axis]
        axes = "; X is (time, ...), one row at a time" if self.layout.is_unbatched else axes
        parts = [self.call.text + (axes if self.call.is_sequence else "")]
        if self.layout.is_batch_last:
            parts.append("the batch is the last axis")
        if self.kept_outside:
            kept = ", ".join(s.spec.name for s in self.kept_outside)
            parts.append(f"the module keeps {kept} on itself")
            if self.kept.begin:
                parts.append(f"{self.kept.begin.name}() begins a sequence")
        parts += [f"{name} is given as {form}" for name, form in self.layout.forms.items()]
        if LENGTHS in self.call.made:
            parts.append("lengths are those of the whole chunk")
        if self.start:
            parts.append(f"{', '.join(self.start)} start from the module's own values")
        if self.call.dropped:
            parts.append(f"{', '.join(self.call.dropped)} is dropped")
        if self.layout.doubles:
            parts.append("a batch of one breaks it: such a row is given twice")
        return "; ".join(parts)

    def initial(self, batch: int) -> State:
        return {
            s.name: self.start[s.name].repeat(batch, *[1] * len(s.shape))
            if s.name in self.start
            else torch.zeros(batch, *s.shape)
            for s in self.states
        }

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.call.is_sequence and not self.call.is_last_only:
            return self.step(x, state)
        ys = []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t : t + 1], state)
            ys.append(y)
        return torch.stack(ys, dim=1), state

    def whole_steps(self, steps: int) -> Sequence[int] | None:
        if not self.call.is_last_only:
            return None
        drawn = torch.randint(0, steps, (PREFIXES,), generator=torch.Generator().manual_seed(0))
        return sorted({0, min(1, steps - 1), steps - 1, *drawn.tolist()})

    def whole(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """The whole sequence in one call where the module takes one; for an output of the last
        step alone, one call for each of the steps, on all that precedes it. The module starts by
        itself where it can, and carries by itself what it keeps on itself.
        """
        if self.call.is_last_only:
            return torch.stack([self.answer(x[:, : t + 1])[0] for t in steps], dim=1)
        return self.answer(x)[0][:, list(steps)]

    def answer(self, x: Tensor) -> tuple[Tensor, State]:
        """What the module gives by itself, from its own start, and its states after it.

        Args:
            x: (B, T, ...).
        Returns:
            y (B, T, ...), or (B, ...) of the last step alone.
        """
        state = self._own_start(x.shape[0])
        with self.kept.fresh(self._rows(x), self.give_x(self._doubled(x))):
            if self.call.is_sequence:
                return self.step(x, state)
            ys = []
            for t in range(x.shape[1]):
                y, new = self.step(x[:, t : t + 1], state)
                state = {name: new[name] for name in new if name not in self.kept.names}
                ys.append(y)
        return torch.stack(ys, dim=1), new

    def what_looks_ahead(self) -> str:
        module = self._innermost()
        names = [n for n, m in module.named_modules() if getattr(m, "bidirectional", False)]
        both = [f"`{name or 'the module'}`" for name in names]
        if both:
            return f"{' and '.join(both)} is bidirectional: it looks ahead"
        return "It looks ahead, or keeps state that it does not return"

    def _innermost(self) -> nn.Module:
        """The user's own module, without what was put around it."""
        module = self.module
        while isinstance(module, Lifted | Plain):
            module = module.module
        return module

    def raw(self, x: Tensor, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One call, as it comes back: the names of the right side, and what is kept.

        Args:
            x: (B, T, ...), T = 1 for a module that takes one step.
            state: what is not there, the module starts, or holds, itself.
        """
        main, columns = cut_columns(self.call, x)
        given = {s.spec.name: s.give(state[s.spec.name]) for s in self._given(state)}
        values: dict[str, Tensor | None] = dict.fromkeys(self.call.states) | given
        values |= dict.fromkeys(("x", "X"), self._give_main(main))
        counter = state.get(COUNTER, torch.zeros(x.shape[0], 1))
        values |= extra_values(self.call, self.layout.forms, columns, main, counter, self.time_axis)
        positional, keywords = fill(self.call, values)
        if self.kept.slots and all(name in state for name in self.kept.names):
            held = {s.spec.name: s.give(state[s.spec.name]) for s in self.kept_outside}
            with self.kept.held(held):
                return match(self.call, self.module(*positional, **keywords)), self.kept.read()
        return match(self.call, self.module(*positional, **keywords)), self.kept.read()

    def _given(self, state: State) -> list[Outside]:
        return [s for s in self.outside if s.spec.name in state]

    def _own_start(self, batch: int) -> State:
        own = {*self.call.optional, *self.kept.names}
        return {name: value for name, value in self.initial(batch).items() if name not in own}

    def _rows(self, x: Tensor) -> int:
        return 2 if self.layout.doubles and x.shape[0] == 1 else x.shape[0]

    def _doubled(self, value: Tensor) -> Tensor:
        if self.layout.doubles and value.shape[0] == 1:
            return value.repeat(2, *[1] * (value.ndim - 1))
        return value

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One call: x (B, T, ...) -> y (B, T, ...), or (B, ...) of one step, and the new state."""
        rows, steps = x.shape[0], x.shape[1]
        given = {name: self._doubled(value) for name, value in state.items()}
        returned, kept = self.raw(self._doubled(x), given)
        new = {s.spec.name: self._take(s, returned, self._rows(x)) for s in self.outside}
        new |= {s.spec.name: self._take(s, kept, self._rows(x)) for s in self.kept_outside}
        shown = self.call.output
        if shown in new and shown not in OUTPUTS:  # a state, which lies as states do
            y = new[shown]
        else:
            y = self._take_y(returned[shown], self._rows(x), steps)
        if COUNTER in self.call.made:
            new[COUNTER] = given[COUNTER] + steps
        return y[:rows], {name: value[:rows] for name, value in new.items()}

    def _take(self, state: Outside, values: Mapping[str, Tensor], rows: int) -> Tensor:
        value, shape = values[state.spec.name], list(state.spec.shape)
        if state.batch_axis is not None:
            shape.insert(state.batch_axis, rows)
        return state.take(_with_ones(value, tuple(shape)))

    def give_x(self, x: Tensor) -> Tensor:
        return self._give_main(cut_columns(self.call, x)[0])

    def _give_main(self, main: Tensor) -> Tensor:
        x = main if self.call.is_sequence else main[:, 0]
        if self.layout.is_unbatched:
            return x.squeeze(0)
        if self.layout.is_batch_last:
            return x.movedim(0, -1)
        return x.movedim(1, self.time_axis) if self.call.is_sequence else x

    def _take_y(self, y: Tensor, rows: int, steps: int) -> Tensor:
        """(B, T, ...) of a sequence, else (B, ...)."""
        axes = (rows, steps) if self.call.output == "Y" else (rows,)
        axis = self.time_axis if self.layout.y_time is None else self.layout.y_time
        rest = self.layout.y_shape
        if rest is None:
            rest = tuple(y.shape[len(axes) :])
        if self.layout.is_y_flat and axis == 0:
            return y.reshape(steps, rows, *rest).movedim(0, 1)
        if self.layout.is_row or self.layout.is_y_flat:
            return y.reshape(*axes, *rest)
        if self.layout.is_batch_last:
            return _with_ones(y, (*rest, rows)).movedim(-1, 0)
        if len(axes) == 2 and axis == 0:
            return _with_ones(y, (steps, rows, *rest)).movedim(0, 1)
        return _with_ones(y, (*axes, *rest))


class Plain(nn.Module):
    """`forward(x) -> y`, batch first, of a module without states that is called otherwise."""

    def __init__(self, called: CalledModule) -> None:
        super().__init__()
        self.module = called.module
        self._called = [called]  # in a list, so that it is no part of this module

    def forward(self, x: Tensor) -> Tensor:
        return self._called[0].step(x, {})[0]


def _with_ones(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`value` in `shape`, where it lacks axes of size one only: somebody squeezed them away."""
    if tuple(value.shape) != shape and [n for n in value.shape if n != 1] == [
        n for n in shape if n != 1
    ]:
        return value.reshape(shape)
    return value
