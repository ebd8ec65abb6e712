"""The report's plots: matplotlib's SVG, to stand inside the page.

Every colour is a variable of the page's style sheet (`page.css`), so that a plot is dark in the
dark and black on paper; every variant has a dash of its own besides its colour. A plot is drawn as
wide as a phone and scaled up elsewhere, so that its letters are never small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from export.gate_errors import GateError
from export.measured import Measured
from export.reporting.svg import INK, LINE, as_svg, quiet
from service.manifest import Tolerance

Array = np.ndarray
WIDTH_IN = 4.9  # 353 points: a phone's
DRIFT_HEIGHT_IN = 3.1
GATE_HEIGHT_IN = 0.26  # of one gate
FLOOR = 1e-9  # errors below it are drawn there: a log axis has no zero
BINS = 100  # of a curve; each is the greatest error of the steps that it stands for
MIN_BIN = 3  # steps: a float variant is off by nothing at one and by an ulp at the next
GATE_ORDER = "ifgorznh"


@dataclass(frozen=True)
class Stroke:
    """How one variant is drawn; `dash` in points, on and off."""

    color: str  # of _VARIABLES
    dash: tuple[float, ...]
    width: float = 1.6

    @property
    def variable(self) -> str:
        return _VARIABLES[self.color]


_NAMES = ("onnx-fp32", "onnx-int8-rowwise", "onnx-int8", "torchscript-fp32", "torchscript-int8")
_DASHES: Sequence[tuple[float, ...]] = ((), (), (5, 1.5), (1.5, 1.5), (6, 1.5, 1.2, 1.5), (3, 3))
_VARIABLES = {f"#0000a{k}": f"--variant-{k}" for k in range(len(_DASHES))}


def stroke_of(variant: str) -> Stroke:
    """Alike in all plots; variants that are not known share the last."""
    k = _NAMES.index(variant) if variant in _NAMES else len(_NAMES)
    return Stroke(f"#0000a{k}", _DASHES[k])


def drift_figure(measured: Sequence[Measured], title: str) -> str:
    """Error against step of one case, both axes logarithmic; tolerances as labelled lines."""
    figure = Figure(figsize=(WIDTH_IN, DRIFT_HEIGHT_IN), layout="constrained")
    axes = figure.subplots()
    steps = max(len(m.errors) for m in measured)
    for m in measured:
        at, peaks = peaks_of(m.errors)
        stroke = stroke_of(m.variant)
        peaks = np.clip(peaks, FLOOR, None)
        (line,) = axes.plot(at, peaks, color=stroke.color, lw=stroke.width)
        if stroke.dash:
            line.set_dashes(stroke.dash)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, max(steps, 2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    _draw_tolerances(axes, measured)
    judged = measured[0].judged
    if judged < steps:  # the rest is drawn, but no error of it is too great
        axes.axvspan(judged, steps, color=LINE, alpha=0.35, lw=0, zorder=0)
    axes.set_xlabel("step")
    axes.set_ylabel("|variant \N{MINUS SIGN} reference| of y")
    quiet(axes)
    return as_svg(figure, title, _VARIABLES)


def peaks_of(errors: Array) -> tuple[Array, Array]:
    """Steps from 1 on, evenly spaced on a log axis, and the greatest error from each to the next.

    Where an error is not a number the peak is infinite, which leaves a gap in the curve.
    """
    wanted = np.geomspace(1, len(errors) + 1, BINS + 1).astype(int)
    edges = [1]
    for edge in wanted[:-1]:
        if edge - edges[-1] >= MIN_BIN:
            edges.append(int(edge))
    peaks = np.maximum.reduceat(np.nan_to_num(errors, nan=np.inf), np.array(edges) - 1)
    return np.array([*edges, len(errors)]), np.append(peaks, peaks[-1])


def _power(value: float, position: int | None = None) -> str:
    """A power of ten; at the floor stands what is there or below, zero too."""
    least = "\\leq " if value <= FLOOR * 1.01 else ""
    return f"${least}10^{{{round(math.log10(value))}}}$"


def _draw_tolerances(axes: Axes, measured: Sequence[Measured]) -> None:
    lines: dict[tuple[float, float], list[str]] = {}
    for m in measured:
        lines.setdefault((m.tolerance.atol, m.tolerance.rtol), []).append(m.variant)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, FLOOR / 2), max(high, 4 * max(atol for atol, _ in lines)))
    for (atol, rtol), variants in lines.items():
        axes.axhline(atol, color=INK, lw=0.9, dashes=(7, 2, 1, 2))
        text = f"{_kinds(variants)} may be off by {said(Tolerance(atol=atol, rtol=rtol))}"
        axes.annotate(
            text,
            (1, atol),
            xytext=(3, 2.5),
            textcoords="offset points",
            color=INK,
            fontsize=8.5,
        )


def said(tolerance: Tolerance) -> str:
    relative = f" + {tolerance.rtol:g}\N{MIDDLE DOT}|y|" if tolerance.rtol else ""
    return f"{tolerance.atol:g}{relative}"


def _kinds(variants: Sequence[str]) -> str:
    """int8, fp32, or the variant's name where it is one."""
    kinds = {variant.split("-")[1] for variant in variants if "-" in variant}
    return variants[0] if len(variants) == 1 else ", ".join(sorted(kinds))


def gate_figure(gates: Sequence[GateError], title: str) -> str:
    """The error of each gate: a dot at its root mean square, a bar to its greatest."""
    cells = list(dict.fromkeys(gate.cell for gate in gates))
    rows = sorted(
        {(gate.cell, gate.gate) for gate in gates},
        key=lambda row: (cells.index(row[0]), GATE_ORDER.index(row[1])),
    )
    variants = list(dict.fromkeys(gate.variant for gate in gates))
    height = GATE_HEIGHT_IN * (len(rows) + 2.5)
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    axes = figure.subplots()
    for k, variant in enumerate(variants):
        stroke = stroke_of(variant)
        ours = [gate for gate in gates if gate.variant == variant]
        y = np.array([rows.index((g.cell, g.gate)) for g in ours]) + 0.36 * (k - 0.5)
        means = np.clip([g.mean for g in ours], FLOOR, None)
        peaks = np.clip([g.greatest for g in ours], FLOOR, None)
        axes.hlines(y, means, peaks, color=stroke.color, lw=stroke.width)
        axes.plot(peaks, y, "|", color=stroke.color, ms=7, mew=1.6)
        axes.plot(means, y, "os"[k % 2], color=stroke.color, ms=5)
    axes.set_xscale("log")
    shown = [max(size, FLOOR) for gate in gates for size in (gate.mean, gate.greatest)]
    axes.set_xlim(10 ** np.floor(np.log10(min(shown))), 10 ** np.ceil(np.log10(max(shown))))
    axes.set_yticks(range(len(rows)), [f"{cell}  {gate}" for cell, gate in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for k, (cell, _) in enumerate(rows[1:], 1):
        if cell != rows[k - 1][0]:
            axes.axhline(k - 0.5, color=LINE, lw=0.8)
    axes.set_xlabel("error of the pre-activation")
    quiet(axes)
    axes.grid(visible=False, axis="y")
    return as_svg(figure, title, _VARIABLES)
