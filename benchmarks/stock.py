"""Stock ONNX Runtime: what a user gets who exports a torch LSTM and does no more.

fp32 is what `torch.onnx.export` writes: one LSTM node and what stands around it, h and c as inputs
and outputs, any batch, any number of steps. It is the older exporter (`dynamo=False`), as the newer
one writes the steps out one by one, which takes 2.5 times as long. int8 is that file after
`quantize_dynamic` as the documentation calls it: one activation scale for the whole batch, so that
a row feels its neighbours. Both are run by `session.run`, as the documentation shows.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor, nn

Array = np.ndarray


class Forecaster(nn.Module):
    """X (B, T, I) -> Y (B, T, O): an nn.LSTM of one layer and a linear head, untrained."""

    def __init__(self, input_size: int, hidden: int, output_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden, batch_first=True)
        self.head = nn.Linear(hidden, output_size)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(x, state)
        return self.head(y), state


def forecaster(input_size: int = 8, hidden: int = 128, output_size: int = 8) -> Forecaster:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Forecaster(input_size, hidden, output_size).eval()


def write_stock(module: nn.Module, lstm: nn.LSTM, path: Path) -> None:
    """Export `forward(x, (h, c)) -> (y, (h, c))`: inputs x, h, c and outputs y, h_n, c_n."""
    h = torch.zeros(lstm.num_layers, 2, lstm.hidden_size)
    write_stock_graph(module, torch.zeros(2, 3, lstm.input_size), {"h": h, "c": h.clone()}, path)


def write_stock_graph(
    module: nn.Module, x: Tensor, states: Mapping[str, Tensor], path: Path
) -> None:
    """Export `forward(x, states) -> (y, states)`, x (B, T, ...); a state alone is no tuple.

    Args:
        states: name -> (L, B, H), or (B, H); its output is called NAME_n.
    """
    given = tuple(states.values())
    axes = {"x": {0: "batch", 1: "time"}}
    axes |= {name: {value.ndim - 2: "batch"} for name, value in states.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, and that a batch of 1 may differ
        torch.onnx.export(
            module,
            (x, given if len(given) > 1 else given[0]),
            str(path),
            dynamo=False,
            input_names=["x", *states],
            output_names=["y", *(f"{name}_n" for name in states)],
            dynamic_axes=axes,
        )


def write_stock_int8(fp32: Path, path: Path) -> None:
    """Quantize what `write_stock` wrote, by the tool's own defaults."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a pre-processing
    try:
        quantize_dynamic(fp32, path)
    finally:
        logger.setLevel(level)


def open_stock(path: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def stock_call(session: ort.InferenceSession, x: Array, h: Array, c: Array) -> Callable[[], object]:
    """One call on x (B, T, I), h and c (L, B, H)."""
    feed = {"x": x, "h": h, "c": c}
    return lambda: session.run(None, feed)
