"""The table that `python -m export` shows."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from export.measured import Measured
from export.reporting.words import kib, share_of_spread
from service.manifest import Manifest, Variant

COLUMNS = (  # name, whether it is a number
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


def parity_table(manifest: Manifest, measured: Sequence[Measured]) -> Table:
    """What was measured, a line for each variant and case."""
    title = f"{manifest.name} {manifest.version}: parity with the trained module"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, is_number in COLUMNS:
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    entries: dict[str, Variant] = {str(name): v for name, v in manifest.variants.items()}
    for m in measured:
        entry = entries[m.variant]
        table.add_row(
            m.variant,
            kib(entry.size),
            "yes" if entry.isolated else "no",
            m.case.name,
            f"{len(m.errors)}",
            f"{m.max_error:.1e}",
            share_of_spread(m),
            f"{m.errors[: m.judged].argmax()}",
            f"{m.tolerance.atol:g}",
            f"{m.tolerance.rtol:g}",
            "pass" if m.passed else "FAIL",
        )
    return table
