"""A network as plain operators, on flat values: one step, written as it is and as a Scan.

Which of the products are int8 is the `Products` object's choice (see `rowwise`); here all is
float32 if it says nothing else.
"""

from collections.abc import Mapping

import numpy as np

from export.form import Affine, Root
from export.graph_builder import GraphBuilder, join_pieces, take_slice
from export.lowered import Graphs
from export.network import LstmCell, Network
from export.scan import Shape, Step, write_graphs
from service.manifest import Ports

Array = np.ndarray
OWN_H = "own h"  # the source name of a cell's h from before the step


class Products:
    """How affine maps are computed: in float32."""

    def affine(self, g: GraphBuilder, affine: Affine, values: Mapping[str, str]) -> str:
        """The affine map of flat values (B, n)."""
        return g.affine(affine, values)


def write_step_graphs(network: Network, ports: Ports, products: Products) -> Graphs:
    """The chunk graph and the step graph."""
    return write_graphs(_NetworkStep(network, products), ports)


class _NetworkStep(Step):
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
                arguments = [self._affine(arg, values) for arg in node.args]
                values[node.name] = self._g.pointwise(node, arguments)
                continue
            h, c = self._cell(node, values, states)
            values |= {f"{node.name}.h": h, f"{node.name}.c": c}
            pieces[node.h.port, node.h.start] = h
            pieces[node.c.port, node.c.start] = c
        free = self._network.free
        new = join_pieces(self._g, pieces, [port for port in states if port not in free])
        new |= {port: self._affine(affine, values) for port, affine in free.items()}
        return self._affine(self._network.y, values), new

    def _affine(self, affine: Affine, values: Mapping[str, str]) -> str:
        return self._products.affine(self._g, affine, values)

    def _cell(
        self, cell: LstmCell, values: Mapping[str, str], states: Mapping[str, str]
    ) -> tuple[str, str]:
        g = self._g
        sizes = self._network.states
        h, c = (take_slice(g, s, states[s.port], sizes[s.port]) for s in (cell.h, cell.c))
        blocks = {**cell.input.blocks, OWN_H: cell.recurrent}
        i, f, g_, o = np.split(np.arange(4 * cell.hidden_size), 4)
        order = np.concatenate([i, f, o, g_])  # the three sigmoids side by side
        gates = Affine({s: m[order] for s, m in blocks.items()}, cell.input.bias[order])
        z = self._products.affine(g, gates, {**values, OWN_H: h})
        size = cell.hidden_size
        z_sigmoid, z_tanh = g.node("Split", [z, g.ints(3 * size, size)], outputs=2, axis=1)
        sigmoids = g.one("Sigmoid", z_sigmoid)
        i_, f_, o_ = g.node("Split", [sigmoids, g.ints(size, size, size)], outputs=3, axis=1)
        candidate = g.one("Tanh", z_tanh)
        new_c = g.one("Add", g.one("Mul", f_, c), g.one("Mul", i_, candidate))
        return g.one("Mul", o_, g.one("Tanh", new_c)), new_c
