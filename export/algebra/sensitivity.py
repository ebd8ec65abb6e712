"""How far y moves with each value of a layer, over the steps that follow: by gradients.

A small error in a gate is forgotten, or carried on in c for many steps, or no output looks at it.
The gradient of y with respect to what a layer computed, at every step of a window before it, says
which (backpropagation through time, Werbos 1990). Of a trained network few directions of the gates
count, and `int8_weights` keeps those exact.

The windows are of the example's first half, so that the rest can judge what was made of them.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from export.algebra.affine import Affine
from export.algebra.cells import Cell
from export.algebra.form import Root
from export.algebra.network import Network
from export.algebra.pointwise import FUNCTIONS
from export.algebra.torch_arithmetic import TorchArithmetic

Array = np.ndarray
Gradients = Mapping[str, Array]  # name of a map -> (m, n)
WARM_UP = 64  # steps from the zero state before a window
WINDOW = 64  # steps that y is traced back over
WINDOWS = 32
LEAST_STEPS = 4


def affine_maps(network: Network) -> Iterator[tuple[str, Affine]]:
    """Every affine map that a step computes, each by a name of its own."""
    for node in network.nodes:
        if isinstance(node, Cell):
            yield from ((f"{node.name}.{part}", affine) for part, affine in node.parts.items())
        else:
            yield from ((f"{node.name}.{k}", arg) for k, arg in enumerate(node.args))
    yield from ((f"state {port}", affine) for port, affine in network.free.items())
    yield "y", network.y


def find_sensitivities(network: Network, x: Array) -> dict[str, Array]:
    """The gradients of random sums of y's values at the ends of windows.

    Args:
        x: (N, T, ...) the example, in the model's units; of each row the first half is used.
    Returns:
        name of a map -> (m, n) float64, n the map's size: m windows and steps. Those of y
        itself are the unit vectors; there are none where it is wider than windows and steps.
        Empty where the example is too short.
    """
    steps = min(WARM_UP + WINDOW, x.shape[1] // 2)
    if steps < LEAST_STEPS:
        return {}
    windows = _windows(x, steps)
    rng = np.random.default_rng(0)
    probes = _Probes(len(windows))
    states = {
        port: torch.zeros(len(windows), size, dtype=torch.float64)
        for port, size in network.states.items()
    }
    with torch.no_grad():
        for step in range(steps // 2):
            _, states = _step(network, windows[:, step], states, probes)
    probes.watch = True
    for step in range(steps // 2, steps):
        y, states = _step(network, windows[:, step], states, probes)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], y.shape))
    (y * signs).sum().backward()  # type: ignore[no-untyped-call]
    own = {"y": np.eye(network.y.size)} if network.y.size <= WINDOW * WINDOWS else {}
    return probes.gradients() | own


def _windows(x: Array, steps: int) -> Tensor:
    """Evenly spaced pieces: (WINDOWS, steps, n)."""
    starts = np.linspace(0, x.shape[1] // 2 - steps, WINDOWS).astype(int)
    rows = np.arange(WINDOWS) % len(x)
    pieces = np.stack(
        [x[row, start : start + steps] for row, start in zip(rows, starts, strict=True)]
    )
    kind = np.int64 if x.dtype.kind == "i" else np.float64
    return torch.from_numpy(pieces.reshape(WINDOWS, steps, -1).astype(kind))


class _Probes:
    """The affine maps in float64; to each value, while `watch`, a zero is added to be moved."""

    def __init__(self, batch: int) -> None:
        self.watch = False
        self._batch = batch
        self._matrices: dict[tuple[str, str], Tensor] = {}
        self._probes: dict[str, list[Tensor]] = {}

    def affine(self, layer: str, affine: Affine, values: Mapping[str, Tensor]) -> Tensor:
        total = torch.from_numpy(affine.bias).expand(self._batch, -1)
        for source, matrix in affine.blocks.items():
            key = layer, source
            if key not in self._matrices:
                self._matrices[key] = torch.from_numpy(np.ascontiguousarray(matrix.T))
            total = total + values[source] @ self._matrices[key]
        if self.watch and layer != "y":
            probe = torch.zeros_like(total, requires_grad=True)
            self._probes.setdefault(layer, []).append(probe)
            total = total + probe
        return total

    def gradients(self) -> dict[str, Array]:
        found = {}
        for layer, probes in self._probes.items():
            grads = [p.grad for p in probes if p.grad is not None]
            if grads:
                stacked = torch.cat(grads).numpy()
                found[layer] = np.where(np.isfinite(stacked), stacked, 0.0)
        return found


def _step(
    network: Network, x: Tensor, states: Mapping[str, Tensor], probes: _Probes
) -> tuple[Tensor, dict[str, Tensor]]:
    """`Network.step` in torch."""
    values: dict[str, Tensor] = {"x": x, **states}
    pieces: dict[str, dict[int, Tensor]] = {port: {} for port in states}
    for node in network.nodes:
        if isinstance(node, Root):
            values[node.name] = _apply(node, values, probes)
            continue
        old = {k: states[s.port][:, s.start : s.stop] for k, s in node.slices.items()}
        for k, value in node.step(_Float64(values, probes), old).items():
            values[f"{node.name}.{k}"] = value
            pieces[node.slices[k].port][node.slices[k].start] = value
    new = {
        port: torch.cat([parts[start] for start in sorted(parts)], dim=1)
        for port, parts in pieces.items()
        if port not in network.free
    }
    new |= {p: probes.affine(f"state {p}", a, values) for p, a in network.free.items()}
    return probes.affine("y", network.y, values), new


def _apply(root: Root, values: Mapping[str, Tensor], probes: _Probes) -> Tensor:
    if root.table is not None:
        return torch.from_numpy(root.table)[values["x"]].flatten(1)
    arguments = [probes.affine(f"{root.name}.{k}", a, values) for k, a in enumerate(root.args)]
    return FUNCTIONS[root.fn].torch(*arguments, *root.constants)


class _Float64(TorchArithmetic):
    def __init__(self, values: Mapping[str, Tensor], probes: _Probes) -> None:
        self._values = values
        self._probes = probes

    def affine(self, cell: Cell, part: str, own: Mapping[str, Tensor]) -> Tensor:
        layer = f"{cell.name}.{part}"
        return self._probes.affine(layer, cell.parts[part], {**self._values, **own})
