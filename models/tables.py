"""What the command shows: the scores of one model, and the whole zoo."""

from collections.abc import Iterable

from rich.table import Table
from torch import nn

from models.runs import Report
from models.scores import Score
from models.zoo import Entry


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Part of the model -> how many weights (two axes or more) and biases (one) it has."""
    counts = {}
    for part, module in model.named_children():
        shapes = [parameter.shape for parameter in module.parameters()]
        weights = sum(shape.numel() for shape in shapes if len(shape) > 1)
        biases = sum(shape.numel() for shape in shapes if len(shape) == 1)
        counts[part] = {"weights": weights, "biases": biases}
    return counts


def describe_parameters(counts: dict[str, dict[str, int]]) -> str:
    """For example ``cell 4,224 + 128, head 32 + 1``: weights + biases of each part."""
    return ", ".join(
        f"{part} {count['weights']:,} + {count['biases']:,}"
        for part, count in counts.items()
        if any(count.values())  # a positional encoding, say, has none
    )


def score_table(name: str, data_name: str, scores: Iterable[Score]) -> Table:
    """One row per error: the model's, each naive forecast's, the model's as share of the best."""
    scores = list(scores)
    measures = ", ".join(dict.fromkeys(score.measure for score in scores))
    title = f"{name}: error on held-out {data_name} ({measures})"
    table = Table(title=title, title_justify="left")
    table.add_column("error", no_wrap=True)
    table.add_column("unit")
    table.add_column("model", justify="right", style="bold")
    for naive in scores[0].naive:
        table.add_column(naive, justify="right")
    table.add_column("of best", justify="right")
    for score in scores:
        best = min(score.naive.values())
        table.add_row(
            score.name,
            score.unit,
            f"{score.model:.3f}",
            *(f"{error:.3f}" for error in score.naive.values()),
            f"{score.model / best:.0%}",
        )
    return table


def zoo_table(rows: Iterable[tuple[Entry, Report | None]]) -> Table:
    """One row per model; scores and time where it has been trained."""
    table = Table(title="models.zoo (parameters: weights + biases)", title_justify="left")
    for column in ("name", "description", "parameters", "held-out error (best naive)", "trained"):
        table.add_column(column, overflow="fold")
    for entry, report in rows:
        table.add_row(
            entry.name,
            entry.description,
            "\n".join(_parameters(entry)),
            "\n".join(_errors(report)),
            _trained(report),
        )
    return table


def zoo_markdown(rows: Iterable[tuple[Entry, Report | None]]) -> str:
    """The same as a Markdown table, and how each model is called; for the README."""
    columns = (
        "model",
        "what",
        "call",
        "weights + biases",
        "held-out error (best naive)",
        "trained",
    )
    lines = [columns, ("---",) * len(columns)]
    for entry, report in rows:
        call, parameters = _call(entry), ", ".join(_parameters(entry))
        errors = "; ".join(_errors(report))
        lines.append(
            (f"`{entry.name}`", entry.description, call, parameters, errors, _trained(report))
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _call(entry: Entry) -> str:
    flags = " ".join(entry.export_flags)
    return f"`{entry.call}`, `{flags}`" if flags else f"`{entry.call}`"


def _parameters(entry: Entry) -> list[str]:
    return describe_parameters(count_parameters(entry.factory())).split(", ")


def _errors(report: Report | None) -> list[str]:
    return [_describe_score(score) for score in report.scores] if report else []


def _trained(report: Report | None) -> str:
    return f"{report.training_s:.0f} s" if report else "not yet"


def _describe_score(score: Score) -> str:
    best = min(score.naive.values())
    return f"{score.name}: {score.model:.3f} {score.unit} ({best:.3f})"
