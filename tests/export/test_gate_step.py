"""The float step of LSTM cells is other operators than the chunk graph's node, of the same bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.draft import ports_of
from export.finding import find_reference
from export.graphs.gate_step import BLOCK
from export.lowered import Graphs
from export.lowering import LoweredNetwork, lower_reference
from service.bound_graph import BoundGraph
from service.manifest import Ports
from service.onnx_backend import agree


class Headed(nn.Module):
    """An nn.LSTM and a linear head."""

    def __init__(self, input_size: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(input_size, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        y, state = self.lstm(x, state)
        return self.head(y), state


def _write(module: nn.Module, input_size: int) -> tuple[Graphs, Ports]:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 8, input_size), np.float32))
    reference = find_reference(module.eval().requires_grad_(False), x)
    lowered, ports = lower_reference(reference, x), ports_of(reference, x.numpy())
    assert isinstance(lowered, LoweredNetwork)
    return lowered.float_graphs(ports), ports


def _agree(graphs: Graphs, ports: Ports, folder: Path) -> bool:
    paths = folder / "chunk.onnx", folder / "step.onnx"
    for path, graph in zip(paths, graphs, strict=True):
        path.write_bytes(graph.SerializeToString())
    chunk, step = (BoundGraph(path, ports, 1) for path in paths)
    return agree(chunk, step, ports)


SHAPES = {
    "narrow": (3, 8, 1, 1),
    "one block": (BLOCK - 1, 16, 1, 4),
    "a block and the bias": (BLOCK, 16, 1, 4),
    "two blocks": (BLOCK + 1, 16, 1, 4),
    "a wide head": (8, BLOCK + 4, 1, 3),
    "two layers": (5, 24, 2, 1),
    "two wide layers": (2, BLOCK + 1, 2, 2),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_step_and_chunk_give_the_same_bits(
    shape: tuple[int, int, int, int], tmp_path: Path
) -> None:
    """On rows of every scale, alone and in batches; and the step holds no LSTM node."""
    (chunk, step), ports = _write(Headed(*shape), shape[0])
    assert "LSTM" not in {node.op_type for node in step.graph.node}
    assert "LSTM" in {node.op_type for node in chunk.graph.node}
    assert _agree((chunk, step), ports, tmp_path)


def test_a_bias_added_last_is_told_from_one_added_first(tmp_path: Path) -> None:
    """So `agree` can fail, and the order is needed."""
    (chunk, step), ports = _write(Headed(3, 32, 1, 1), 3)
    for tensor in chunk.graph.initializer:
        if tensor.name.startswith("lstm_0_W"):
            whole = np.frombuffer(tensor.raw_data, np.float32).reshape(1, -1, 4)
            bias = whole[0, :, 3].copy()
            cut = whole * np.array([1, 1, 1, 0], np.float32)
            tensor.raw_data = cut.astype(np.float32).tobytes()
        if tensor.name.startswith("lstm_0_B"):
            zeros = tensor
    zeros.raw_data = np.concatenate([bias, np.zeros_like(bias)]).tobytes()
    assert not _agree((chunk, step), ports, tmp_path)


def test_other_cells_keep_their_node() -> None:
    """A GRU's step is its node: what its operators would give is not its bits."""

    class Gru(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 8, batch_first=True)

        def forward(
            self, x: torch.Tensor, h: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            y, h = self.gru(x, h)
            return y, h

    (_, step), _ = _write(Gru(), 3)
    assert "GRU" in {node.op_type for node in step.graph.node}
