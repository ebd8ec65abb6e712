"""`python -m benchmarks.peers`: the same model and the same client against what others serve."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks import ROOT
from benchmarks.conditions import conditions
from benchmarks.peers.contestants import BASELINE, CONTESTANTS, WAYS
from benchmarks.peers.measure import Plan, Run, summarise
from benchmarks.peers.report import plot, show, write_json
from benchmarks.peers.stage import Stage
from benchmarks.peers.venvs import VenvError, versions
from benchmarks.peers.verdict import judge
from benchmarks.wire.asked import Times
from benchmarks.wire.network import HIDDEN, Loop, write_network

SHOWN = (  # packages whose versions are reported, of a peer that has them
    *("bentoml", "fastapi", "litserve", "mlserver", "ray"),
    *("numpy", "onnxruntime", "starlette", "torch", "uvicorn"),
)
EPILOG = (
    "Each peer gets an environment of its own under --cache, of the versions in "
    "benchmarks/peers/apps/*/requirements.txt (some 2.5 GB with torch). Nobody else should use the "
    "cores while rates and latencies count; CPU time bears it."
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    plan = _plan(arguments)
    chosen = [CONTESTANTS[name] for name in arguments.contestants]
    begun, load_before = datetime.now(UTC), os.getloadavg()
    network = write_network(arguments.cache / "model", arguments.hidden)
    stage = Stage(arguments.cache, network)
    with Progress(console=Console(stderr=True)) as progress:
        work = progress.add_task("", total=None)

        def tell(what: str) -> None:
            progress.update(work, advance=1, description=what)

        run = Run(stage, Loop(network), plan, chosen, arguments.ways, tell)
        try:
            run.install()
            checked = 0 if arguments.no_checks else len(chosen)
            progress.reset(work, total=run.turns + checked)
            run.measure()
            if not arguments.no_checks:
                run.check()
        finally:
            stage.close()
    findings = run.findings
    for contestant in chosen:
        if contestant.app is not None:
            try:
                where = stage.bin_of(contestant)
            except VenvError:
                continue  # it is in the troubles
            findings.versions[contestant.name] = versions(where, list(SHOWN))
    found = conditions(
        ["bentoml", "onnxruntime", "numpy", "uvicorn", "starlette"],
        cores=os.cpu_count(),
        system=platform.platform(),
        begun=begun.isoformat(timespec="seconds"),
        hidden=arguments.hidden,
        threads=1,
        rounds=plan.rounds,
        seconds=plan.times.closed_s,
        open_seconds=plan.times.open_s,
        load_before=load_before,
        load_after=os.getloadavg(),
    )
    rows = summarise(findings.points, arguments.baseline)
    Console(width=126).print(found)
    verdicts = judge(findings.points)
    show(rows, findings, verdicts, arguments.baseline)
    if arguments.json:
        write_json(arguments.json, rows, findings, verdicts, found)
    if arguments.plot and rows:
        caption = (
            f"{found['cpu']}, {os.cpu_count()} cores, {begun:%Y-%m-%d}, hidden {network.hidden}"
        )
        plot(arguments.plot, rows, arguments.baseline, caption)
    return 0 if rows or findings.losses else 1


def _plan(arguments: argparse.Namespace) -> Plan:
    short = arguments.short
    return Plan(
        rounds=arguments.rounds or (1 if short else 3),
        sessions=tuple(sorted(arguments.sessions or ((16,) if short else (1, 16, 64)))),
        times=Times(
            warm_s=0.2 if short else 0.3,
            closed_s=arguments.seconds or (0.5 if short else 1.0),
            open_s=arguments.seconds or (0.5 if short else 2.0),
        ),
        connections=8 if short else 16,
        requests=4 if short else 8,
        killed_sessions=8 if short else 32,
        kill_after_s=0.5 if short else 1.0,
    )


def _parser() -> argparse.ArgumentParser:
    names = list(CONTESTANTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, epilog=EPILOG
    )
    add = parser.add_argument
    add("--contestants", nargs="+", choices=names, default=names, metavar="NAME", help=str(names))
    add("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY", help=str(list(WAYS)))
    add("--sessions", type=int, nargs="+", help="that ask at a time (1 16 64); of one frame 256")
    add("--rounds", type=int, help="(3)")
    add("--seconds", type=float, help="of each measurement (1, and 2 for latencies)")
    add("--short", action="store_true", help="one round of half seconds, 16 sessions")
    add("--no-checks", action="store_true", help="only speed, not who loses what")
    add("--hidden", type=int, default=HIDDEN, help="size of the LSTM (%(default)s)")
    add("--baseline", choices=names, default=BASELINE, metavar="NAME", help="(%(default)s)")
    add("--cache", type=Path, default=ROOT / ".peers", help="environments and model (%(default)s)")
    add("--json", type=Path, help="also write all figures there")
    add("--plot", type=Path, help="also draw them there, as PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
