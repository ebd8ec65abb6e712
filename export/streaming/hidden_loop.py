"""A module that hides its states in loops of its own, as a reference that shows them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from export.errors import CallError, CausalityError, ExportError
from export.reference import Reference, State, StateSpec
from export.streaming.cut import Cut
from export.streaming.pooling import WINDOWED

PREFIXES = 12  # of a module that gives its last step only, each a call on all before it
PROBE_BATCHES, PROBE_STEPS = (2, 3), 40  # more than most shifts reach back
PROBE_CUTS = (1, 2, 17)  # steps at which a chunk begins
PROBE_TOLERANCE = 1e-4  # relative, float32; the gate checks it over thousands of steps


class OtherCallError(CallError):
    """The module is not called in this way: it refuses, or gives something of another shape."""


class CutModule(Reference):
    """`forward(X) -> Y` or `-> y`, cut between its steps."""

    def __init__(self, module: nn.Module, x: Tensor, time_axis: int, gives_all: bool) -> None:
        """Cut it (see `Cut`) and compare it with the module by itself.

        Raises:
            CallError, CausalityError: it cannot be cut, or computes something else then.
        """
        self.module = module
        self.time_axis = time_axis
        self.gives_all = gives_all
        for batch in PROBE_BATCHES:
            self._check_call(x, batch)
        self._cut = Cut(module, x, time_axis, gives_all)
        check_chunks(self, x)

    @property
    def name(self) -> str:
        return type(self.module).__name__

    @property
    def mode(self) -> Literal["causal"]:
        return "causal"

    @property
    def states(self) -> Sequence[StateSpec]:
        return tuple(self._cut.specs)

    @property
    def axis_sizes(self) -> set[int]:
        tensors = (*self.module.parameters(), *self.module.buffers())
        shapes = (*(t.shape for t in tensors), *(s.shape for s in self.states))
        return {n for shape in shapes for n in shape}

    def describe(self) -> str:
        names = ", ".join(spec.name for spec in self.states)
        axes = ("(time, batch, ...)", "(batch, time, ...)")[self.time_axis]
        output = "Y" if self.gives_all else "y"
        return f"X -> {output}, with its state {names} lifted out; X is {axes}"

    def initial(self, batch: int) -> State:
        return {
            name: start.expand(batch, *start.shape).clone()
            for name, start in self._cut.starts.items()
        }

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        names = [spec.name for spec in self.states]
        states = [state[name] for name in names]
        ys = []
        for t in range(x.shape[1]):
            step = x[:, t : t + 1].movedim(1, self.time_axis).contiguous()
            y, *states = self._cut.graph(step, *states)
            ys.append(y.movedim(self.time_axis, 1)[:, 0] if self.gives_all else y)
        return torch.stack(ys, dim=1), dict(zip(names, states, strict=True))

    def whole_steps(self, steps: int) -> Sequence[int] | None:
        if self.gives_all:
            return None
        drawn = torch.randint(0, steps, (PREFIXES,), generator=torch.Generator().manual_seed(0))
        return sorted({0, min(1, steps - 1), steps - 1, *drawn.tolist()})

    def whole(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        if self.gives_all:
            return self._call(x).movedim(self.time_axis, 1)[:, list(steps)]
        return torch.stack([self._call(x[:, : t + 1]) for t in steps], dim=1)

    def what_looks_ahead(self) -> str:
        if self._cut.position:
            return (
                f"There, {self._cut.position} takes a constant that is another at each step (a "
                "positional encoding, a decay with age), and the step's index is no state"
                f"{WINDOWED}"
            )
        return "It looks ahead, or remembers something that its first steps do not show"

    def _call(self, x: Tensor) -> Tensor:
        try:
            y = self.module(x.movedim(1, self.time_axis).contiguous())
        except Exception as error:  # whatever the user's code raises
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OtherCallError(line[:200]) from error
        if not isinstance(y, Tensor):
            raise OtherCallError(f"the module returned {type(y).__name__}, expected a tensor")
        return y

    def _check_call(self, x: Tensor, batch: int) -> None:
        with torch.no_grad():
            y, other = (self._call(_probe(x, batch)[:, skip:]) for skip in (0, 1))
        if not self.gives_all and y.shape != other.shape:
            raise OtherCallError(f"y has shape {tuple(y.shape)}, and another for fewer steps")
        expected = (batch, PROBE_STEPS) if self.gives_all else (batch,)
        got = y.movedim(self.time_axis, 1).shape if self.gives_all and y.ndim > 1 else y.shape
        if tuple(got[: len(expected)]) != expected:
            raise OtherCallError(f"y has shape {tuple(y.shape)}, expected {expected} and features")


def check_chunks(reference: Reference, x: Tensor) -> None:
    """A few steps in chunks, against the module by itself.

    Raises:
        CausalityError: they differ.
    """
    probe = _probe(x, PROBE_BATCHES[1])
    steps = sorted({0, *PROBE_CUTS, PROBE_STEPS - 1})
    with torch.no_grad():
        whole = reference.whole(probe, steps)
        state, ys = reference.initial(len(probe)), []
        for start, stop in zip((0, *PROBE_CUTS), (*PROBE_CUTS, PROBE_STEPS), strict=True):
            y, state = reference.run(probe[:, start:stop], state)
            ys.append(y)
    error = (torch.cat(ys, dim=1)[:, steps] - whole).abs().max()
    if not error <= PROBE_TOLERANCE * max(1.0, float(whole.abs().max())):
        raise CausalityError(
            f"{reference.name} gives another y in chunks than over {PROBE_STEPS} steps at once: "
            f"off by {error:.1e}. {reference.what_looks_ahead()}"
        )


def find_cut(module: nn.Module, x: Tensor, notation: str | None = None) -> CutModule:
    """Cut a module that takes X alone, batch or time first, and gives Y or y.

    Args:
        module: in eval mode.
        x: (B, T, ...), a piece of the example.
        notation: `X -> Y` or `X -> y`; None: either.
    Raises:
        CallError, CausalityError: it could not be cut; with the reason of the likeliest way.
    """
    errors: list[ExportError] = []
    for gives_all in (True, False) if notation is None else (notation == "X -> Y",):
        for time_axis in (1, 0):
            try:
                return CutModule(module, x, time_axis, gives_all)
            except ExportError as error:
                errors.append(error)
    ahead = [e for e in errors if isinstance(e, CausalityError)]
    called = [e for e in errors if not isinstance(e, OtherCallError)]
    raise (ahead or called or errors)[0]


def _probe(x: Tensor, batch: int) -> Tensor:
    flat = x.reshape(-1, *x.shape[2:])
    index = torch.arange(batch * PROBE_STEPS) % flat.shape[0]
    return flat[index].reshape(batch, PROBE_STEPS, *x.shape[2:])
