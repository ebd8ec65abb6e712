"""`latency.html`: one file without scripts or network, pictures inside, what counts first.

Text and style stand in `page.html` and `page.css`, after the style of export's parity page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from benchmarks.latency.advisor import ROWWISE, SERVED, Advice
from benchmarks.latency.contestants import EAGER, FLOORS, STOCK, STOCK_INT8
from benchmarks.latency.figures import LOOKS, Look, Picture
from benchmarks.latency.point import IN_PROCESS, WIRE, Findings, Point
from benchmarks.latency.standing import Target
from benchmarks.latency.table import figure
from export.reporting import page as parity
from export.reporting.words import join

HERE = Path(__file__).parent
FASTER, SLOWER = 0.97, 1.03  # ratios between them are no difference


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `kind` is its class in the style sheet."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Grid:
    """Ratios of one contestant to another: a row for each model, a column for each batch."""

    title: str
    columns: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Entry:
    """A line of a legend."""

    name: str
    look: Look


def as_page(
    findings: Findings,
    conditions: Mapping[str, object],
    found: Sequence[Target],
    advice: Sequence[Advice],
    drawn: Sequence[Picture],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    inside, wire = ([p for p in drawn if p.is_wire is is_wire] for is_wire in (False, True))
    topics: dict[str, list[str]] = {}
    for one in advice:
        topics.setdefault(one.topic, []).append(one.text)
    styles = (parity.HERE / "page.css", HERE / "page.css")
    return environment.get_template("page.html").render(
        style=Markup("".join(path.read_text(encoding="utf-8") for path in styles)),
        headline=headline(findings.points),
        machine=conditions["cpu"],
        date=conditions["begun"],
        targets=found,
        advice=topics,
        pictures=_section(inside),
        wire=_section(wire),
        grids=grids(findings.points),
        points=[(title, _columns(part), rows) for title, part, rows in _parts(findings.points)],
        absent=findings.absent,
        conditions=conditions,
    )


def _section(drawn: Sequence[Picture]) -> dict[str, object]:
    named = {name for picture in drawn for name in picture.contestants}
    return {
        "legend": [Entry(name, look) for name, look in LOOKS.items() if name in named],
        "figures": [(p.title, Markup(p.svg()), p.caption) for p in drawn],
    }


def headline(points: Sequence[Point]) -> str:
    """What one step takes, of the typical model, alone and in company; next to what else."""
    inside = [p for p in points if p.part == IN_PROCESS and p.steps == 1]
    alone = [p for p in inside if p.contestant == SERVED and p.rows == 1]
    if not alone:
        return ""
    shown = next((p for p in alone if p.model == "lstm-128"), alone[0])
    beside = {(p.contestant, p.rows): p for p in inside if p.model == shown.model}
    text = (
        f"One step of {shown.model} as {SERVED}: p50 {figure(shown.p50_us)} us, "
        f"p99 {figure(shown.p99_us)} us."
    )
    for peer in (STOCK, EAGER):
        ratios = [
            f"{_quotient(p, other):.2f} at batch {rows}"
            for (who, rows), p in sorted(beside.items(), key=lambda item: item[0][1])
            if who == SERVED and (other := beside.get((peer, rows))) is not None
        ]
        if ratios:
            text += f" Its CPU time over that of {peer}: {join(ratios)}."
    return text


def grids(points: Sequence[Point]) -> list[Grid]:
    """CPU time of Carousel's variants as ratios to what a user would pick instead."""
    pairs = ((SERVED, STOCK), (ROWWISE, STOCK_INT8), (ROWWISE, SERVED), (SERVED, FLOORS[0]))
    found = []
    for ours, theirs in pairs:
        ratios: dict[str, dict[int, float]] = {}
        of = {
            (p.model, p.rows, p.contestant): p
            for p in points
            if p.part == IN_PROCESS and p.steps == 1
        }
        for (model, rows, who), p in of.items():
            other = of.get((model, rows, theirs))
            if who == ours and other is not None:
                ratios.setdefault(model, {})[rows] = _quotient(p, other)
        batches = sorted({rows for row in ratios.values() for rows in row})
        if ratios:
            columns = [Cell("model"), *(Cell(f"batch {rows}", "n") for rows in batches)]
            body = [
                [Cell(model, "name"), *(_ratio(row.get(rows), theirs) for rows in batches)]
                for model, row in ratios.items()
            ]
            found.append(Grid(f"{ours} / {theirs}", columns, body))
    return found


def _quotient(p: Point, other: Point) -> float:
    """Of their CPU times; by way of their cell's baseline, if any: so rounds count, not medians."""
    if p.ratio is None or not other.ratio:
        return p.cpu_us / other.cpu_us
    return p.ratio / other.ratio


def _ratio(value: float | None, theirs: str) -> Cell:
    if value is None:
        return Cell("", "n")
    kind = "good" if value < FASTER else "bad" if value > SLOWER else ""
    return Cell(f"{value:.2f}", "n" if theirs in FLOORS else f"n {kind}".strip())


def _parts(points: Sequence[Point]) -> list[tuple[str, str, list[list[Cell]]]]:
    found = []
    for part, title in ((IN_PROCESS, "In process"), (WIRE, "Over the wire")):
        rows = [_row(p) for p in points if p.part == part]
        if rows:
            found.append((title, part, rows))
    return found


def _columns(part: str) -> list[Cell]:
    first = ("model", "asked by, store", "sessions") if part == WIRE else ("model", "who", "rows")
    numbers = ("steps", "p50 us", "p90 us", "p99 us", "steps/s", "CPU us", "ratio")
    return [Cell(first[0]), Cell(first[1]), *(Cell(name, "n") for name in (first[2], *numbers))]


def _row(p: Point) -> list[Cell]:
    who = p.contestant + (f", {p.store}" if p.store else "")
    if p.asked_per_s is not None:
        who += f", at {p.asked_per_s:,.0f}/s"
    numbers = [f"{p.rows:,}", f"{p.steps:,}", *map(figure, (p.p50_us, p.p90_us, p.p99_us))]
    numbers += [f"{p.steps_per_s:,.0f}", figure(p.cpu_us)]
    numbers.append("" if p.ratio is None else f"{p.ratio:.2f}")
    return [Cell(p.model, "name"), Cell(who, "name"), *(Cell(text, "n") for text in numbers)]
