"""A network as plain operators, on flat values: one step, written as it is and as a Scan.

Which of the products are int8 is the `Products` object's choice (see `rowwise`); here all is
float32 if it says nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.algebra.affine import Affine
from export.algebra.cells import Activation, Arithmetic, Cell, runs_of
from export.algebra.form import Root
from export.algebra.network import Network
from export.graphs.graph_builder import GraphBuilder, join_pieces, take_slice
from export.graphs.scan import Shape, Step, write_graphs
from export.lowered import Graphs
from service.manifest import Ports

Array = np.ndarray


@dataclass(frozen=True)
class Block:
    """What a cell takes of one source: a matrix (n_out, n_in) float64."""

    source: str
    layer: str
    matrix: Array


class Products:
    """How affine maps are computed: in float32, the gates of a cell in one product."""

    by_gate = False  # whether each gate of a cell is a product of its own

    def affine(self, g: GraphBuilder, affine: Affine, values: Mapping[str, str], layer: str) -> str:
        """The affine map of flat values (.., n).

        `layer` names the products in it (see `precision`), a cell's with its own h aside.
        """
        return g.affine(affine, values)

    def pieces(
        self,
        g: GraphBuilder,
        affine: Affine,
        values: Mapping[str, str],
        layer: str,
        sizes: Sequence[int],
    ) -> Sequence[str]:
        """The affine map as pieces of these sizes."""
        return split_columns(g, self.affine(g, affine, values, layer), sizes)

    def cell_matrix(self, g: GraphBuilder, blocks: Sequence[Block], hint: str) -> str:
        """The blocks side by side, (1, n_out, all n_in), for an operator of the whole cell."""
        joined = np.concatenate([block.matrix for block in blocks], axis=1)
        return g.constant(joined[None].astype(np.float32), hint)


def split_columns(g: GraphBuilder, value: str, sizes: Sequence[int]) -> Sequence[str]:
    if len(sizes) == 1:
        return [value]
    return g.node("Split", [value, g.ints(*sizes)], outputs=len(sizes), axis=1)


def input_layer(cell: Cell) -> str:
    """The layer of what a cell takes of other sources than its own h."""
    return f"{cell.name}.input"


def recurrent_layer(cell: Cell) -> str:
    """The layer of what a cell takes of its own h."""
    return f"{cell.name}.recurrent"


def named_affines(network: Network) -> Iterator[tuple[str, Affine]]:
    """Every affine map that a step computes, with the layer that `Products` is told."""
    for node in network.nodes:
        if isinstance(node, Cell):
            yield from ((input_layer(node), affine) for affine in node.parts.values())
        elif node.fn != "embedding":
            yield from ((f"{node.name}.{k}", arg) for k, arg in enumerate(node.args))
    yield from ((f"state {port}", affine) for port, affine in network.free.items())
    yield "y", network.y


def write_step_graphs(network: Network, ports: Ports, products: Products) -> Graphs:
    """The chunk graph and the step graph."""
    return write_graphs(NetworkStep(network, products), ports)


class NetworkStep(Step):
    """One step on flat values: x (B, I), each state (B, n) -> y (B, O), each new state."""

    def __init__(self, network: Network, products: Products) -> None:
        self._network = network
        self._products = products

    @property
    def x_shape(self) -> Shape:
        return (self._network.x_size,)

    @property
    def y_shape(self) -> Shape:
        return (self._network.y.size,)

    @property
    def state_shapes(self) -> dict[str, Shape]:
        return {port: (size,) for port, size in self._network.states.items()}

    def write(
        self, g: GraphBuilder, x: str, states: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        return _Body(g, self._network, self._products).write(x, states)


class _Body:
    """The nodes of one step, as they are appended to one graph."""

    def __init__(self, g: GraphBuilder, network: Network, products: Products) -> None:
        self._g = g
        self._network = network
        self._products = products

    def write(self, x: str, states: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        values = {"x": x, **states}
        pieces: dict[tuple[str, int], str] = {}
        for node in self._network.nodes:
            if isinstance(node, Root) and node.fn == "embedding":
                values[node.name] = self._g.embedding(node, x, leading=1)
                continue
            if isinstance(node, Root):
                arguments = [
                    self._affine(arg, values, f"{node.name}.{k}") for k, arg in enumerate(node.args)
                ]
                values[node.name] = self._g.pointwise(node, arguments)
                continue
            sizes = self._network.states
            old = {
                k: take_slice(self._g, place, states[place.port], sizes[place.port])
                for k, place in node.slices.items()
            }
            arithmetic = _Operators(self._g, self._products, values)
            for k, value in node.step(arithmetic, old).items():
                values[f"{node.name}.{k}"] = value
                pieces[node.slices[k].port, node.slices[k].start] = value
        free = self._network.free
        new = join_pieces(self._g, pieces, [port for port in states if port not in free])
        new |= {p: self._affine(affine, values, f"state {p}") for p, affine in free.items()}
        return self._affine(self._network.y, values, "y"), new

    def _affine(self, affine: Affine, values: Mapping[str, str], layer: str) -> str:
        return self._products.affine(self._g, affine, values, layer)


class _Operators(Arithmetic[str]):
    """A cell's equations as ONNX operators; values are their names."""

    def __init__(self, g: GraphBuilder, products: Products, values: Mapping[str, str]) -> None:
        self._g = g
        self._products = products
        self._values = values

    def affine(self, cell: Cell, part: str, own: Mapping[str, str]) -> str:
        values = {**self._values, **own}
        return self._products.affine(self._g, cell.parts[part], values, input_layer(cell))

    def split(self, value: str, sizes: Sequence[int]) -> Sequence[str]:
        return split_columns(self._g, value, sizes)

    def gates(
        self,
        cell: Cell,
        part: str,
        own: Mapping[str, str],
        activations: Sequence[Activation],
    ) -> list[str]:
        runs = runs_of(activations)
        if self._products.by_gate:
            runs = [(activation, 1) for activation in activations]
        sizes = [count * cell.hidden_size for _, count in runs]
        values = {**self._values, **own}
        pieces = self._products.pieces(self._g, cell.parts[part], values, input_layer(cell), sizes)
        return self.activate_runs(runs, pieces, cell)

    def apply(self, function: str, *arguments: str, constants: Sequence[float] = ()) -> str:
        return self._g.apply(function, arguments, constants)

    def add(self, a: str, b: str) -> str:
        return self._g.one("Add", a, b)

    def subtract(self, a: str, b: str) -> str:
        return self._g.one("Sub", a, b)

    def weigh(self, value: str, weights: Array) -> str:
        return self._g.one("Mul", value, self._g.constant(weights.astype(np.float32), "weights"))
