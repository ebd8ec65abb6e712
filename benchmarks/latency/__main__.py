"""`python -m benchmarks.latency`: what a step takes, in process and over the wire.

In one run, in turns: every variant of models made for the purpose and of your own artifacts, torch
eager, TorchScript, stock ONNX Runtime (float and int8), OpenVINO where it is installed, and the
floor, at several batch and hidden sizes. Then a real `bentoml serve` of the LSTM nearest to hidden
128 (where none is made, and with --full, of your own artifacts too), asked over HTTP, WebSocket
and gRPC. Then what a change would buy on this machine, in words.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.conditions import conditions
from benchmarks.latency import wire
from benchmarks.latency.grid import FULL, SHORT, Grid
from benchmarks.latency.in_process import InProcess, Plan
from benchmarks.latency.made import ROOT, VARIANTS, Size
from benchmarks.latency.part import Part
from benchmarks.latency.point import Findings
from benchmarks.latency.report import write_report
from benchmarks.latency.wire import Wire
from benchmarks.wire.asked import Times
from export.errors import ExportError
from export.exporter import ALL_VARIANTS
from service.artifact import Artifact, find_artifacts, newest_artifacts
from service.errors import CarouselError

FOLDER = ROOT / ".latency"
WAYS_HELP = f"{wire.WAYS} (all but v2 and v2 binary, which tritonclient speaks)"
PARTS = ("in-process", "wire")
PACKAGES = ("onnxruntime", "torch", "numpy")
EPILOG = (
    "Models are exported in the first run, some ten seconds each, and kept under --cache. Nobody "
    "else should use the cores while latencies and rates count; CPU time bears it."
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    grid = _grid(arguments)
    begun, load_before = datetime.now(UTC), os.getloadavg()
    findings = Findings()
    console = Console(stderr=True)
    try:
        parts = _parts(arguments, grid)
        # Not refreshed by a thread of its own, whose CPU time would be ours.
        with Progress(console=console, auto_refresh=False) as progress:
            work = progress.add_task("", total=sum(part.turns for part in parts))

            def tell(what: str) -> None:
                progress.update(work, description=what)
                progress.advance(work)
                progress.refresh()

            for part in parts:
                part.measure(findings, tell)
    except (CarouselError, ExportError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    if not findings.points:
        print(
            f"latency: nothing to measure: {arguments.artifacts} holds no artifact, and no "
            "--hidden; run `make demos`, or give --artifacts",
            file=sys.stderr,
        )
        return 1
    optional = ["openvino"] if find_spec("openvino") else []
    found = conditions(
        [*PACKAGES, *optional],
        cores=os.cpu_count(),
        system=platform.platform(),
        begun=f"{begun:%Y-%m-%d %H:%M} UTC",
        threads=arguments.threads,
        rounds=grid.rounds,
        slice_ms=grid.slice_ms,
        load_before=", ".join(f"{load:.1f}" for load in load_before),
    )
    page = write_report(findings, found, arguments.out)
    console.print(f"wrote {page}, latency.json and PNGs beside it", highlight=False)
    return 0


def _parts(arguments: argparse.Namespace, grid: Grid) -> list[Part]:
    """
    Raises:
        CarouselError: an artifact cannot be read.
    """
    paths = newest_artifacts(find_artifacts(arguments.artifacts))
    plan = Plan(
        sizes=grid.made(),
        artifacts=[Artifact.load(path) for path in paths],
        own_cells=grid.own(),
        variants=arguments.variants,
        rounds=grid.rounds,
        slice_s=grid.slice_ms / 1e3,
        threads=arguments.threads,
        cache=arguments.cache,
    )
    parts: dict[str, Part] = {
        "in-process": InProcess(plan),
        "wire": Wire(_wire_plan(arguments, grid, plan)),
    }
    return [part for name, part in parts.items() if name in arguments.parts]


def _wire_plan(arguments: argparse.Namespace, grid: Grid, plan: Plan) -> wire.Plan:
    seconds = grid.wire_seconds
    return wire.Plan(
        sizes=[] if grid.typical is None else [Size("lstm", grid.typical)],
        artifacts=plan.artifacts if arguments.full or grid.typical is None else [],
        ways=arguments.ways,
        sessions=grid.sessions,
        stores=arguments.stores,
        shares=arguments.share,
        rates=arguments.rate,
        rounds=grid.wire_rounds,
        times=Times(warm_s=0.2, closed_s=seconds, open_s=seconds),
        cache=plan.cache,
    )


def _grid(arguments: argparse.Namespace) -> Grid:
    given = {
        name: value
        for name in (field.name for field in fields(Grid))
        if (value := getattr(arguments, name)) is not None
    }
    return replace(FULL if arguments.full else SHORT, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description=__doc__, epilog=EPILOG
    )
    add = parser.add_argument

    def either(name: str) -> str:
        short, full = (getattr(grid, name) for grid in (SHORT, FULL))
        if isinstance(short, tuple):
            short, full = (" ".join(map(str, sizes)) for sizes in (short, full))
        return f"({short}; --full: {full})"

    add("--full", action="store_true", help="the whole grid, some minutes")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="(%(default)s)")
    add("--hidden", type=int, nargs="*", help=f"of made LSTMs; none: no model {either('hidden')}")
    add("--batch", type=int, nargs="+", help=f"rows of a call {either('batch')}")
    add("--chunk", type=int, nargs="*", help=f"steps of a chunk {either('chunk')}")
    add("--rounds", type=int, help=f"turns of each contestant {either('rounds')}")
    add("--slice-ms", type=float, help=f"of a turn {either('slice_ms')}")
    add(
        "--variants",
        nargs="+",
        choices=ALL_VARIANTS,
        default=list(VARIANTS),
        help=f"of made models {VARIANTS}",
    )
    add("--sessions", type=int, nargs="+", help=f"that ask over the wire {either('sessions')}")
    add(
        "--ways",
        nargs="+",
        choices=wire.WAYS,
        default=wire.USUAL_WAYS,
        metavar="WAY",
        help=f"to ask over the wire: {WAYS_HELP}",
    )
    add(
        "--stores",
        nargs="+",
        choices=wire.STORES,
        default=wire.STORES,
        help="that keep the sessions (%(default)s)",
    )
    add(
        "--share",
        type=float,
        nargs="*",
        default=[wire.HALF],
        help="of the rate that a way reached: an open loop at each (%(default)s)",
    )
    add("--rate", type=float, nargs="*", default=[], help="steps a second: an open loop at each")
    add("--wire-rounds", type=int, help=f"servers of each store {either('wire_rounds')}")
    add("--wire-seconds", type=float, help=f"of each loop {either('wire_seconds')}")
    add("--threads", type=int, default=1, help="of each engine (%(default)s)")
    add(
        "--artifacts",
        type=Path,
        default=Path("artifacts"),
        help="your own models: the newest version of each there (%(default)s)",
    )
    add("--cache", type=Path, default=FOLDER / "models", help="made models (%(default)s)")
    add("--out", type=Path, default=FOLDER / "report", help="where the report goes (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
