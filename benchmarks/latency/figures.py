"""The pictures: each is drawn twice, as a PNG with a legend, and as an SVG inside the page.

A contestant looks alike in all of them: Carousel's variants are thick, the floor is grey, each has
a dash and a mark of its own besides its colour.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.latency.contestants import (
    EAGER,
    FLOOR,
    OPENVINO,
    READING,
    STOCK,
    STOCK_INT8,
    TORCHSCRIPT,
)
from benchmarks.latency.made import TYPICAL_HIDDEN
from benchmarks.latency.point import IN_PROCESS, WIRE, Model, Point
from benchmarks.latency.table import figure as figure_of
from benchmarks.wire.carousel import ways
from export.reporting.figures import WIDTH_IN
from export.reporting.svg import INK, LINE, MUTED, as_svg, quiet

HEIGHT_IN = 3.3
ROW_IN = 0.31
DPI = 160
VARIABLES = {f"#0000a{k}": f"--variant-{k}" for k in range(6)}
ON_PAPER = {  # what the page's variables are in the light
    INK: "#1b1f24",
    MUTED: "#57606a",
    LINE: "#d0d7de",
    "#0000a0": "#0072b2",
    "#0000a1": "#d55e00",
    "#0000a2": "#00805d",
    "#0000a3": "#7a5195",
    "#0000a4": "#a07300",
    "#0000a5": "#57606a",
}


@dataclass(frozen=True)
class Look:
    """How one contestant is drawn; `dash` in points, on and off."""

    color: str  # a placeholder
    dash: tuple[float, ...] = ()
    mark: str = "o"
    width: float = 1.3

    @property
    def variable(self) -> str:
        return {**VARIABLES, MUTED: "--muted"}[self.color]


MARKS = "osv^DxP*"
OURS = 2.4  # points: the width of a variant's line
LOOKS = {
    "onnx-fp32": Look("#0000a0", width=OURS),
    "onnx-int8-rowwise": Look("#0000a1", mark="s", width=OURS),
    "onnx-int8": Look("#0000a1", (2, 1), "v", OURS),
    "torchscript-fp32": Look("#0000a3", (6, 1.5), "D", OURS),
    "torchscript-int8": Look("#0000a4", (6, 1.5), "D", OURS),
    "torch-export": Look("#0000a5", (6, 1.5), "D", OURS),
    STOCK: Look("#0000a2", (5, 1.5), "^"),
    STOCK_INT8: Look("#0000a2", (1.5, 1.5), "v"),
    EAGER: Look("#0000a3", (5, 1.5), "x"),
    TORCHSCRIPT: Look("#0000a4", (5, 1.5), "+"),
    OPENVINO: Look("#0000a5", (6, 1.5, 1.2, 1.5), "d"),
    FLOOR: Look(MUTED, (3, 1.5), "."),
    READING: Look(MUTED, (1, 2), "."),
}
_DASHES: Sequence[tuple[float, ...]] = ((), (5, 1.5), (1.5, 1.5))
LOOKS |= {  # all of them are ours
    way: Look(f"#0000a{k % 6}", _DASHES[(k + k // 6) % 3], MARKS[k % len(MARKS)], 1.8)
    for k, way in enumerate(ways(""))
}

Draw = Callable[["Palette"], Figure]


@dataclass(frozen=True)
class Palette:
    """On paper colours are real and the legend stands below; on the page neither."""

    is_paper: bool

    def __getitem__(self, placeholder: str) -> str:
        return ON_PAPER[placeholder] if self.is_paper else placeholder


@dataclass(frozen=True)
class Picture:
    """One figure, with what is said above and below it."""

    name: str  # of the PNG
    title: str
    caption: str
    contestants: Sequence[str]  # that a legend has to name
    draw: Draw
    is_wire: bool = False

    def write_png(self, folder: Path) -> Path:
        """As `folder/NAME.png`, on white."""
        path = folder / f"{self.name}.png"
        figure = self.draw(Palette(is_paper=True))
        figure.suptitle(self.title, fontsize=10, color=ON_PAPER[INK])
        figure.savefig(path, dpi=DPI, facecolor="white")
        return path

    def svg(self) -> str:
        return as_svg(self.draw(Palette(is_paper=False)), self.title, VARIABLES)


def pictures(models: Sequence[Model], points: Sequence[Point]) -> list[Picture]:
    """All that these points are enough for."""
    inside = [p for p in points if p.part == IN_PROCESS]
    found = [_by_hidden(models, inside, rows) for rows in sorted({p.rows for p in inside})]
    found += [_by_chunk(model, inside) for model in models]
    found += [_latency(model, inside) for model in [*_own(models), *_typical(models)]]
    wire = [p for p in points if p.part == WIRE]
    for model, store in dict.fromkeys((p.model, p.store) for p in wire):
        own = [p for p in wire if (p.model, p.store) == (model, store)]
        found += [_ways(model, store, own), _open_loop(model, store, own)]
    return [picture for picture in found if picture is not None]


def _own(models: Sequence[Model]) -> list[Model]:
    return [model for model in models if not model.is_made]


def _typical(models: Sequence[Model]) -> list[Model]:
    """Of made LSTMs of one layer the one that is the most like those that people have."""
    made = [m for m in models if (m.kind, m.layers, m.is_made) == ("lstm", 1, True)]
    return sorted(made, key=lambda m: abs(m.hidden - TYPICAL_HIDDEN))[:1]


def _by_hidden(models: Sequence[Model], points: Sequence[Point], rows: int) -> Picture | None:
    """CPU time of a step against the hidden size, of made LSTMs of one layer."""
    hidden = {
        m.name: m.hidden for m in models if (m.kind, m.layers, m.is_made) == ("lstm", 1, True)
    }
    own = [p for p in points if p.model in hidden and (p.rows, p.steps) == (rows, 1)]
    sizes = sorted({hidden[p.model] for p in own})
    if len(sizes) < 2:
        return None
    lines = {
        name: sorted((hidden[p.model], p.cpu_us) for p in own if p.contestant == name)
        for name in _in_order(own)
    }
    return Picture(
        f"step-batch-{rows}",
        f"One step, batch {rows}",
        f"CPU time of one step of one row, {rows} row{'s' if rows > 1 else ''} a call.",
        list(lines),
        lambda palette: _lines(lines, sizes, "hidden size", palette),
    )


def _by_chunk(model: Model, points: Sequence[Point]) -> Picture | None:
    """CPU time of a step against how many are sent together."""
    own = [p for p in points if (p.model, p.rows) == (model.name, 1) and p.contestant != READING]
    steps = sorted({p.steps for p in own})
    if len(steps) < 2 or not model.is_made:
        return None
    lines = {
        name: sorted((p.steps, p.cpu_us) for p in own if p.contestant == name)
        for name in _in_order(own)
    }
    return Picture(
        f"chunks-{model.name}",
        f"{model.name}, in chunks",
        "CPU time of one step, sent alone or in a chunk of so many; one row a call.",
        list(lines),
        lambda palette: _lines(lines, steps, "steps in a chunk", palette),
    )


def _latency(model: Model, points: Sequence[Point]) -> Picture | None:
    """What a caller waits for one step of one row."""
    own = [p for p in points if (p.model, p.rows, p.steps) == (model.name, 1, 1)]
    own = [
        p for p in own if p.contestant in _in_order(own) and not p.contestant.startswith("floor")
    ]
    if not own:
        return None
    bars = {p.contestant: (p.p50_us, p.p99_us, p.contestant) for p in own}
    return Picture(
        f"latency-{model.name}",
        f"{model.name}, one step of one row",
        "Wall-clock time of a call on this machine: the dot is p50, the bar reaches to p99.",
        [],
        lambda palette: _bars(bars, palette, "us"),
    )


def _ways(model: str, store: str, points: Sequence[Point]) -> Picture | None:
    """The server's CPU time of a step against the sessions that ask, by the way they ask."""
    closed = [p for p in points if p.asked_per_s is None]
    sessions = sorted({p.rows for p in closed})
    if not closed:
        return None
    lines = {
        name: sorted((p.rows, p.cpu_us) for p in closed if p.contestant == name)
        for name in _in_order(closed)
    }
    return Picture(
        f"wire-{model}-{store}",
        f"{model} over the wire, store {store}",
        "CPU time of the server's processes for one step, by how many sessions ask at a time.",
        list(lines),
        lambda palette: _lines(lines, sessions, "sessions", palette),
        is_wire=True,
    )


def _open_loop(model: str, store: str, points: Sequence[Point]) -> Picture | None:
    """What a client waits at a fixed rate, from when its step was due."""
    opened = [p for p in points if p.asked_per_s is not None]
    if not opened:
        return None
    counts = sorted({p.rows for p in opened})
    sessions = counts[len(counts) // 2]
    bars = {
        f"{p.contestant}, {p.asked_per_s:,.0f}/s": (p.p50_us / 1e3, p.p99_us / 1e3, p.contestant)
        for p in opened
        if p.rows == sessions
    }
    return Picture(
        f"open-loop-{model}-{store}",
        f"{model} at a fixed rate, store {store}",
        f"From when a step was due to its answer, {sessions} sessions, by way and steps per "
        "second: the dot is p50, the bar reaches to p99.",
        [],
        lambda palette: _bars(bars, palette, "ms"),
        is_wire=True,
    )


def _in_order(points: Sequence[Point]) -> list[str]:
    """Contestants that are drawn, in the legend's order."""
    there = {p.contestant for p in points}
    return [name for name in LOOKS if name in there]


def _lines(
    lines: Mapping[str, Sequence[tuple[int, float]]],
    ticks: Sequence[int],
    label: str,
    palette: Palette,
) -> Figure:
    rows = (len(lines) + 2) // 3
    height = HEIGHT_IN + 0.2 * (rows + 1) * palette.is_paper
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    axes = figure.subplots()
    for name, found in lines.items():
        look = LOOKS[name]
        (line,) = axes.plot(
            [x for x, _ in found],
            [y for _, y in found],
            color=palette[look.color],
            lw=look.width,
            marker=look.mark,
            ms=5,
            label=name,
        )
        if look.dash:
            line.set_dashes(look.dash)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel(label)
    axes.set_ylabel("CPU of a step, us")
    _finish(axes, palette)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    if palette.is_paper:
        figure.legend(loc="outside lower center", ncols=3, fontsize=7.5, frameon=False)
    return figure


def _bars(bars: Mapping[str, tuple[float, float, str]], palette: Palette, label: str) -> Figure:
    """A line each, the least on top: a dot at the first figure, a bar to the second, whose."""
    names = sorted(bars, key=lambda name: bars[name][0])
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * (len(names) + 2)), layout="constrained")
    axes = figure.subplots()
    for y, name in enumerate(names):
        low, high, who = bars[name]
        look = LOOKS[who]
        axes.plot([low, high], [y, y], color=palette[look.color], lw=look.width)
        axes.plot([low], [y], "o", color=palette[look.color], ms=6)
        axes.annotate(
            figure_of(low),
            (low, y),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=palette[INK],
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.8)
    axes.set_xlabel(label)
    _finish(axes, palette)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    return figure


def _finish(axes: Axes, palette: Palette) -> None:
    quiet(axes)
    if palette.is_paper:  # `quiet` has drawn in placeholders
        axes.grid(visible=True, which="major", color=ON_PAPER[LINE], lw=0.7)
        axes.tick_params(which="both", colors=ON_PAPER[MUTED])
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_color(ON_PAPER[MUTED])
        for spine in axes.spines.values():
            spine.set_color(ON_PAPER[MUTED])


def _plain(value: float, position: int | None = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
