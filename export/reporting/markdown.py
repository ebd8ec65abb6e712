"""`parity.md`: the verdict in short, for a pull request."""

from export.reporting.evidence import Evidence
from export.reporting.words import error_of, headline, kib, times


def as_markdown(evidence: Evidence) -> str:
    manifest, timing = evidence.manifest, evidence.timing
    head = ["variant", "size"]
    head += [f"step, of {timing.baseline}'s time"] if timing else []
    head += ["max error", "tolerance", "worst case", "isolated", "verdict"]
    lines = [
        f"### {manifest.name} `{manifest.version}`: parity with the trained module",
        "",
        headline(evidence),
        "",
        _row(head),
        _row(["---", *["---:"] * (len(head) - 4), "---", "---", "---"]),
    ]
    for variant, entry in manifest.variants.items():
        worst = evidence.worst_of(variant)
        cells = [f"`{variant}`", kib(evidence.size_of(variant))]
        if timing:
            time = timing.of(variant, 1)
            cells.append(times(time.ratio) if time else "")
        rtol = f" + {worst.tolerance.rtol:g} \\|y\\|" if worst.tolerance.rtol else ""
        cells += [error_of(worst), f"{worst.tolerance.atol:g}{rtol}", worst.case.name]
        cells += ["yes" if entry.isolated else "no, one session a call"]
        cells += ["pass, default" if variant == manifest.default_variant else "pass"]
        lines.append(_row(cells))
    for gone, why in evidence.left_out.items():
        blanks = [""] * (len(head) - 2)
        lines.append(_row([f"`{gone}`", *blanks, f"left out: {_escape(why)}"]))
    provenance = manifest.provenance
    lines += [
        "",
        f"- module `{provenance.module}`, called as `{provenance.call}`",
        f"- weights `{provenance.weights_sha256[:16]}`, example `{provenance.example_sha256[:16]}` "
        f"({provenance.example_steps:,} steps{', cycled' if _cycled(evidence) else ''})",
        "- " + ", ".join(f"{name} {number}" for name, number in manifest.producer.items()),
    ]
    return "\n".join(lines) + "\n"


def _cycled(evidence: Evidence) -> bool:
    return any(m.case.cycled for m in evidence.measured)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """What a cell of a table cannot hold, or GitHub would read as HTML."""
    for sign, written in (("|", "\\|"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(sign, written)
    return text
