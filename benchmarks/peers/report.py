"""What was found, as tables in the terminal, as JSON and as a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks.peers.contestants import CAROUSEL
from benchmarks.peers.measure import Findings, Row
from benchmarks.peers.verdict import Verdict

NOTE = (
    "CPU is user and system time of all of a server's processes over the steps that it answered; "
    "p50 and p99 are of an open loop at half of the rate reached, from when a step was due. "
    "Where others use the cores too, rates and latencies are of that moment, CPU is not."
)


def show(
    rows: Sequence[Row], findings: Findings, verdicts: Sequence[Verdict], baseline: str
) -> None:
    """The tables, and who could not take part."""
    console = Console(width=126)
    if rows:
        console.print(_speed(rows, baseline))
        console.print(NOTE)
    if findings.losses:
        console.print(_losses(findings))
    if verdicts:
        console.print(_verdicts(verdicts))
    for who, why in findings.troubles.items():
        console.print(f"[bold]{who}[/bold] could not be measured: ", end="")
        console.print(why, markup=False, highlight=False)


def _speed(rows: Sequence[Row], baseline: str) -> Table:
    table = Table(title=f"one step; ratios are to `{baseline}`, unary, of the same round")
    for title in ("server", "asked by"):
        table.add_column(title, no_wrap=True)
    for title in ("sessions", "CPU us", "ratio", "steps/s", "p50 ms", "p99 ms", "client's core"):
        table.add_column(title, justify="right")
    last = None
    for row in rows:
        if last is not None and last != row.contestant:
            table.add_section()
        last = row.contestant
        table.add_row(
            row.contestant,
            row.way,
            str(row.sessions),
            f"{row.cpu_us:,.0f}" if row.cpu_us >= 10 else f"{row.cpu_us:.1f}",
            "" if row.ratio is None else _ratio(row.ratio),
            f"{row.steps_per_s:,.0f}",
            "" if row.p50_ms is None else f"{row.p50_ms:.2f}",
            "" if row.p99_ms is None else f"{row.p99_ms:.2f}",
            f"{row.client_share:.0%}",
        )
    return table


def _ratio(ratio: float) -> str:
    """1.25, 1/5.2, 1/61."""
    if ratio >= 0.25:
        return f"{ratio:.2f}"
    return f"1/{1 / ratio:.1f}" if ratio >= 0.1 else f"1/{1 / ratio:.0f}"


def _losses(findings: Findings) -> Table:
    table = Table(title="who loses what")
    table.add_column("server", no_wrap=True)
    for title in (
        "one session from many connections: wrong states",
        "a step sent again after a lost reply counts",
        "sessions lost by kill -9",
        "steps that neighbours changed",
    ):
        table.add_column(title)
    for one in findings.losses:
        table.add_row(one.contestant, one.shared, one.retried, one.killed, one.neighbours)
    return table


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title=f"what was aimed at for `{CAROUSEL}`, and what was measured")
    table.add_column("asked by", no_wrap=True)
    table.add_column("sessions", justify="right", no_wrap=True)
    table.add_column("what", no_wrap=True)
    for title in ("aim", "measured", "rounds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in verdicts:
        aim = f"{'>=' if one.at_least else '<='} {_ratio(one.limit)}"
        rounds = f"{_ratio(one.smallest)} to {_ratio(one.greatest)}"
        row = (one.way, str(one.sessions), one.what, aim, _ratio(one.median), rounds, str(one))
        table.add_row(*row, style=None if one.is_met else "red")
    return table


def write_json(
    path: Path,
    rows: Sequence[Row],
    findings: Findings,
    verdicts: Sequence[Verdict],
    found: Mapping[str, object],
) -> None:
    """The conditions, the medians, the verdicts, every point, the losses and the troubles."""
    report = {
        "conditions": found,
        "rows": [asdict(row) for row in rows],
        "verdicts": [{**asdict(one), "verdict": str(one)} for one in verdicts],
        **asdict(findings),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


def plot(path: Path, rows: Sequence[Row], baseline: str, caption: str) -> None:
    """CPU of a step by the greatest number of sessions, the costliest at the bottom (PNG)."""
    most = max(row.sessions for row in rows)
    shown = sorted((row for row in rows if row.sessions == most), key=lambda row: -row.cpu_us)
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(shown) + 1.6))
    colours = ["tab:blue" if row.contestant.startswith("carousel") else "0.65" for row in shown]
    bars = axes.barh(
        [f"{row.contestant}: {row.way}" for row in shown],
        [row.cpu_us for row in shown],
        color=colours,
    )
    labels = [
        f" {row.cpu_us:,.0f} us" + ("" if row.ratio is None else f"  ({_ratio(row.ratio)})")
        for row in shown
    ]
    axes.bar_label(bars, labels, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel(
        f"server CPU time of a step, {most} sessions, us, log scale (ratio to {baseline})"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, 0.005, caption, fontsize=6, color="0.4")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)
