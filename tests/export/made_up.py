"""References and variants made up for the gate: a step each, whose answers are known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from export.cases import Cases
from export.parity import Gate
from export.reference import State, StateSpec
from export.running import Array
from service.layout import State as Arrays
from service.manifest import Port, Ports, StatePort
from service.pipeline import Pipeline

# x (B, I), h (B, H), the index of the step -> y (B, O), h'. The index is a state, too: it goes on.
Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class MadeUp:
    """A reference, and, by its method `variant`, a runtime: both advance by a step function."""

    step: Step
    hidden: int = 1
    ids: bool = False
    mode: Literal["causal", "windowed"] = "causal"
    window: int | None = None
    name: str = "MadeUp"
    axis_sizes: set[int] = field(default_factory=set)

    @property
    def states(self) -> Sequence[StateSpec]:
        return [StateSpec("h", (self.hidden,)), StateSpec("t", (1,))]

    def describe(self) -> str:
        return "x, h -> y, h"

    def initial(self, batch: int) -> State:
        return {"h": torch.zeros(batch, self.hidden), "t": torch.zeros(batch, 1)}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, t = state["h"], state["t"]
        ys = []
        for k in range(x.shape[1]):
            y, h = self.step(x[:, k], h, t)
            t = t + 1
            ys.append(y)
        return torch.stack(ys, dim=1), {"h": h, "t": t}

    def whole_steps(self, steps: int) -> None:
        return None

    def whole(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        return self.run(x, self.initial(len(x)))[0]

    def what_looks_ahead(self) -> str:
        return ""


class MadeUpRuntime:
    """What the gate asks of a `Runtime`."""

    def __init__(self, step: Step, variant: str = "onnx-int8") -> None:
        self.variant = variant
        self._model = MadeUp(step)

    def run(self, x: Array, state: Arrays) -> tuple[Array, Arrays]:
        tensors = {name: torch.from_numpy(value) for name, value in state.items()}
        with torch.no_grad():
            y, new = self._model.run(torch.from_numpy(x), tensors)
        return y.numpy(), {name: value.numpy() for name, value in new.items()}


def cases_of(
    model: MadeUp,
    x: Array,
    outputs: int = 1,
    steps: int = 2000,
    pipeline: Pipeline | None = None,
) -> Cases:
    """x (T, I) float32 or (T,) ids."""
    is_ids = x.dtype.kind == "i"
    tail = [] if is_ids else [x.shape[1]]
    ports = Ports(
        x=Port(dtype="int64" if is_ids else "float32", shape=["B", "T", *tail]),
        y=Port(dtype="float32", shape=["B", "T", outputs]),
        states=[
            StatePort(
                name=spec.name,
                input=f"{spec.name}_0",
                output=f"{spec.name}_n",
                dtype="float32",
                shape=["B", *spec.shape],
            )
            for spec in model.states
        ],
    )
    return Cases(model, x[None], ports, pipeline or Pipeline(), steps)


def gate_of(cases: Cases, target: Array | None = None, worsening: float | None = None) -> Gate:
    return Gate(cases, target, worsening)


def noise(steps: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((steps, 1)).astype(np.float32)
