"""The variant `torch-export`: a `.pt2` file, which is TorchScript's successor.

`torch.export.load(path).module()` runs it without our code. torch.export unrolls `nn.LSTM`, so the
file is one step of the network inside torch's `scan`, over however many steps x has.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from export.errors import LoweringError
from export.graphs.step_program import as_module, quiet
from export.graphs.torch_part import torch_part
from service.manifest import Ports

EXAMPLE_BATCH, EXAMPLE_STEPS = 3, 5  # more than 1, which torch.export takes for a constant


def write_torch_export(step: nn.Module, ports: Ports, target: Path) -> None:
    """Write `forward(x (B, T, ...), *states) -> (y, *states')`; same step, same bytes.

    Args:
        step: `forward(x (B, ...), *states) -> (y, *states')`.
    Raises:
        LoweringError: torch.export does not take the scan.
        UnavailableError: this torch has no scan.
    """
    with torch_part("scan"):  # a prototype: it may move
        from torch._higher_order_ops.scan import scan
    try:
        with quiet(), torch.no_grad():
            # Exported once by itself: the scan would take in what its Python looks at, too.
            one = as_module(_export(step, ports, EXAMPLE_BATCH))
            program = _export(_Scan(one, scan), ports, EXAMPLE_BATCH, EXAMPLE_STEPS)
            _forget_sources(program)
            torch.export.save(program, target)
    except (RuntimeError, ValueError) as error:  # torch.export's errors share no base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LoweringError(f"torch.export does not take the step: {first}") from error


class _Scan(nn.Module):
    def __init__(self, step: nn.Module, scan: Callable[..., tuple[list[Tensor], Tensor]]) -> None:
        super().__init__()
        self.step = step
        self._scan = scan

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        def run(states: list[Tensor], now: Tensor) -> tuple[list[Tensor], Tensor]:
            y, *new = self.step(now, *states)
            return [_apart(value) for value in new], _apart(y)

        final, y = self._scan(run, list(states), x, dim=1)
        return y, *final


def _apart(value: Tensor) -> Tensor:
    """A copy: what a scan's step returns may share no memory, and has the layout of its start."""
    return value.clone(memory_format=torch.contiguous_format)


def _export(module: nn.Module, ports: Ports, *axes: int) -> ExportedProgram:
    """With `axes` free: those of x before its features, the first of which the states have too."""

    def example(dtype: str, *shape: int | str) -> Tensor:
        return torch.zeros(*(int(d) for d in shape), dtype=getattr(torch, dtype))

    x = example(ports.x.dtype, *axes, *ports.x.shape[2:])
    states = [example(s.dtype, axes[0], *s.shape[1:]) for s in ports.states]
    free = {axis: Dim(name, min=1) for axis, name in zip(range(len(axes)), "BT", strict=False)}
    # All states are one variadic argument, whose shapes stand in a tuple of their own.
    shapes = (free, ({0: free[0]},) * len(states))
    return torch.export.export(module, (x, *states), dynamic_shapes=shapes, strict=False)


def _forget_sources(program: ExportedProgram) -> None:
    """Drop where each operation came from: paths of this machine, and the caller's stack."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                    node.meta.pop(key, None)
                node.meta.pop("from_node", None)
