"""An ONNX file as a reference: the original itself, run under ONNX Runtime.

Rules
- `whole` runs the file as it is, in its own batch and number of steps. `run` does too, or, where
  the file is fixed at several steps, in a copy of one.
- A file that is fixed at a batch runs so many rows at a time, the last of them repeated.
- At the border floats are float32 and integers int64; inside, the file's own types.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from export.onnx_in.ports import Binding, BoundState
from export.onnx_in.source import Array, FileValue, OnnxModel
from export.reference import Reference, State, StateSpec

ArrayState = dict[str, Array]
PREFIXES = 12  # of a file that gives its last step only, each a call on all before it
DYNAMIC = ("DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul")
LOOKING_AHEAD = ("bidirectional", "reverse")


@dataclass(frozen=True)
class Axes:
    """Where batch and time are in a value of the file; None: it has no such axis."""

    batch: int | None
    time: int | None

    def to_file(self, value: Array) -> Array:
        """(B, T, ...) as the file takes it; an axis that it has not is of size 1."""
        kept = [(source, at) for source, at in ((0, self.batch), (1, self.time)) if at is not None]
        gone = tuple(axis for axis, at in ((0, self.batch), (1, self.time)) if at is None)
        value = value.squeeze(gone)
        return np.moveaxis(value, range(len(kept)), [at for _, at in kept])

    def from_file(self, value: Array) -> Array:
        """What the file gave as (B, T, ...)."""
        kept = [at for at in (self.batch, self.time) if at is not None]
        value = np.moveaxis(value, kept, range(len(kept)))
        gone = tuple(axis for axis, at in ((0, self.batch), (1, self.time)) if at is None)
        return np.expand_dims(value, gone)


@dataclass(frozen=True)
class FileState:
    """A state of the file: its names, its shape without the batch, where its batch is."""

    bound: BoundState
    spec: StateSpec
    axes: Axes
    dtype: str

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("float")


@dataclass(frozen=True)
class FileCall:
    """How the file is run."""

    model: OnnxModel
    single: OnnxModel  # takes one step: a copy where the file is fixed at more, else the file
    binding: Binding
    x: Axes
    y: Axes
    states: tuple[FileState, ...]
    rows: int | None  # in one call; None: any number
    steps: int | None  # in one call, as the file stands; None: any number
    one_by_one: bool  # though it takes any number: y is the last step's only

    @property
    def runs_one_step(self) -> bool:
        """`run` takes single steps: more are not to be had, or give one y."""
        return self.steps is not None or self.one_by_one

    def call(self, x: Array, state: ArrayState, as_it_is: bool) -> tuple[Array, ArrayState]:
        """One call; x (B, T, ...), states (B, ...).

        Args:
            as_it_is: the file itself, else the one that takes single steps.
        """
        ins = {value.name: value for value in self.model.inputs}
        feeds = {
            self.binding.x: self.x.to_file(x).astype(ins[self.binding.x].dtype),
            **{n: _constant(ins[n], v, len(x)) for n, v in self.binding.constants},
        }
        for s in self.states:
            feeds[s.bound.input] = s.axes.to_file(state[s.spec.name][:, None]).astype(s.dtype)
        names = [self.binding.y, *(s.bound.output for s in self.states)]
        feeds = {name: np.asarray(value, order="C") for name, value in feeds.items()}
        y, *new = (self.model if as_it_is else self.single).run(feeds, names)
        states = zip(self.states, new, strict=True)
        return y, {s.spec.name: s.axes.from_file(value)[:, 0] for s, value in states}

    def run(self, x: Array, state: ArrayState, as_it_is: bool = False) -> tuple[Array, ArrayState]:
        """(B, T, ...) in groups of rows; `as_it_is` in the file's own number of steps."""
        groups = []
        size = self.rows or len(x)
        for start in range(0, len(x), size):
            index = np.minimum(np.arange(start, start + size), len(x) - 1)
            rows = {name: value[index] for name, value in state.items()}
            y, new = self._run_group(x[index], rows, as_it_is)
            count = min(size, len(x) - start)
            groups.append((y[:count], {name: value[:count] for name, value in new.items()}))
        ys, states = zip(*groups, strict=True)
        return np.concatenate(ys), {n: np.concatenate([s[n] for s in states]) for n in state}

    def _run_group(self, x: Array, state: ArrayState, as_it_is: bool) -> tuple[Array, ArrayState]:
        ys, at = [], 0
        size = (self.steps or 1 if as_it_is else 1) if self.runs_one_step else x.shape[1]
        while at < x.shape[1]:
            fits = at + size <= x.shape[1]
            stop = at + (size if fits else 1)
            y, state = self.call(x[:, at:stop], state, as_it_is and fits)
            ys.append(self.y.from_file(y))
            at = stop
        return np.concatenate(ys, axis=1), state


class OnnxReference(Reference):
    """An ONNX file behind the inner interface."""

    def __init__(self, call: FileCall) -> None:
        self.call = call

    @property
    def name(self) -> str:
        return self.call.model.name

    @property
    def mode(self) -> Literal["causal"]:
        return "causal"

    @property
    def states(self) -> Sequence[StateSpec]:
        return [s.spec for s in self.call.states]

    @property
    def axis_sizes(self) -> set[int]:
        weights = {n for tensor in self.call.model.proto.graph.initializer for n in tensor.dims}
        return weights | {n for spec in self.states for n in spec.shape}

    def describe(self) -> str:
        call = self.call
        where = [where_axes("x", call.x), where_axes("y", call.y)]
        where += [where_axes(s.spec.name, s.axes) for s in call.states]
        fixed = [f"{n} rows" for n in [call.rows] if n] + [f"{n} steps" for n in [call.steps] if n]
        said = f"; fixed at {' and '.join(fixed)}" if fixed else ""
        return f"{call.binding.notation(call.model)}; batch and time axes: {', '.join(where)}{said}"

    def initial(self, batch: int) -> State:
        return {
            s.spec.name: torch.zeros(
                batch, *s.spec.shape, dtype=torch.float32 if s.is_float else torch.int64
            )
            for s in self.call.states
        }

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        arrays = {name: value.numpy() for name, value in state.items()}
        y, new = self.call.run(x.numpy(), arrays)
        return _tensor(y, np.float32), {
            s.spec.name: _tensor(new[s.spec.name], np.float32 if s.is_float else np.int64)
            for s in self.call.states
        }

    def whole_steps(self, steps: int) -> Sequence[int] | None:
        call = self.call
        if call.x.time is None or call.y.time is not None or call.steps == 1:
            return None
        if call.steps:  # y of the last step of so many
            return range(call.steps - 1, steps, call.steps)
        drawn = np.random.default_rng(0).integers(0, steps, PREFIXES)
        return sorted({0, min(1, steps - 1), steps - 1, *(int(n) for n in drawn)})

    def whole(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """The file on the whole sequence, or as many steps at a time as it is fixed at; for a y of
        the last step alone, one call for each of the steps, on all that precedes it.
        """
        start = {name: value.numpy() for name, value in self.initial(len(x)).items()}
        values = x.numpy()
        if self.call.one_by_one:
            at_once = replace(self.call, one_by_one=False)
            ys = [at_once.run(values[:, : t + 1], start)[0] for t in steps]
            return _tensor(np.concatenate(ys, axis=1), np.float32)
        if self.whole_steps(x.shape[1]) is not None:
            y, _ = self.call.run(values[:, : steps[-1] + 1], start, as_it_is=True)
            return _tensor(y, np.float32)
        y, _ = self.call.run(values, start, as_it_is=True)
        return _tensor(y[:, list(steps)], np.float32)

    def what_looks_ahead(self) -> str:
        nodes = [
            f"`{node.name or node.output[0]}` ({node.op_type})"
            for node in self.call.model.proto.graph.node
            for attribute in node.attribute
            if attribute.name == "direction" and attribute.s.decode() in LOOKING_AHEAD
        ]
        if nodes:
            return f"{' and '.join(nodes)} is bidirectional or reversed: it looks ahead"
        quantized = {n.op_type for n in self.call.model.proto.graph.node} & set(DYNAMIC)
        if quantized:
            return (
                f"The file is quantized already ({', '.join(sorted(quantized))}), with scales that "
                "look at the whole chunk; give the float file: Carousel makes the int8 variants"
            )
        return (
            "The file looks ahead, keeps state that is no output of it, or --call takes one state "
            "for another"
        )


def _constant(value: FileValue, number: float, batch: int) -> Array:
    """A constant as the file takes it; a free axis of it is the batch's."""
    shape = [dim if isinstance(dim, int) else batch for dim in value.shape]
    return np.full(shape, number, np.dtype(value.dtype))


def _tensor(value: Array, dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value, dtype))


def where_axes(name: str, axes: Axes) -> str:
    return f"{name} ({axes.batch if axes.batch is not None else '-'}" + (
        f", {axes.time})" if axes.time is not None else ")"
    )
