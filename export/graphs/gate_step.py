"""The float step of LSTM cells as plain operators that give the bits of ONNX Runtime's LSTM node.

The node takes a whole chunk at once and is best at that, but it computes a batch row by row, in
short vectors: at hidden 32, batch 1,024 its gates take more time than its products. Here each gate
is a product of its own, whose Gemm ends in its activation: nothing is split or copied.

Both graphs have to give the same bits, so both add up in one order: (b + W x) + R h, then
c' = f * c + i * g. The node would add its bias last, so that it is given as a column of W instead,
for ones beside x. A Gemm begins with what it adds and a matrix product adds a column of ones at its
end: one rounding either way, as long as MLAS takes the product in one block; of what is wider than
that the step has the column of ones too.

That the bits are the same is no promise of ONNX Runtime: the service tries it on each machine, and
takes the chunk graph alone where it does not hold (`service.onnx_backend`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from export.algebra.affine import Affine
from export.algebra.cells import LstmCell
from export.algebra.network import Network
from export.graphs.cell_graph import with_ones, write_cell_chunk, write_cell_graphs
from export.graphs.graph_builder import GraphBuilder
from export.graphs.scan import write_step_graph
from export.graphs.step_graph import NetworkStep, Products
from export.lowered import Graphs
from service.manifest import Ports

BLOCK = 256  # inputs: MLAS adds up a wider product block by block


def write_float_graphs(network: Network, ports: Ports) -> Graphs:
    """The chunk graph and the step graph of a network that fits nodes."""
    if not all(isinstance(cell, LstmCell) and cell.is_plain for cell in network.cells):
        return write_cell_graphs(network, ports, Products())
    chunk = write_cell_chunk(network, ports, Products(), bias_first=True)
    return chunk, write_step_graph(NetworkStep(network, GateProducts()), ports)


class GateProducts(Products):
    """Products in float32, each gate for itself."""

    by_gate = True

    def affine(self, g: GraphBuilder, affine: Affine, values: Mapping[str, str], layer: str) -> str:
        wide = any(matrix.shape[1] > BLOCK for matrix in affine.blocks.values())
        if not wide:
            return super().affine(g, affine, values, layer)
        # Of three axes, as in the chunk graph: of two, product and bias become one Gemm, which
        # begins with the bias.
        over_time = {s: g.shared("Unsqueeze", values[s], g.ints(0)) for s in affine.blocks}
        return g.one("Squeeze", super().affine(g, affine, over_time, layer), g.ints(0))

    def pieces(
        self,
        g: GraphBuilder,
        affine: Affine,
        values: Mapping[str, str],
        layer: str,
        sizes: Sequence[int],
    ) -> Sequence[str]:
        *sources, own = affine.blocks
        names = [values[source] for source in sources]
        x = names[0] if len(names) == 1 else g.shared("Concat", *names, axis=1)
        matrix = np.concatenate([affine.blocks[source] for source in sources], axis=1)
        found = []
        for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
            rows = slice(stop - size, stop)
            w, bias = matrix[rows].T, affine.bias[rows]
            if len(w) < BLOCK:
                total = g.one("Gemm", x, _float(g, w, "W"), _float(g, bias, "b"))
            else:
                w = np.concatenate([w, bias[None]])
                total = g.one("MatMul", with_ones(g, x, 2), _float(g, w, "W"))
            recurrent = _float(g, affine.blocks[own][rows].T, "R")
            found.append(g.one("Gemm", values[own], recurrent, total))
        return found


def _float(g: GraphBuilder, value: np.ndarray, hint: str) -> str:
    return g.constant(value.astype(np.float32), hint)
