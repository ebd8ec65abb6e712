"""A plot of matplotlib's as an SVG that stands inside a page and takes its colours from there.

A figure is drawn in placeholders, colours that no plot has; each stands for a variable of the
page's style sheet, so that a plot is dark in the dark and black on paper.
"""

import io
import re
from collections.abc import Mapping

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

INK, MUTED, LINE = "#0000f1", "#0000f2", "#0000f3"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"}


def quiet(axes: Axes) -> None:
    """Two spines, pale grid lines, ticks without strokes."""
    axes.grid(visible=True, which="major", color=LINE, lw=0.7)
    axes.set_axisbelow(True)
    # Not drawn anyhow, and most of the time that a logarithmic axis takes.
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(which="both", length=0, colors=MUTED, labelsize=9)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def as_svg(figure: Figure, title: str, variables: Mapping[str, str]) -> str:
    """The figure as an element of HTML; the same figure gives the same bytes.

    Args:
        variables: placeholder -> the style sheet's variable, besides `VARIABLES`.
    """
    buffer = io.StringIO()
    # Text as text, and ids from a fixed salt.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)
    for color, variable in {**VARIABLES, **variables}.items():
        text = text.replace(color, f"var({variable})")
    text = re.sub(r"'[^']+'(, '[^']+')*(, [\w-]+)*, sans-serif", "system-ui, sans-serif", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
