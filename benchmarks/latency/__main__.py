"""`python -m benchmarks.latency`: the latency of one step, in process, of every variant.

Every variant of every artifact, and torch eager as the module was trained, take turns in one
run: round after round, each for a slice of calls, so that a machine that slows down slows all of
them. What counts is the ratio to torch eager of the same round; absolute times are of the day.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.conditions import conditions
from service.artifact import Artifact, find_artifacts
from service.errors import CarouselError
from service.layout import State
from service.runtime import Runtime

Array = np.ndarray
EAGER = "torch eager"
PACKAGES = ("torch", "onnxruntime", "numpy")

Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One contestant at one batch size."""

    model: str
    contestant: str
    batch: int
    p50_us: float
    p90_us: float
    p99_us: float
    steps_per_s: float  # of all rows together
    ratio: float  # of the time to torch eager's, median over the rounds


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        artifacts = [Artifact.load(path) for path in find_artifacts(arguments.artifacts)]
    except CarouselError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    if not artifacts:
        print(
            f"latency: {arguments.artifacts} holds no artifact; run `make demos`, or --artifacts",
            file=sys.stderr,
        )
        return 1
    rows: list[Row] = []
    work = [(artifact, batch) for artifact in artifacts for batch in arguments.batch]
    for artifact, batch in track(work, "measuring", console=Console(stderr=True)):
        rows += measure(artifact, batch, arguments.rounds, arguments.calls, arguments.threads)
    _show(rows)
    if arguments.json:
        found = conditions(
            PACKAGES,
            rounds=arguments.rounds,
            calls=arguments.calls,
            threads=arguments.threads,
        )
        report = {"conditions": found, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(artifact: Artifact, batch: int, rounds: int, calls: int, threads: int) -> list[Row]:
    """Time one step of `batch` rows for every contestant, in turns."""
    golden = artifact.golden()
    rows = np.resize(golden.x[:, 0], (batch, 1, *golden.x.shape[2:]))
    state = {n: np.repeat(v, batch, axis=0) for n, v in artifact.initial.items()}
    contestants: dict[str, Step] = {}
    eager = _eager(artifact, rows, state)
    if eager:
        contestants[EAGER] = eager
    for variant in artifact.manifest.variants:
        contestants[variant] = _variant(Runtime(artifact, variant, threads), rows, state)
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for step in contestants.values():
        _slice(step, calls)  # warm-up
    for _ in range(rounds):
        for name, step in contestants.items():
            times[name].append(_slice(step, calls))
    base = times.get(EAGER, times[next(iter(times))])
    return [
        _row(artifact.manifest.name, name, batch, slices, base) for name, slices in times.items()
    ]


def _variant(runtime: Runtime, x: Array, state: State) -> Step:
    return lambda: runtime.run(x, state)


def _eager(artifact: Artifact, x: Array, state: State) -> Step | None:
    """The module as the user built it, if it can be imported here and is called with a state."""
    where, _, factory = artifact.manifest.provenance.module.rpartition(":")
    if not artifact.manifest.provenance.call.startswith("X, (h, c)=None -> Y, (h, c)"):
        return None
    try:
        module = getattr(import_module(where), factory)().eval()
    except (ImportError, AttributeError):
        return None
    layers_first = len(artifact.manifest.ports.states[0].shape) == 3
    tensors = [torch.from_numpy(state[name]) for name in ("h", "c")]
    h, c = (t.transpose(0, 1).contiguous() if layers_first else t for t in tensors)
    xt = torch.from_numpy(x)

    def step() -> object:
        with torch.inference_mode():
            return module(xt, (h, c))

    return step


def _slice(step: Step, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def _row(
    model: str, name: str, batch: int, slices: list[list[float]], base: list[list[float]]
) -> Row:
    p50, p90, p99 = np.percentile(np.concatenate(slices), [50, 90, 99]) * 1e6
    ratio = median(median(a) / median(b) for a, b in zip(slices, base, strict=True))
    return Row(model, name, batch, p50, p90, p99, batch * 1e6 / p50, ratio)


def _show(rows: Sequence[Row]) -> None:
    table = Table(title="one step, in process")
    for column in ("model", "contestant"):
        table.add_column(column, no_wrap=True)
    for column in ("batch", "p50 us", "p90 us", "p99 us", "steps/s", "time / eager"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{v:,.0f}" for v in (row.p50_us, row.p90_us, row.p99_us, row.steps_per_s))
        table.add_row(row.model, row.contestant, str(row.batch), *numbers, f"{row.ratio:.2f}")
    Console(width=100).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    add = parser.add_argument
    add("--artifacts", type=Path, default=Path("artifacts"), help="where they are (%(default)s)")
    add("--batch", type=int, nargs="+", default=[1, 16, 64], help="rows a call (%(default)s)")
    add("--rounds", type=int, default=10, help="turns of each contestant (%(default)s)")
    add("--calls", type=int, default=50, help="calls in a turn (%(default)s)")
    add("--threads", type=int, default=1, help="of each engine (%(default)s)")
    add("--json", type=Path, help="also write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
