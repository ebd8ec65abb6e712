"""A network as torch modules: for TorchScript whole layers, for `torch.export` one step.

Where torch has the cells too, they are built again as `nn.LSTM` and `nn.GRU`, and products as
`nn.Linear`, because torch's `quantize_dynamic` replaces these and nothing else: a cell written by
hand it leaves as it is, silently.

The names of these classes and of their module stand in TorchScript archives: renamed, they give
other bytes, and so other versions of the same models.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.algebra.affine import Affine
from export.algebra.cells import Cell, GruCell, LstmCell, StateSlice
from export.algebra.form import Root
from export.algebra.network import Network
from export.algebra.pointwise import FUNCTIONS
from export.algebra.terms import Rows, split
from export.algebra.torch_arithmetic import TorchArithmetic
from export.graphs.cell_graph import fits_nodes
from export.graphs.torch_layers import linear, recurrent_layer
from service.manifest import Ports


class Layers(nn.Module):
    """The affine maps of a network: `nn.Linear` for products, slices for what is only picked."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleDict()
        self._parts: dict[str, list[tuple[Rows, str]]] = {}

    def add(self, name: str, affine: Affine) -> None:
        self._parts[name] = []
        for k, rows in enumerate(split(affine)):
            matrices = [term.matrix for term in rows.terms if term.matrix is not None]
            key = f"{name}_{k}" if matrices else ""
            if matrices:
                self.linears[key] = linear(np.concatenate(matrices, axis=1), rows.bias)
            elif rows.bias.any() or not rows.terms:
                self.register_buffer(f"{name}_{k}", torch.tensor(rows.bias, dtype=torch.float32))
            self._parts[name].append((rows, key))

    def add_table(self, root: Root) -> None:
        if root.table is not None:
            table = torch.tensor(root.table, dtype=torch.float32)
            self.register_buffer(f"{root.name}_table", table)

    def apply_to(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """The affine map `name` of (..., F) values."""
        parts = [
            self._rows(rows, key, f"{name}_{k}", values)
            for k, (rows, key) in enumerate(self._parts[name])
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _rows(self, rows: Rows, key: str, bias: str, values: Mapping[str, Tensor]) -> Tensor:
        total: Tensor | None = None
        if key:
            mixed = [values[t.source] for t in rows.terms if t.matrix is not None]
            total = self.linears[key](torch.cat(mixed, dim=-1))
        elif bias in self._buffers:
            total = self.get_buffer(bias)
        for term in rows.terms:
            if term.matrix is None:
                value = term.sign * values[term.source][..., term.start : term.stop]
                total = value if total is None else total + value
        if total is None:
            raise ValueError("an affine map without terms has its bias")
        return total


class LoweredSequence(nn.Module):
    """A network whose cells torch has too, as `nn.LSTM` and `nn.GRU` layers over whole chunks.

    forward(x (B, T, ...), *states (B, ...)) -> (y, *states').
    """

    is_step = False

    def __init__(self, network: Network, ports: Ports) -> None:
        super().__init__()
        self._network = network
        self._ports = ports
        self.layers = Layers()
        self.cells = nn.ModuleDict()
        for node in network.nodes:
            if isinstance(node, Cell):
                self.cells[node.name] = recurrent_layer(node)
            else:
                self.layers.add_table(node)
                for k, arg in enumerate(node.args):
                    self.layers.add(f"{node.name}_{k}", arg)
        self.layers.add("y", network.y)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        batch, steps = x.shape[0], x.shape[1]
        flat = _flatten(self._ports, states)
        values = {"x": x.reshape(batch, steps, -1)}
        pieces: dict[tuple[str, int], Tensor] = {}
        for node in self._network.nodes:
            if isinstance(node, Cell):
                old = [_take(flat, s).unsqueeze(0) for s in node.slices.values()]
                source = torch.cat([values[name] for name in node.input.blocks], dim=-1)
                layer = self.cells[node.name]
                start = tuple(old) if isinstance(node, LstmCell) else old[0]
                values[f"{node.name}.h"], last = layer(source, start)
                last = last if isinstance(node, LstmCell) else (last,)
                for s, value in zip(node.slices.values(), last, strict=True):
                    pieces[s.port, s.start] = value[0]
            else:
                values[node.name] = _pointwise(self.layers, node, values)
        y = self.layers.apply_to("y", values)
        y = y.reshape(batch, steps, *(int(d) for d in self._ports.y.shape[2:]))
        return y, *_unflatten(self._ports, _join(pieces, flat), batch)


class LoweredStep(nn.Module):
    """Any network, one step: forward(x (B, ...), *states (B, ...)) -> (y (B, ...), *states')."""

    is_step = True

    def __init__(self, network: Network, ports: Ports) -> None:
        super().__init__()
        self._network = network
        self._ports = ports
        self.layers = Layers()
        for node in network.nodes:
            if isinstance(node, Cell):
                for part, affine in node.parts.items():
                    self.layers.add(f"{node.name}_{part}", affine)
            else:
                self.layers.add_table(node)
                for k, arg in enumerate(node.args):
                    self.layers.add(f"{node.name}_{k}", arg)
        for port, affine in network.free.items():
            self.layers.add(f"new_{port}", affine)
        self.layers.add("y", network.y)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        batch = x.shape[0]
        flat = _flatten(self._ports, states)
        values = {"x": x.reshape(batch, _size(self._ports.x.shape[2:])), **flat}
        pieces: dict[tuple[str, int], Tensor] = {}
        for node in self._network.nodes:
            if isinstance(node, Root):
                values[node.name] = _pointwise(self.layers, node, values)
                continue
            old = {k: _take(flat, s) for k, s in node.slices.items()}
            for k, value in node.step(_Tensors(self.layers, values), old).items():
                values[f"{node.name}.{k}"] = value
                pieces[node.slices[k].port, node.slices[k].start] = value
        new = _join(pieces, flat)
        for port in self._network.free:
            new[port] = self.layers.apply_to(f"new_{port}", values)
        y = self.layers.apply_to("y", values)
        y = y.reshape(batch, *(int(d) for d in self._ports.y.shape[2:]))
        return y, *_unflatten(self._ports, new, batch)


class _Tensors(TorchArithmetic):
    """A cell's equations in torch, its affine maps among the layers."""

    def __init__(self, layers: Layers, values: Mapping[str, Tensor]) -> None:
        self._layers = layers
        self._values = values

    def affine(self, cell: Cell, part: str, own: Mapping[str, Tensor]) -> Tensor:
        return self._layers.apply_to(f"{cell.name}_{part}", {**self._values, **own})


def lowered_module(network: Network, ports: Ports) -> nn.Module:
    """The network as torch layers: whole chunks where torch has all its cells, else step by step.

    `nn.RNN` it has, but `quantize_dynamic` leaves that in float.
    """
    plain = all(isinstance(c, LstmCell | GruCell) and c.is_plain for c in network.cells)
    if fits_nodes(network) and plain:
        return LoweredSequence(network, ports)
    return LoweredStep(network, ports)


def _size(shape: Sequence[int | str]) -> int:
    """How many values: said, for -1 would make torch.export ask for a batch of 2 or more."""
    return math.prod(int(d) for d in shape)


def _flatten(ports: Ports, states: Sequence[Tensor]) -> dict[str, Tensor]:
    return {
        port.name: state.reshape(state.shape[0], _size(port.shape[1:]))
        for port, state in zip(ports.states, states, strict=True)
    }


def _unflatten(ports: Ports, flat: Mapping[str, Tensor], batch: int) -> list[Tensor]:
    return [
        flat[port.name].reshape(batch, *(int(d) for d in port.shape[1:])) for port in ports.states
    ]


def _join(pieces: Mapping[tuple[str, int], Tensor], ports: Iterable[str]) -> dict[str, Tensor]:
    """Each port's flat state from what its cells left at their places."""
    joined = {}
    for port in ports:
        parts = [pieces[key] for key in sorted(pieces) if key[0] == port]
        if parts:
            joined[port] = torch.cat(parts, dim=1)
    return joined


def _pointwise(layers: Layers, root: Root, values: Mapping[str, Tensor]) -> Tensor:
    if root.fn == "embedding":
        return F.embedding(values["x"], layers.get_buffer(f"{root.name}_table")).flatten(-2)
    arguments = [layers.apply_to(f"{root.name}_{k}", values) for k in range(len(root.args))]
    return FUNCTIONS[root.fn].torch(*arguments, *root.constants)


def _take(flat: Mapping[str, Tensor], s: StateSlice) -> Tensor:
    return flat[s.port][:, s.start : s.stop]
