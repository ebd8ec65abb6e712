"""What lowering makes of a reference: something that can write itself as every kind of variant."""

from collections.abc import Mapping, Set
from typing import Protocol

import onnx
from torch import nn

from export.precision import Plan
from service.manifest import Lowering, Ports

Graphs = tuple[onnx.ModelProto, onnx.ModelProto]  # over a chunk with lengths; of one step


class Lowered(Protocol):
    """A model that was proven equal to its reference's step, ready to be written."""

    @property
    def ids(self) -> int | None:
        """x is an integer from 0 to ids - 1; None: x is real."""
        ...

    @property
    def bounded_states(self) -> Set[str]:
        """The states that lie in [-1, 1] whatever the input."""
        ...

    def roads(self, module: str) -> list[Lowering]:
        """Which road each layer of `module` took, and why."""
        ...

    def float_graphs(self, ports: Ports) -> Graphs: ...

    def stock_graph(self, ports: Ports) -> onnx.ModelProto:
        """The float graph over a chunk that ONNX Runtime's `quantize_dynamic` is given.

        It knows products and LSTM nodes; what else has weights must stand in it as products.
        """
        return self.float_graphs(ports)[0]

    @property
    def layers(self) -> Mapping[str, int]:
        """The layers that a plan may name, those that can be int8: how many weights each has."""
        ...

    def rowwise_graphs(self, ports: Ports, plan: Plan) -> Graphs:
        """The same with row-isolated int8 products, each layer as `plan` says.

        Raises:
            NothingQuantizedError: there would be none.
        """
        ...

    def torch_module(self, ports: Ports) -> nn.Module:
        """What TorchScript is made of: `forward(x, *states) -> (y, *states')`.

        Its `is_step` says what x is: one step (B, ...), or a chunk (B, T, ...). What
        `quantize_dynamic` is to replace stands in it as `nn.LSTM` and `nn.Linear`.

        Raises:
            LoweringError: it cannot be had; the TorchScript variants are left out, and why is said.
        """
        ...

    def torch_step(self, ports: Ports) -> nn.Module:
        """What `torch.export` is given: one step, `forward(x (B, ...), *states) -> (y, *states')`.

        Raises:
            LoweringError: it cannot be had, as above.
        """
        ...
