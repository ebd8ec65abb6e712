"""TorchScript variants: everything that depends on torch.jit and torch.ao.quantization.

Both are on their way out (deprecated in torch 2.13), so they stand behind this one module: a torch
without them costs two variants, not the product.

The network is built again from `nn.LSTM` and `nn.Linear`, because `quantize_dynamic` replaces these
and nothing else: a cell written by hand with plain parameters it leaves as it is, silently.
"""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.form import Affine, Root
from export.network import LstmCell, Network, StateSlice
from service.artifact import Ports

TRACE_BATCH, TRACE_STEPS = 2, 3
SERIALIZATION_ID = ".data/serialization_id"  # a hash over the records, those left out too
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "mul": torch.mul,
}


class LoweredModule(nn.Module):
    """A network as torch layers: forward(x (B, T, ...), *states (B, ...)) -> (y, *states')."""

    def __init__(self, network: Network, ports: Ports) -> None:
        super().__init__()
        self._network = network
        self._ports = ports
        self.layers = nn.ModuleDict()
        for node in network.nodes:
            if isinstance(node, LstmCell):
                self.layers[node.name] = _lstm(node)
            else:
                for k, arg in enumerate(node.args):
                    self._add_affine(f"{node.name}_{k}", arg)
        self._add_affine("y", network.y)

    def _add_affine(self, name: str, affine: Affine) -> None:
        matrix = np.concatenate(list(affine.blocks.values()), axis=1)
        linear = nn.Linear(matrix.shape[1], matrix.shape[0])
        _copy(linear.weight, matrix)
        _copy(linear.bias, affine.bias)
        self.layers[name] = linear

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        batch, steps = x.shape[0], x.shape[1]
        flat = {
            port.name: state.reshape(batch, -1)
            for port, state in zip(self._ports.states, states, strict=True)
        }
        values = {"x": x.reshape(batch, steps, -1)}
        pieces: dict[tuple[str, int], Tensor] = {}
        for node in self._network.nodes:
            if isinstance(node, LstmCell):
                start = tuple(_take(flat, s).unsqueeze(0) for s in (node.h, node.c))
                source = self._gather(node.input, values)
                values[f"{node.name}.h"], (h, c) = self.layers[node.name](source, start)
                pieces[node.h.port, node.h.start] = h[0]
                pieces[node.c.port, node.c.start] = c[0]
            else:
                values[node.name] = self._pointwise(node, values)
        y = self.layers["y"](self._gather(self._network.y, values))
        new = []
        for port in self._ports.states:
            whole = torch.cat([pieces[key] for key in sorted(pieces) if key[0] == port.name], 1)
            new.append(whole.reshape(batch, *(int(d) for d in port.shape[1:])))
        return y.reshape(batch, steps, *(int(d) for d in self._ports.y.shape[2:])), *new

    def _pointwise(self, root: Root, values: Mapping[str, Tensor]) -> Tensor:
        arguments = [
            self.layers[f"{root.name}_{k}"](self._gather(arg, values))
            for k, arg in enumerate(root.args)
        ]
        return FUNCTIONS[root.fn](*arguments)

    @staticmethod
    def _gather(affine: Affine, values: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([values[source] for source in affine.blocks], dim=-1)


def script(module: LoweredModule, ports: Ports) -> torch.jit.ScriptModule:
    """The module as TorchScript, of any batch and number of steps."""
    x = torch.zeros(TRACE_BATCH, TRACE_STEPS, *(int(d) for d in ports.x.shape[2:]))
    states = [torch.zeros(TRACE_BATCH, *(int(d) for d in s.shape[1:])) for s in ports.states]
    with _quiet(), torch.no_grad():
        # Else the names of a second trace in this process are mangled, and its bytes differ.
        torch._C._jit_clear_class_registry()
        traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
            module.eval(), (x, *states)
        )
        return traced


def quantize(module: LoweredModule) -> LoweredModule:
    """Dynamic int8 by torch's own `quantize_dynamic`: a copy in which every layer is quantized.

    Raises:
        RuntimeError: a layer was left in float, which would be a bug of ours.
    """
    with _quiet():
        quantized: LoweredModule = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            module.eval(), {nn.LSTM, nn.Linear}, dtype=torch.qint8
        )
    left = [name for name, layer in quantized.layers.items() if type(layer) in (nn.LSTM, nn.Linear)]
    if left:
        raise RuntimeError(f"quantize_dynamic left {left} in float")
    return quantized


def save(scripted: torch.jit.ScriptModule, path: Path) -> None:
    """Write the module, without the source locations that torch adds.

    They hold this machine's paths and the caller's stack, so that the same module would give other
    bytes elsewhere; they serve tracebacks only.
    """
    buffer = io.BytesIO()
    with _quiet():
        torch.jit.save(scripted, buffer)
    with zipfile.ZipFile(buffer) as full, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as kept:
        for name in full.namelist():
            _, _, inner = name.partition("/")
            if not inner.endswith(".debug_pkl") and inner != SERIALIZATION_ID:
                kept.writestr(zipfile.ZipInfo(f"{path.stem}/{inner}"), full.read(name))


def _lstm(cell: LstmCell) -> nn.LSTM:
    matrix = np.concatenate(list(cell.input.blocks.values()), axis=1)
    lstm = nn.LSTM(matrix.shape[1], cell.hidden_size, batch_first=True)
    zeros = np.zeros_like(cell.input.bias)
    values = (matrix, cell.recurrent, cell.input.bias, zeros)
    for parameter, value in zip(lstm.all_weights[0], values, strict=True):
        _copy(parameter, value)
    return lstm


def _copy(parameter: Tensor, value: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def _take(flat: Mapping[str, Tensor], s: StateSlice) -> Tensor:
    return flat[s.port][:, s.start : s.stop]


@contextmanager
def _quiet() -> Iterator[None]:
    """Their deprecation is the reason for this module, not news; the tracer's sizes are free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
