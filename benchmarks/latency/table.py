"""What was found, as tables and sentences in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.latency.advisor import Advice
from benchmarks.latency.point import IN_PROCESS, WIRE, Findings, Point
from benchmarks.latency.standing import Target

WIDTH = 132
NOTE = (
    "p50, p90, p99 and steps/s are wall-clock times, of this moment where others use the cores "
    "too; CPU is user and system time of a step of one row, and bears it. Ratios are of CPU times "
    "of the same rounds."
)


def show(findings: Findings, found: Sequence[Target], advice: Sequence[Advice]) -> None:
    """Tables by part, then who is absent, the targets and the advice."""
    console = Console(width=WIDTH)
    for part, title in ((IN_PROCESS, "in process"), (WIRE, "over the wire")):
        points = [p for p in findings.points if p.part == part]
        if points:
            console.print(_table(points, title))
    console.print(NOTE)
    for who, why in findings.absent.items():
        console.print(f"[bold]{who}[/bold] did not take part: ", end="")
        console.print(why, markup=False, highlight=False)
    for target in found:
        console.print(f"{'✓' if target.met == target.of else '✗'} {target}", highlight=False)
    if advice:
        console.print("\n[bold]What would buy what on this machine[/bold]")
    for one in advice:
        console.print(f"- {one.text}", highlight=False)


def _table(points: Sequence[Point], title: str) -> Table:
    over_wire = points[0].part == WIRE
    table = Table(title=title)
    table.add_column("model", no_wrap=True)
    if over_wire:
        table.add_column("store", no_wrap=True)
        table.add_column("asked by", no_wrap=True)
    for column in ("sessions", "at") if over_wire else ("rows", "steps"):
        table.add_column(column, justify="right")
    if not over_wire:
        table.add_column("contestant", no_wrap=True)
    for column in ("p50 us", "p90 us", "p99 us", "steps/s", "CPU us", "ratio"):
        table.add_column(column, justify="right")
    last = None
    for p in points:
        cell = (p.model, p.store, p.contestant) if over_wire else (p.model, p.rows, p.steps)
        if last not in (None, cell):
            table.add_section()
        last = cell
        table.add_row(*_row(p, over_wire))
    return table


def _row(p: Point, over_wire: bool) -> list[str]:
    if over_wire:  # a step a request; without a rate a closed loop
        rate = "" if p.asked_per_s is None else f"{p.asked_per_s:,.0f}/s"
        place = [p.model, p.store, p.contestant, f"{p.rows:,}", rate]
    else:
        place = [p.model, f"{p.rows:,}", f"{p.steps:,}", p.contestant]
    return [
        *place,
        *(figure(value) for value in (p.p50_us, p.p90_us, p.p99_us)),
        f"{p.steps_per_s:,.0f}",
        figure(p.cpu_us),
        "" if p.ratio is None else f"{p.ratio:.2f}",
    ]


def figure(value: float) -> str:
    """Microseconds with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
