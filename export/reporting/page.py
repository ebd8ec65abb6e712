"""`parity.html`: one file without scripts or network, verdict first.

Text and style stand in `page.html` and `page.css`; here is what goes into them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from export.isolation import MAX_BATCH, Isolation
from export.measured import Measured
from export.metrics import Metric
from export.reporting.evidence import NOT_WRITTEN, Evidence
from export.reporting.figures import Stroke, drift_figure, gate_figure, stroke_of
from export.reporting.words import (
    caption,
    company_of,
    distance,
    error_of,
    headline,
    isolation_sentences,
    join,
    kib,
    long_run,
    microseconds,
    outcomes,
    share_of_spread,
    times,
    worsening,
)
from export.timing import BATCHES, EAGER, Timing

HERE = Path(__file__).parent
GATES_PER_PLOT = 24  # more are no longer read at a glance, nor do they fit a page
STOCK = "onnx-int8"
FASTER = 0.98  # a ratio of times below it is no noise


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `kind` is its class in the style sheet."""

    text: str
    kind: str = ""
    small: str = ""


@dataclass(frozen=True)
class Plot:
    """An SVG with what is said above and below it."""

    title: str
    svg: Markup
    caption: str
    rows: Sequence[Sequence[Cell]] = ()  # of a table below it


@dataclass(frozen=True)
class Entry:
    """A line of a legend."""

    name: str
    stroke: Stroke


def as_page(evidence: Evidence) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        **_verdict(evidence),
        **_drift(evidence),
        **_metrics(evidence),
        **_gates(evidence),
        **_speed(evidence),
        **_isolation(evidence),
        **_ladder(evidence),
        **_provenance(evidence),
    )


def _verdict(evidence: Evidence) -> dict[str, object]:
    manifest = evidence.manifest
    cycled = any(m.case.cycled for m in evidence.measured)
    steps = manifest.provenance.example_steps
    mode = "its state is carried from step to step"
    if manifest.mode == "windowed":
        mode = "each step runs on the window of its last inputs"
    return {
        "name": manifest.name,
        "version": manifest.version,
        "module": manifest.provenance.module,
        "mode": f"{manifest.mode}: {mode}",
        "headline": headline(evidence),
        "cycled": f" The example has {steps:,} steps and was cycled." if cycled else "",
        "outcomes": outcomes(evidence),
    }


def _drift(evidence: Evidence) -> dict[str, object]:
    variants = dict.fromkeys(m.variant for m in (*evidence.measured, *evidence.rejected))
    gone = evidence.left_out
    plots = []
    for case in evidence.cases:
        found = evidence.of_case(case)
        title = f"{case}: error against step of {join([m.variant for m in found])}"
        svg = Markup(drift_figure(found, title))
        rows = [_case_row(m) for m in found]
        plots.append(Plot(case, svg, caption(found), rows))
    return {
        "legend": [Entry(f"{v} (left out)" if v in gone else v, stroke_of(v)) for v in variants],
        "drift": plots,
        "case_columns": [
            Cell("variant"),
            Cell("max error", "n", "of std(y)"),
            Cell("allowed", "n"),
            Cell("at step", "n"),
        ],
    }


def _case_row(m: Measured) -> list[Cell]:
    relative = f"+ {m.tolerance.rtol:g}\N{MIDDLE DOT}|y|" if m.tolerance.rtol else ""
    sign, kind = ("\N{CHECK MARK}", "good") if m.passed else ("\N{BALLOT X}", "bad")
    return [
        Cell(f"{sign} {m.variant}", f"name {kind}", long_run(m)),
        Cell(error_of(m), "n", share_of_spread(m)),
        Cell(f"{m.tolerance.atol:g}", "n", relative),
        Cell(f"{m.errors[: m.judged].argmax():,}" if m.max_error else "", "n"),
    ]


def _metrics(evidence: Evidence) -> dict[str, object]:
    """A column for each metric, a row for the module and each variant."""
    every = [*evidence.measured, *evidence.rejected]
    found = {(m.case.name, metric.name): metric for m in every for metric in m.metrics}
    columns = [Cell("variant")]
    columns += [Cell(name, "n", f"{m.unit}, {case}") for (case, name), m in found.items()]
    rows = [
        [Cell("trained module", "name"), *(Cell(f"{m.reference:.4g}", "n") for m in found.values())]
    ]
    for variant in dict.fromkeys(m.variant for m in every):
        own = {
            (m.case.name, metric.name): metric
            for m in every
            if m.variant == variant
            for metric in m.metrics
        }
        rows.append([Cell(variant, "name"), *(_metric(own.get(key)) for key in found)])
    allowed = max((m.allowed for m in found.values()), default=0.0)
    return {
        "metric_columns": columns,
        "metric_rows": rows if found else [],
        "metric_allowed": f"{allowed:.0%}",
    }


def _metric(metric: Metric | None) -> Cell:
    if metric is None:
        return Cell("")
    kind = "n" if metric.passed else "n bad"
    return Cell(f"{metric.variant:.4g}", kind, worsening(metric))


def _gates(evidence: Evidence) -> dict[str, object]:
    rows = list(dict.fromkeys((gate.cell, gate.gate) for gate in evidence.gates))
    plots = []
    for start in range(0, len(rows), GATES_PER_PLOT):
        shown = rows[start : start + GATES_PER_PLOT]
        found = [gate for gate in evidence.gates if (gate.cell, gate.gate) in shown]
        cells = list(dict.fromkeys(cell for cell, _ in shown))
        title = f"Error of each gate's pre-activation in {join(cells)}"
        worst = max(found, key=lambda gate: gate.mean / max(gate.spread, 1e-30))
        caption = (
            f"The most, next to what z varies by: gate {worst.gate} of {worst.cell} in "
            f"{worst.variant}, {worst.mean:.1e} where z has a standard deviation of "
            f"{worst.spread:.2g}."
        )
        plots.append(Plot("", Markup(gate_figure(found, title)), caption))
    variants = dict.fromkeys(gate.variant for gate in evidence.gates)
    names = {STOCK: f"{STOCK} (stock, one row at a time)"}
    return {
        "gates": plots,
        "gate_legend": [Entry(names.get(v, v), stroke_of(v)) for v in variants],
    }


def _speed(evidence: Evidence) -> dict[str, object]:
    manifest, timing = evidence.manifest, evidence.timing
    columns = [Cell("variant", small="size")]
    columns += [Cell(f"batch {batch}", "n") for batch in BATCHES] if timing else []
    base = evidence.size_of(evidence.baseline)
    rows = []
    for variant, entry in manifest.variants.items():
        size = evidence.size_of(variant)
        row = [Cell(variant, "name", f"{kib(size)}, {size / base:.0%}")]
        if timing:
            row += _times(timing, variant, served=True)
        rows.append(row)
        if timing and not entry.isolated:
            as_batch = _times(timing, variant, served=False)
            rows.append([Cell("", "name", "as one batch, not served"), *as_batch])
    if timing:
        eager = Cell("trained module", "name", EAGER)
        rows.append([eager, *_times(timing, EAGER, served=True)])
    state = sum(
        4 * int(_product(port.shape[1:]))
        if port.dtype == "float32"
        else 8 * _product(port.shape[1:])
        for port in manifest.ports.states
    )
    conditions = f"A session's state takes {state:,} bytes."
    if timing:
        machine = timing.machine
        versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
        conditions += (
            f" Times: median of at least {timing.rounds} interleaved rounds, CPU time of one "
            f"thread, on {machine.cpu}, {machine.cores} cores; {versions}."
        )
    return {
        "baseline": evidence.baseline,
        "speed_columns": columns,
        "speed_rows": rows,
        "conditions": conditions,
    }


def _product(shape: Sequence[int | str]) -> int:
    total = 1
    for dim in shape:
        total *= int(dim)
    return total


def _times(timing: Timing, contestant: str, served: bool) -> list[Cell]:
    cells = []
    for batch in BATCHES:
        time = timing.of(contestant, batch, served=served)
        if time is None or (batch == 1 and not served):  # one row is one row
            cells.append(Cell(""))
        else:
            kind = "n good" if time.ratio < FASTER else "n"
            cells.append(Cell(times(time.ratio), kind, microseconds(time)))
    return cells


def _isolation(evidence: Evidence) -> dict[str, object]:
    kinds = [found.company for found in next(iter(evidence.isolation.values())).found]
    columns = [Cell("variant"), *(Cell(company_of(evidence, kind), "n") for kind in kinds)]
    rows = [
        [Cell(variant, "name"), *_companies(isolation)]
        for variant, isolation in evidence.isolation.items()
    ]
    spread = evidence.measured[0].case.y.std()
    return {
        "isolation_sentences": isolation_sentences(evidence),
        "isolation_columns": columns,
        "isolation_rows": rows,
        "max_batch": MAX_BATCH,
        "spread": f" (y has a standard deviation of {spread:.2g})",
    }


def _companies(isolation: Isolation) -> list[Cell]:
    return [Cell(distance(one), f"n {'bad' if one.moved else 'good'}") for one in isolation.found]


def _ladder(evidence: Evidence) -> dict[str, object]:
    rows = [
        [
            Cell(rung.plan),
            Cell(f"{rung.max_error:.1e}", "n"),
            Cell(times(1 / rung.speedup) if rung.speedup else "", "n"),
            Cell(rung.verdict),
        ]
        for rung in evidence.ladder
    ]
    columns = [Cell("plan"), Cell("max error", "n"), Cell("time", "n"), Cell("verdict")]
    return {"ladder_columns": columns, "ladder_rows": rows}


def _provenance(evidence: Evidence) -> dict[str, object]:
    manifest = evidence.manifest
    provenance = manifest.provenance
    cycled = any(m.case.cycled for m in evidence.measured)
    return {
        "lowering_columns": [Cell("layer"), Cell("road"), Cell("why")],
        "lowering_rows": [
            [Cell(entry.layer, "name"), Cell(entry.road), Cell(entry.why)]
            for entry in manifest.lowering
            if entry.road != NOT_WRITTEN
        ],
        "facts": [
            ("module", provenance.module),
            ("called as", provenance.call),
            ("weights (sha256)", provenance.weights_sha256),
            ("example (sha256)", provenance.example_sha256),
            (
                "example's steps",
                f"{provenance.example_steps:,}{', cycled' if cycled else ', not cycled'}",
            ),
            ("version", manifest.version),
            ("made with", ", ".join(f"{k} {v}" for k, v in manifest.producer.items())),
        ],
    }
