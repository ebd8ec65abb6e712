"""`python -m benchmarks.lengths`: what chunks of different lengths cost that wait together.

Ways to run them, on the exported graphs themselves:

    pad     all in one call, padded to the longest
    bucket  a call for each range of lengths, of a factor of four, padded within it
    split   all in one call up to the shortest, then all but those that are done, and so on
    both    buckets as above, each split inside
    step    a call for each step, of those that are not done
    cut     what the service does (`service.pieces`): cut where rows end, if the padding that this
            saves costs more than another call, by the cost that it measures as it loads a model

Figures are us of CPU for each step that somebody asked for, the least of the rounds, and in
brackets the ratio to `bucket`; the ways take turns, round after round. Ordering the rows is part of
`split`, `both`, `step` and `cut`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.wire.network import write_network
from service.artifact import find_artifacts
from service.layout import State
from service.model import Cost, Model
from service.pieces import cut as cut_where_it_pays
from service.pieces import run_pieces
from service.runtime import Runtime
from service.self_test import repeat
from service.wire import Array

LONGEST = 128  # as long as a slice of the batcher
LEAST_S = 0.05  # of CPU time, of each way in a round

Way = Callable[[Runtime, Array, State, Array], None]


def pad(runtime: Runtime, x: Array, state: State, lengths: Array) -> None:
    runtime.run(np.ascontiguousarray(x[:, : lengths.max()]), state, lengths)


def bucket(runtime: Runtime, x: Array, state: State, lengths: Array) -> None:
    for rows in _buckets(lengths):
        pad(runtime, x[rows], {name: value[rows] for name, value in state.items()}, lengths[rows])


def split(runtime: Runtime, x: Array, state: State, lengths: Array) -> None:
    _in_pieces(runtime, x, state, lengths, np.unique(lengths))


def both(runtime: Runtime, x: Array, state: State, lengths: Array) -> None:
    for rows in _buckets(lengths):
        split(runtime, x[rows], {name: value[rows] for name, value in state.items()}, lengths[rows])


def step(runtime: Runtime, x: Array, state: State, lengths: Array) -> None:
    _in_pieces(runtime, x, state, lengths, np.arange(1, lengths.max() + 1))


def cutter(cost: Cost) -> Way:
    """As `Model.run` does, by the cost of this model on this machine."""

    def cut(runtime: Runtime, x: Array, state: State, lengths: Array) -> None:
        order = np.argsort(-lengths, kind="stable")
        x, lengths = x[order, : lengths.max()], lengths[order]
        state = {name: value[order] for name, value in state.items()}
        pieces = cut_where_it_pays(lengths.tolist(), cost.per_row_s, cost.base_s)
        run_pieces(runtime.run, x, state, lengths, pieces)

    return cut


WAYS: tuple[Way, ...] = (bucket, pad, split, both, step)


def _buckets(lengths: Array) -> Iterator[Array]:
    kinds = np.array([int(length).bit_length() // 2 for length in lengths])
    for kind in np.unique(kinds):
        yield np.flatnonzero(kinds == kind)


def _in_pieces(runtime: Runtime, x: Array, state: State, lengths: Array, ends: Array) -> None:
    """The longest rows first, so that those of a piece are a prefix of the arrays: no copies."""
    order = np.argsort(-lengths, kind="stable")
    x, lengths = x[order], lengths[order]
    now = {name: value[order] for name, value in state.items()}
    done = 0
    for end in ends.tolist():
        rows = int(np.count_nonzero(lengths >= end))
        now = {name: value[:rows] for name, value in now.items()}
        _, now = runtime.run(np.ascontiguousarray(x[:rows, done:end]), now)
        done = end


def mixes(rows: int) -> dict[str, Array]:
    """name -> (B,) int64 lengths of chunks that wait together."""
    rng = np.random.default_rng(0)
    return {
        "2 to 128": rng.integers(2, LONGEST + 1, rows),
        "2 to 128, short ones more often": np.exp(
            rng.uniform(np.log(2), np.log(LONGEST + 1), rows)
        ).astype(np.int64),
        "8 or 100": rng.choice([8, 100], rows),
        "4 to 16": rng.integers(4, 17, rows),
        "1, and one of 128": np.array([LONGEST, *[1] * (rows - 1)]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    console = Console(width=140)
    console.print(conditions(["numpy", "onnxruntime"], cores=os.cpu_count()))
    for hidden in arguments.hidden:
        (path,) = find_artifacts(write_network(arguments.cache, hidden).artifacts)
        model = Model.load(path, arguments.variant)
        ways = {way.__name__: way for way in (*WAYS, cutter(model.cost))}
        table = Table(title=f"hidden {hidden}, us of CPU a step")
        table.add_column("lengths")
        table.add_column("rows", justify="right")
        for way in ways:
            table.add_column(way, justify="right")
        for rows in arguments.rows:
            for name, lengths in mixes(rows).items():
                found = _measure(model, ways, lengths, arguments.rounds)
                base = found["bucket"]
                cells = (f"{us:.2f} ({us / base:.2f})" for us in found.values())
                table.add_row(name, str(rows), *cells)
        console.print(table)
    return 0


def _measure(
    model: Model, ways: Mapping[str, Way], lengths: Array, rounds: int
) -> dict[str, float]:
    """way -> us of CPU for each of the steps."""
    rng = np.random.default_rng(1)
    artifact, runtime = model.artifact, model.runtime
    tail = artifact.manifest.ports.x.shape[2:]
    x = rng.uniform(-1, 1, (len(lengths), LONGEST, *map(int, tail))).astype(np.float32)
    state = repeat(artifact.initial, len(lengths))
    steps = int(lengths.sum())
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            begun, calls = time.process_time(), 0
            while calls == 0 or time.process_time() - begun < LEAST_S:
                way(runtime, x, state, lengths)
                calls += 1
            us = (time.process_time() - begun) * 1e6 / calls / steps
            found[name] = min(found[name], us)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lengths",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--hidden", type=int, nargs="+", default=[32, 64, 128, 256], help="sizes (%(default)s)")
    add("--rows", type=int, nargs="+", default=[16, 64], help="chunks that wait (%(default)s)")
    add("--variant", default="onnx-fp32", help="of the exported model (%(default)s)")
    add("--cache", type=Path, default=Path(".peers"), help="where it is kept (%(default)s)")
    add("--rounds", type=int, default=5, help="turns of each way (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
