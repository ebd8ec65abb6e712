"""`python -m benchmarks.latency`: what a step takes, in process and over the wire.

In one run, in turns: every variant of models made for the purpose and of your own artifacts, torch
eager, TorchScript, stock ONNX Runtime (float and int8), OpenVINO where it is installed, and the
floor, at several batch and hidden sizes. Then what a change would buy on this machine, in words.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.conditions import conditions
from benchmarks.latency.grid import FULL, SHORT, Grid
from benchmarks.latency.in_process import InProcess, Plan
from benchmarks.latency.made import ROOT, VARIANTS
from benchmarks.latency.part import Part
from benchmarks.latency.point import Findings
from benchmarks.latency.report import write_report
from export.errors import ExportError
from export.exporter import ALL_VARIANTS
from service.artifact import Artifact, find_artifacts, newest_artifacts
from service.errors import CarouselError

FOLDER = ROOT / ".latency"
PARTS = ("in-process",)
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
    return [InProcess(plan)] if "in-process" in arguments.parts else []


def _grid(arguments: argparse.Namespace) -> Grid:
    given = {
        name: value
        for name in ("hidden", "batch", "chunk", "rounds", "slice_ms")
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
