"""The road that a reference takes to its graphs: cells where the mathematics finds them.

What the affine form cannot say is lowered operator by operator.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx
from torch import Tensor, nn

from export.algebra.bounded import bounded_sources
from export.algebra.cells import LstmCell
from export.algebra.form import read_form
from export.algebra.network import Network
from export.algebra.recognise import lower
from export.algebra.sensitivity import find_sensitivities
from export.algebra.trace import trace_step
from export.errors import DecisionError, LoweringError
from export.graphs.cell_graph import fits_nodes, write_cell_chunk
from export.graphs.gate_step import write_float_graphs
from export.graphs.operators import from_step_model, lower_operators
from export.graphs.rowwise import int8_layers, write_rowwise_graphs
from export.graphs.step_graph import Products, write_step_graphs
from export.graphs.torch_network import LoweredStep, lowered_module
from export.lowered import Graphs, Lowered
from export.onnx_in.reference import OnnxReference
from export.onnx_in.step import write_step
from export.precision import Plan
from export.reference import Reference
from service.manifest import Lowering, Ports

Array = np.ndarray


def lower_reference(reference: Reference, x: Tensor) -> Lowered:
    """Lower one step of `reference`; x (N, T, ...) is the example, as the module takes it.

    Raises:
        LoweringError: no road was found; the message says what stood in the way.
    """
    if isinstance(reference, OnnxReference):
        step, how = write_step(reference, x.numpy())
        return from_step_model(step, reference, x, how)
    if reference.window:  # unrolled into affine maps, a layer over the window would be N layers
        return lower_operators(reference, x, why="at each step the whole window is run")
    try:
        trace = trace_step(reference, x)
        network = lower(read_form(trace), trace)
        initial = reference.initial(1)
        wide = frozenset(name for name, value in initial.items() if float(value.abs().max()) > 1)
        return LoweredNetwork(replace(network, wide=wide), x.numpy())
    except LoweringError as error:
        try:
            return lower_operators(reference, x, why=str(error))
        except DecisionError:
            raise  # it says all there is to say
        except LoweringError as other:
            raise LoweringError(
                f"{other}. Say it in other operations in the module ({error}), or report it with "
                "a module that shows it"
            ) from other


class LoweredNetwork(Lowered):
    """A network of cells and affine maps: every variant is written from it."""

    def __init__(self, network: Network, x: Array) -> None:
        """Args:
        x: (N, T, ...) the example.
        """
        self.network = network
        self._x = x

    @cached_property
    def gradients(self) -> dict[str, Array]:
        """How y moves with each layer, over the example's first half."""
        return find_sensitivities(self.network, self._x)

    @property
    def ids(self) -> int | None:
        return self.network.ids

    @property
    def bounded_states(self) -> Set[str]:
        return bounded_sources(self.network)

    def roads(self, module: str) -> list[Lowering]:
        proof = f"equal to the traced step of {module} in float64 to 1e-10"
        inside = "" if fits_nodes(self.network) else "; written operator by operator, with the rest"
        cells = [
            Lowering(layer=c.name, road=c.road, why=f"{c.hidden_size} units, {proof}{inside}")
            for c in self.network.cells
        ]
        why_free = self.network.why_free
        ports = [
            Lowering(
                layer=f"state {port}",
                road="general",
                why=f"{why_free.get(port, 'no cell carries it')}: its step is written operator by "
                f"operator, {proof}",
            )
            for port in self.network.free
        ]
        return cells + ports

    def float_graphs(self, ports: Ports) -> Graphs:
        if fits_nodes(self.network):
            return write_float_graphs(self.network, ports)
        return write_step_graphs(self.network, ports, Products())

    def stock_graph(self, ports: Ports) -> onnx.ModelProto:
        if all(isinstance(cell, LstmCell) for cell in self.network.cells):
            if fits_nodes(self.network):
                return write_cell_chunk(self.network, ports, Products())
            return self.float_graphs(ports)[0]
        return write_step_graphs(self.network, ports, Products())[0]

    @property
    def layers(self) -> Mapping[str, int]:
        return int8_layers(self.network)

    def rowwise_graphs(self, ports: Ports, plan: Plan) -> Graphs:
        return write_rowwise_graphs(self.network, ports, plan, self.gradients)

    def torch_module(self, ports: Ports) -> nn.Module:
        return lowered_module(self.network, ports)

    def torch_step(self, ports: Ports) -> nn.Module:
        return LoweredStep(self.network, ports)
