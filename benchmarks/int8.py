"""`python -m benchmarks.int8`: rowwise int8 beside ONNX Runtime's stock dynamic int8, one thread.

For LSTM forecasters of several widths, trained for a moment on hourly temperatures: the time of one
step, and of a chunk, as a ratio of rowwise to stock; and how far either drifts from the float
network on the months that it was not trained on, repeated to 10,000 steps. Both are of the same
graphs. With `--untrained` y is h of a seeded cell: of that no small part stays in float.

Stock is a float graph of one step (or chunk), an LSTM node and what stands around it, after
`quantize_dynamic`, per channel, all rows in one call: faster than it is ever served, as a row then
feels its neighbours. The two take turns, slice by slice, and a slice's time is the thread's CPU
time, so that a machine that is busy elsewhere slows both. The ratio is the median over the turns.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np
import onnx
import onnxruntime as ort
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from benchmarks.conditions import conditions
from export.draft import ports_of
from export.finding import find_reference
from export.graphs.cell_graph import write_cell_graphs
from export.graphs.step_graph import Products
from export.graphs.stock import write_stock_int8
from export.lowering import LoweredNetwork, lower_reference
from export.precision import ALL_ROWWISE
from models.data import temperature
from service.manifest import Ports

Array = np.ndarray
SLICE_S = 0.003  # long beside the clock's resolution, short beside a change of the machine's load
EXAMPLE_STEPS = 1_000  # what the export of a network is shown
TRAIN_STEPS, TRAIN_BATCH = 32, 16
PACKAGES = ("onnxruntime", "onnx", "torch", "numpy")


class Forecaster(nn.Module):
    """The next temperature of the last ones, (B, I) -> (B, 1)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = self.cell(x, (h, c))
        return self.head(h), (h, c)


class Cell(nn.Module):
    """One LSTM cell whose h is the output: what is measured is the cell."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = self.cell(x, (h, c))
        return h, (h, c)


@dataclass(frozen=True)
class Point:
    """One width at one batch size and chunk length."""

    hidden: int
    batch: int
    steps: int
    stock_us: float
    rowwise_us: float
    ratio: float  # rowwise to stock, median over the turns


@dataclass(frozen=True)
class Drift:
    """The greatest |y - y of the float graph| over a long sequence, each on its own state."""

    hidden: int
    steps: int
    stock: float
    rowwise: float


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    points: list[Point] = []
    drifts: list[Drift] = []
    for hidden in track(arguments.hidden, "measuring", console=Console(stderr=True)):
        cell = Contest(arguments.input_size, hidden, arguments.iterations)
        for steps in (1, arguments.chunk):
            for batch in arguments.batch:
                points.append(cell.time(batch, steps, arguments.turns))
        if arguments.drift_steps:
            drifts.append(cell.drift(arguments.drift_steps))
    found = conditions(
        PACKAGES,
        threads=1,
        input_size=arguments.input_size,
        training_iterations=arguments.iterations,
        turns=arguments.turns,
    )
    _show(points, drifts, found)
    if arguments.json:
        report = {
            "conditions": found,
            "points": [asdict(p) for p in points],
            "geometric_mean": {str(n): _mean(points, n) for n in (1, arguments.chunk)},
            "drift": [asdict(d) for d in drifts],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


class Contest:
    """A network as sessions: float, stock int8 and rowwise int8, of a step and of a chunk."""

    def __init__(self, input_size: int, hidden: int, iterations: int) -> None:
        """
        Args:
            iterations: of the training; 0: a seeded cell whose h is the output.
        """
        self._input_size = input_size
        self._hidden = hidden
        torch.manual_seed(0)
        seen, self._unseen = _windows(input_size)
        module: nn.Module = Cell(input_size, hidden)
        if iterations:
            module = _trained(input_size, hidden, seen, iterations)
        x = torch.from_numpy(seen[None, :EXAMPLE_STEPS])
        reference = find_reference(module.eval().requires_grad_(False), x)
        lowered, ports = lower_reference(reference, x), ports_of(reference, x.numpy())
        if not isinstance(lowered, LoweredNetwork):
            raise TypeError(f"an LSTM cell was lowered to a {type(lowered).__name__}")
        self._chunk, self._step = (_sessions(lowered, ports, k) for k in (0, 1))

    def time(self, batch: int, steps: int, turns: int) -> Point:
        """Time both in turns, on random input."""
        rng = np.random.default_rng(0)
        feed = self._feed(rng.standard_normal((batch, steps, self._input_size)), rng)
        sessions = self._step
        if steps == 1:
            feed["x"] = feed["x"][:, 0]
        else:
            sessions = self._chunk
            feed["lengths"] = np.full(batch, steps, np.int64)
        names = ("stock", "rowwise")
        calls = _calls(sessions["stock"], feed)
        for name in names:
            _slice(sessions[name], feed, calls)  # warm-up
        times = {name: [] for name in names}  # type: dict[str, list[float]]
        for _ in range(turns):
            for name in names:
                times[name].append(_slice(sessions[name], feed, calls))
        stock, rowwise = (times[name] for name in names)
        ratio = median(r / s for r, s in zip(rowwise, stock, strict=True))
        return Point(self._hidden, batch, steps, median(stock), median(rowwise), ratio)

    def drift(self, steps: int) -> Drift:
        """Run all three alone over real temperatures, each carrying its own state."""
        x = np.resize(self._unseen, (1, steps, self._input_size))
        y = {}
        for name, session in self._step.items():
            state = [np.zeros((1, self._hidden), np.float32)] * 2
            rows = []
            for t in range(steps):
                now = np.ascontiguousarray(x[:, t], np.float32)
                row, *state = session.run(None, {"x": now, "h_0": state[0], "c_0": state[1]})
                rows.append(row)
            y[name] = np.concatenate(rows)
        stock, rowwise = (float(np.abs(y[n] - y["float"]).max()) for n in ("stock", "rowwise"))
        return Drift(self._hidden, steps, stock, rowwise)

    def _feed(self, x: Array, rng: np.random.Generator) -> dict[str, Array]:
        state = rng.uniform(-1, 1, (2, len(x), self._hidden)).astype(np.float32)
        return {"x": x.astype(np.float32), "h_0": state[0], "c_0": state[1]}


def _windows(input_size: int) -> tuple[Array, Array]:
    """The last `input_size` hours of temperature at every hour, standardised: seen, and unseen."""
    series = temperature()
    real = (series.values[:, 0] - series.train.mean()) / series.train.std()
    x = np.lib.stride_tricks.sliding_window_view(real, input_size).astype(np.float32)
    return x[: series.train_end], x[series.train_end :]


def _trained(input_size: int, hidden: int, seen: Array, iterations: int) -> nn.Module:
    """Adam over random pieces of what is seen: weights that are neither random nor good."""
    module = Forecaster(input_size, hidden)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    for _ in range(iterations):
        starts = rng.integers(0, len(seen) - TRAIN_STEPS - 1, TRAIN_BATCH)
        x = torch.from_numpy(np.stack([seen[s : s + TRAIN_STEPS + 1] for s in starts]))
        h = c = torch.zeros(TRAIN_BATCH, hidden)
        loss = torch.zeros(())
        for t in range(TRAIN_STEPS):
            y, (h, c) = module(x[:, t], h, c)
            loss = loss + ((y[:, 0] - x[:, t + 1, -1]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module


def _sessions(lowered: LoweredNetwork, ports: Ports, which: int) -> dict[str, ort.InferenceSession]:
    """Of the graphs over a chunk (0) or of one step (1)."""
    graph = write_cell_graphs(lowered.network, ports, Products())[which]
    with tempfile.TemporaryDirectory() as folder:
        stock = Path(folder) / "stock.onnx"
        write_stock_int8(graph, stock)
        stock_graph = onnx.load(stock)
    rowwise = lowered.rowwise_graphs(ports, ALL_ROWWISE)[which]
    models = {"float": graph, "stock": stock_graph, "rowwise": rowwise}
    return {name: _session(model) for name, model in models.items()}


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _calls(session: ort.InferenceSession, feed: Mapping[str, Array]) -> int:
    session.run(None, feed)
    return max(1, round(SLICE_S * 1e6 / min(_slice(session, feed, 1) for _ in range(5))))


def _slice(session: ort.InferenceSession, feed: Mapping[str, Array], calls: int) -> float:
    """Microseconds of the thread's CPU time that a call takes."""
    start = time.thread_time()
    for _ in range(calls):
        session.run(None, feed)
    return (time.thread_time() - start) / calls * 1e6


def _mean(points: Sequence[Point], steps: int) -> float:
    return geometric_mean(p.ratio for p in points if p.steps == steps)


def _show(points: Sequence[Point], drifts: Sequence[Drift], found: object) -> None:
    console = Console(width=100)
    for steps in sorted({p.steps for p in points}):
        table = Table(title=f"{steps} step{'s' if steps > 1 else ''} a call")
        for column in ("hidden", "batch", "stock us", "rowwise us", "rowwise / stock"):
            table.add_column(column, justify="right")
        for p in points:
            if p.steps == steps:
                times = f"{p.stock_us:,.1f}", f"{p.rowwise_us:,.1f}", f"{p.ratio:.3f}"
                table.add_row(str(p.hidden), str(p.batch), *times)
        table.add_section()
        table.add_row("", "", "", "geometric mean", f"{_mean(points, steps):.3f}")
        console.print(table)
    for d in drifts:
        console.print(
            f"hidden {d.hidden}: y drifts to {d.stock:.2e} (stock) and {d.rowwise:.2e} (rowwise) "
            f"in {d.steps:,} steps, ratio {d.rowwise / d.stock:.2f}"
        )
    console.print(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    add = parser.add_argument
    sizes, batches = [128, 256, 512, 1024], [1, 16, 64, 256]
    add("--hidden", type=int, nargs="+", default=sizes, help="widths (%(default)s)")
    add("--batch", type=int, nargs="+", default=batches, help="rows a call (%(default)s)")
    add("--input-size", type=int, default=8, help="of the cell (%(default)s)")
    add("--chunk", type=int, default=32, help="steps of a chunk (%(default)s)")
    add("--iterations", type=int, default=100, help="of the training (%(default)s)")
    untrained = "y is h of a seeded cell"
    add("--untrained", dest="iterations", action="store_const", const=0, help=untrained)
    add("--turns", type=int, default=31, help="slices of each (%(default)s)")
    add("--drift-steps", type=int, default=10_000, help="0: not measured (%(default)s)")
    add("--json", type=Path, help="also write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
