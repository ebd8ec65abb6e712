"""What int8 does to each gate: the error of its pre-activation, on values that the example brings.

Each cell is given what it is given in float, so that its error is its own and not that of the
layers below. Its products are those of the variant: written by the same code and run by the same
engine; rowwise for all rows together, the stock quantization one row a call, as it is served.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from export.algebra.affine import Affine
from export.algebra.cells import Activation, Cell
from export.algebra.network import Float64, Network
from export.errors import NothingQuantizedError
from export.graphs.graph_builder import GraphBuilder
from export.graphs.rowwise import rowwise_products
from export.graphs.step_graph import Products, input_layer
from export.graphs.stock import write_stock_int8
from export.precision import ALL_ROWWISE, Plan
from service.layout import State

Array = np.ndarray
STEPS = 16  # of each piece: enough for a mean, and the stock products run row by row
ROWWISE, STOCK = "onnx-int8-rowwise", "onnx-int8"

# kind of cell -> the gates of its joint product, in their order there; the one that is alone
GATES = {"lstm": ("ifog", ""), "gru": ("zr", "n"), "rnn": ("", "h")}

Product = Callable[[Affine, Mapping[str, Array], str], Array]  # of a layer


@dataclass(frozen=True)
class GateError:
    """|z of the variant - z in float| of one gate, over rows and units."""

    cell: str
    gate: str  # i, f, g, o of an LSTM; z, r, n of a GRU; h of a plain RNN
    variant: str
    mean: float  # root of the mean square
    greatest: float
    spread: float  # the standard deviation of z itself


def measure_gates(
    network: Network,
    x: Array,
    state: State,
    plan: Plan = ALL_ROWWISE,
    gradients: Mapping[str, Array] = MappingProxyType({}),
) -> list[GateError]:
    """The error of every gate of every cell.

    Args:
        x: (N, T, ...) pieces of real input, in the model's units.
        state: name -> (N, ...), the state before each of them.
        plan, gradients: of the rowwise variant.
    """
    values, old = _seen(network, x, state)
    ways: dict[str, Product] = {ROWWISE: _Rowwise(network, plan, gradients), STOCK: _stock}
    found = []
    for cell in network.cells:
        exact = _pre_activations(cell, values, old, None)
        for variant, product in ways.items():
            quantized = _pre_activations(cell, values, old, product)
            for gate, z in exact.items():
                error = quantized[gate] - z
                found.append(
                    GateError(
                        cell.name,
                        gate,
                        variant,
                        float(np.sqrt((error**2).mean())),
                        float(np.abs(error).max()),
                        float(z.std()),
                    )
                )
    return found


def _seen(network: Network, x: Array, state: State) -> tuple[dict[str, Array], dict[str, Array]]:
    """What every source held in each step of each piece, and the states before: (N * T, n)."""
    now = {n: v.reshape(len(v), -1).astype(np.float64) for n, v in state.items()}
    values: list[dict[str, Array]] = []
    states: list[dict[str, Array]] = []
    for t in range(x.shape[1]):
        given = x[:, t].reshape(len(x), -1)
        given = given if given.dtype.kind == "i" else given.astype(np.float64)
        values.append(network.values(given, now))
        states.append(now)
        _, now = network.step(given, now)
    return _stack(values), _stack(states)


def _stack(steps: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}


def _pre_activations(
    cell: Cell, values: Mapping[str, Array], state: Mapping[str, Array], product: Product | None
) -> dict[str, Array]:
    arithmetic = _Recorder(values, cell, product)
    cell.step(arithmetic, cell.old(state))
    return arithmetic.seen


class _Recorder(Float64):
    """float64, its affine maps by `product` if there is one; keeps each gate's pre-activation.

    Of a gate with a peephole that is without the peephole's part, which is in float everywhere.
    """

    def __init__(self, values: Mapping[str, Array], cell: Cell, product: Product | None) -> None:
        super().__init__(values)
        self._product = product
        self._joined, self._alone = GATES[cell.kind]
        self.seen: dict[str, Array] = {}

    def affine(self, cell: Cell, part: str, own: Mapping[str, Array]) -> Array:
        if self._product is None:
            return super().affine(cell, part, own)
        return self._product(cell.parts[part], {**self._values, **own}, input_layer(cell))

    def gates(
        self, cell: Cell, part: str, own: Mapping[str, Array], activations: Sequence[Activation]
    ) -> list[Array]:
        pieces = np.split(self.affine(cell, part, own), len(activations), axis=1)
        self.seen |= zip(self._joined, pieces, strict=True)
        return [
            super(_Recorder, self).activate(f, z) for f, z in zip(activations, pieces, strict=True)
        ]

    def activate(self, activation: Activation, z: Array) -> Array:
        if self._alone:
            self.seen[self._alone] = z
        return super().activate(activation, z)


class _Rowwise:
    def __init__(self, network: Network, plan: Plan, gradients: Mapping[str, Array]) -> None:
        self._products, _ = rowwise_products(network, plan, gradients)

    def __call__(self, affine: Affine, values: Mapping[str, Array], layer: str) -> Array:
        return _run(_graph(self._products, affine, values, layer), affine, values)


def _stock(affine: Affine, values: Mapping[str, Array], layer: str) -> Array:
    graph = _graph(Products(), affine, values, layer)
    with TemporaryDirectory() as folder:
        target = Path(folder) / "product.onnx"
        try:
            write_stock_int8(graph, target)
        except NothingQuantizedError:
            return _run(graph, affine, values)
        return _run(onnx.load(target), affine, values, row_by_row=True)


def _graph(
    products: Products, affine: Affine, values: Mapping[str, Array], layer: str
) -> onnx.ModelProto:
    """The affine map alone: its sources (N, n) -> z."""
    g = GraphBuilder()
    z = products.affine(g, affine, {source: source for source in affine.blocks}, layer)
    g.name(z, "z")
    float32 = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(source, float32, ["B", values[source].shape[1]])
        for source in affine.blocks
    ]
    return g.model(inputs, [helper.make_tensor_value_info("z", float32, ["B", affine.size])])


def _run(
    graph: onnx.ModelProto,
    affine: Affine,
    values: Mapping[str, Array],
    row_by_row: bool = False,
) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {source: np.asarray(values[source], np.float32) for source in affine.blocks}
    if not row_by_row:
        return np.asarray(session.run(["z"], feed)[0], np.float64)
    count = len(next(iter(feed.values())))
    rows = [
        session.run(["z"], {source: value[k : k + 1] for source, value in feed.items()})[0]
        for k in range(count)
    ]
    return np.concatenate(rows).astype(np.float64)
