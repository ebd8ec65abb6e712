"""torch's own layers with our weights, which its `quantize_dynamic` replaces."""

import numpy as np
import torch
from torch import Tensor, nn

from export.algebra.cells import Cell, GruCell


def linear(matrix: np.ndarray, bias: np.ndarray) -> nn.Linear:
    linear = nn.Linear(matrix.shape[1], matrix.shape[0])
    _copy(linear.weight, matrix)
    _copy(linear.bias, bias)
    return linear


def recurrent_layer(cell: Cell) -> nn.LSTM | nn.GRU:
    """torch's layer of a plain cell."""
    matrix = np.concatenate(list(cell.input.blocks.values()), axis=1)
    recurrent, bias = cell.recurrent, cell.input.bias
    layer: nn.LSTM | nn.GRU
    inner = np.zeros_like(bias)
    if isinstance(cell, GruCell) and cell.reset_bias is not None:
        layer = nn.GRU(matrix.shape[1], cell.hidden_size, batch_first=True)
        inner[2 * cell.hidden_size :] = cell.reset_bias
        matrix, recurrent, bias, inner = map(_torch_order, (matrix, recurrent, bias, inner))
    else:
        layer = nn.LSTM(matrix.shape[1], cell.hidden_size, batch_first=True)
    values = (matrix, recurrent, bias, inner)
    for parameter, value in zip(layer.all_weights[0], values, strict=True):
        _copy(parameter, value)
    return layer


def _torch_order(rows: np.ndarray) -> np.ndarray:
    """A GRU's gates z, r, n as r, z, n."""
    z, r, n = np.split(rows, 3)
    return np.concatenate([r, z, n])


def _copy(parameter: Tensor, value: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
