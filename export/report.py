"""The parity report: a table for the terminal, `parity.json` for programs, `parity.html` to show.

The page is one file without scripts or network: verdict first, then the error of every variant
against the step, on a log axis, then sizes and tolerances, the road of lowering, the provenance.
"""

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from export.measured import Measured
from service.manifest import Manifest

FLOOR = 1e-9  # errors below it are drawn there: a log axis has no zero
POINTS = 400  # of a drawn curve; each is the greatest error of the steps that it stands for
PAGE_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1b1f24}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.15rem;margin-top:2rem}
.verdict{font-size:1.1rem;padding:.6rem .9rem;border-left:.4rem solid #1a7f37;background:#eaf6ec}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{white-space:nowrap}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #d0d7de;overflow-wrap:anywhere}
td.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:1rem 0}svg{width:100%;height:auto}.scroll{overflow-x:auto}
@media print{body{margin:0;font-size:12px}}
"""


def write_report(folder: Path, manifest: Manifest, measured: Sequence[Measured]) -> None:
    """Write parity.json and parity.html into the artifact's folder."""
    (folder / "parity.json").write_text(json.dumps(_as_json(manifest, measured), indent=1) + "\n")
    (folder / "parity.html").write_text(_as_html(manifest, measured), encoding="utf-8")


def parity_table(manifest: Manifest, measured: Sequence[Measured]) -> Table:
    """The table that `python -m export` shows."""
    title = f"{manifest.name} {manifest.version}: parity with the trained module"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, justify in _COLUMNS:
        table.add_column(column, justify="right" if justify else "left", no_wrap=True)
    for row in _rows(manifest, measured):
        table.add_row(*row)
    return table


_COLUMNS = (
    ("variant", False),
    ("size", True),
    ("isolated", False),
    ("case", False),
    ("steps", True),
    ("max error", True),
    ("of std(y)", True),
    ("at step", True),
    ("atol", True),
    ("rtol", True),
    ("verdict", False),
)


def _rows(manifest: Manifest, measured: Sequence[Measured]) -> list[list[str]]:
    rows = []
    for m in measured:
        variant = next(v for name, v in manifest.variants.items() if name == m.variant)
        rows.append(
            [
                m.variant,
                f"{variant.size / 1024:.1f} KiB",
                "yes" if variant.isolated else "no",
                m.case.name,
                f"{len(m.errors)}",
                f"{m.max_error:.1e}",
                f"{m.share_of_spread:.2%}" if m.share_of_spread >= 1e-4 else "<0.01%",
                f"{m.errors[: m.judged].argmax()}",
                f"{m.tolerance.atol:g}",
                f"{m.tolerance.rtol:g}",
                "pass" if m.passed else "FAIL",
            ]
        )
    return rows


def _as_json(manifest: Manifest, measured: Sequence[Measured]) -> dict[str, object]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "reference": f"{manifest.provenance.module}, eager, float32",
        "unit": "absolute error of y in the model's units, greatest over rows and outputs",
        "measured": [m.as_json() for m in measured],
    }


def _as_html(manifest: Manifest, measured: Sequence[Measured]) -> str:
    name = html.escape(manifest.name)
    steps = min(len(m.errors) for m in measured if m.case is measured[0].case)
    cycled = " The example was shorter and was cycled." if measured[0].case.cycled else ""
    cases = list(dict.fromkeys(m.case.name for m in measured))
    figures = "".join(
        f"<h2>Error against step: {case}</h2><figure>"
        f"{_figure([m for m in measured if m.case.name == case])}</figure>"
        for case in cases
    )
    lowering = _html_table(
        ["layer", "road", "why"], [[x.layer, x.road, x.why] for x in manifest.lowering]
    )
    facts = {**manifest.provenance.model_dump(), **manifest.producer}
    provenance = _html_table(["what", "value"], [[k, str(v)] for k, v in facts.items()])
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} {manifest.version}: parity</title><style>{PAGE_STYLE}</style></head><body>
<h1>{name} {manifest.version}</h1>
<p class="verdict">All {len(manifest.variants)} variants agree with the trained module within
their stated tolerances, over {steps:,} steps of real input with the state carried.{cycled}</p>
<h2>Variants</h2><div class="scroll">
{_html_table([c for c, _ in _COLUMNS], _rows(manifest, measured), [n for _, n in _COLUMNS])}</div>
{figures}
<h2>Lowering</h2>{lowering}
<h2>Provenance</h2>{provenance}
</body></html>
"""


def _html_table(
    head: list[str], rows: list[list[str]], numeric: Sequence[bool] | None = None
) -> str:
    numeric = numeric or [False] * len(head)
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if n else ''}>{html.escape(cell)}</td>"
            for cell, n in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _figure(measured: Sequence[Measured]) -> str:
    """Inline SVG: one curve a variant, its tolerance dashed in the same colour."""
    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for m in measured:
        starts = np.arange(0, len(m.errors), -(-len(m.errors) // POINTS))
        peaks = np.maximum.reduceat(m.errors, starts)
        (line,) = axes.plot(starts + 1, np.maximum(peaks, FLOOR), label=m.variant, linewidth=0.9)
        axes.axhline(m.tolerance.atol, color=line.get_color(), linestyle="--", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("|variant - reference| (dashed: atol)")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    buffer = io.StringIO()
    # Text as text, and ids from a fixed salt: the same artifact gives the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "carousel"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
