"""`python -m benchmarks.kernels`: our runtime beside stock ONNX Runtime and the floor, one thread.

For an nn.LSTM with a linear head, untrained, of several widths: the time of one call of `Runtime`,
the class that serves, on an artifact that `export` wrote and proved: onnx-fp32 and
onnx-int8-rowwise. Beside it stock ONNX Runtime on the same weights, fp32 and dynamic int8
(`benchmarks.stock`), and the floor (`benchmarks.floor`): the matrix product alone, or at batch 1,
one step, reading the weights once.

A call takes x and the states as arrays and gives y and the new states as arrays, for all of them.
They take turns (`benchmarks.turns`), and what counts is the thread's CPU time. A ratio is the
median over the turns; of the floor's ways the fastest counts. Stock int8 runs all rows in one call:
faster than it can be served, as a row then feels its neighbours.

Targets: fp32 no slower than stock anywhere; at least 1.2 times its steps a second wherever it
stands at more than 1.4 times the floor; within 2 times the floor from batch 64, hidden 128 on.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.conditions import conditions
from benchmarks.floor import floor_calls
from benchmarks.stock import forecaster, open_stock, stock_call, write_stock, write_stock_int8
from benchmarks.turns import take_turns
from export.exporter import export
from export.source import Source
from service.artifact import Artifact
from service.manifest import VariantName
from service.pipeline import Pipeline
from service.runtime import Runtime

Array = np.ndarray
Call = Callable[[], object]
OURS: tuple[VariantName, ...] = ("onnx-fp32", "onnx-int8-rowwise")
STOCK, STOCK_INT8 = "stock fp32", "stock int8"
SLOWER, SLACK, GAIN, NEAR = 1.0, 1.4, 1.2, 2.0  # the targets, as ratios
WIDE_BATCH, WIDE_HIDDEN = 64, 128
EXAMPLE_STEPS, PROOF_STEPS = 1_000, 200  # of the export: the weights matter here, not the proof
PACKAGES = ("onnxruntime", "torch", "numpy")


@dataclass(frozen=True)
class Point:
    """One width at one batch size and chunk length."""

    hidden: int
    batch: int
    steps: int
    us: Mapping[str, float]  # of a call; the floor is among them
    to_stock: Mapping[str, float]  # the time as a share of stock fp32's, or int8 of int8's
    to_floor: Mapping[str, float]

    @property
    def missed(self) -> list[str]:
        """The targets that fp32 misses here."""
        ours, stock = self.to_stock[OURS[0]], self.to_floor[STOCK]
        found = []
        if ours > SLOWER:
            found.append(f"{ours:.2f} of stock's time")
        elif stock > SLACK and ours * GAIN > 1:
            found.append(f"{1 / ours:.2f}x stock's steps/s, stock at {stock:.2f} floors")
        is_wide = self.batch >= WIDE_BATCH and self.hidden >= WIDE_HIDDEN
        if is_wide and self.to_floor[OURS[0]] > NEAR:
            found.append(f"{self.to_floor[OURS[0]]:.2f} floors")
        return found


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    points = []
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        for hidden in track(arguments.hidden, "measuring", console=Console(stderr=True)):
            model = Contestants(Path(folder), arguments.input_size, hidden)
            for steps in arguments.steps:
                for batch in arguments.batch:
                    points.append(model.measure(batch, steps, arguments.seconds))
    found = conditions(PACKAGES, threads=1, input_size=arguments.input_size)
    _show(points, found)
    if arguments.json:
        report = {
            "conditions": found,
            "points": [{**asdict(p), "missed": p.missed} for p in points],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


class Contestants:
    """One network in every form, loaded."""

    def __init__(self, folder: Path, input_size: int, hidden: int) -> None:
        """Export it into `folder`, and load what came of it."""
        self._input_size, self._hidden = input_size, hidden
        fp32, int8 = (folder / f"stock-{hidden}{kind}.onnx" for kind in ("", "-int8"))
        module = forecaster(input_size, hidden)
        write_stock(module, module.lstm, fp32)
        write_stock_int8(fp32, int8)
        self._stock = {STOCK: open_stock(fp32), STOCK_INT8: open_stock(int8)}
        artifact = write_artifact(folder, input_size, hidden)
        self._ours = {variant: Runtime(artifact, variant) for variant in OURS}

    def measure(self, batch: int, steps: int, seconds: float) -> Point:
        """Time one call of everybody, on random input."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, steps, self._input_size), np.float32)
        h, c = rng.uniform(-1, 1, (2, 1, batch, self._hidden)).astype(np.float32)
        calls: dict[str, Call] = {n: stock_call(s, x, h, c) for n, s in self._stock.items()}
        state = {"h": h.reshape(batch, 1, -1), "c": c.reshape(batch, 1, -1)}
        calls |= {n: _bind(runtime, x, state) for n, runtime in self._ours.items()}
        floors = floor_calls(batch, self._input_size, self._hidden, steps)
        everybody = [*calls.values(), *floors.values()]
        times = take_turns(everybody, seconds)  # (turns, contestants)
        floor = times[:, len(calls) :]
        fastest = floor[:, np.median(floor, axis=0).argmin()]
        of = {name: times[:, k] for k, name in enumerate(calls)}
        by = {n: of[STOCK_INT8 if "int8" in n else STOCK] for n in calls}
        return Point(
            self._hidden,
            batch,
            steps,
            {name: _median(t) * 1e6 for name, t in {**of, "floor": fastest}.items()},
            {name: _median(t / by[name]) for name, t in of.items()},
            {name: _median(t / fastest) for name, t in of.items()},
        )


def write_artifact(folder: Path, input_size: int, hidden: int) -> Artifact:
    """What `export` makes of `benchmarks.stock.forecaster`, proven on a short piece."""
    example = np.random.default_rng(0).uniform(-1, 1, (1, EXAMPLE_STEPS, input_size))
    module = forecaster(input_size, hidden).requires_grad_(False)
    spec = "benchmarks.stock:forecaster"
    source = Source(spec, module, "0" * 64, example, Pipeline())
    exported = export(
        source,
        f"lstm-{hidden}",
        folder,
        variants=OURS,
        steps=PROOF_STEPS,
        isolation_trials=2,
        max_drift=1.0,  # of int8: what is measured here is time
    )
    return exported.artifact


def _bind(runtime: Runtime, x: Array, state: dict[str, Array]) -> Call:
    return lambda: runtime.run(x, state)


def _median(values: Array) -> float:
    return float(np.median(values))


def _show(points: Sequence[Point], found: object) -> None:
    console = Console(width=100)
    for steps in sorted({p.steps for p in points}):
        title = f"{steps} step{'s' if steps > 1 else ''} a call, CPU time; floors, then / stock"
        table = Table(title=title)
        names = ("hidden", "batch", "floor us", "stock", "fp32", "/ stock", "int8", "/ int8")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("fp32 misses")
        fp32, rowwise = OURS
        for p in points:
            if p.steps == steps:
                shares = [p.to_floor[STOCK], p.to_floor[fp32], p.to_stock[fp32]]
                shares += [p.to_floor[rowwise], p.to_stock[rowwise]]
                words = [str(p.hidden), str(p.batch), f"{p.us['floor']:,.1f}"]
                table.add_row(*words, *(f"{v:.2f}" for v in shares), "; ".join(p.missed))
        console.print(table)
    console.print(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    sizes, batches = [32, 64, 128, 256, 512], [1, 16, 64, 256, 1024]
    add("--hidden", type=int, nargs="+", default=sizes, help="widths (%(default)s)")
    add("--batch", type=int, nargs="+", default=batches, help="rows a call (%(default)s)")
    add("--steps", type=int, nargs="+", default=[1], help="of a call (%(default)s)")
    add("--input-size", type=int, default=8, help="features of x (%(default)s)")
    add("--seconds", type=float, default=1.0, help="for each point, about (%(default)s)")
    add("--json", type=Path, help="also write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
