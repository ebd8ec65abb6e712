"""Which metrics and labels a PromQL expression asks for; enough of the grammar for that.

https://prometheus.io/docs/prometheus/latest/querying/basics/, 3.x: a word is a function or an
aggregation where `(` or a grouping follows it, a keyword, or a metric; labels stand in `{}` behind
a metric, and in `()` behind a grouping's keyword.
"""

import re
from dataclasses import dataclass

TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    |(?P<range>\[[^\]]*\])
    |(?P<number>\d[\w.]*|\.\d+)
    |(?P<word>[A-Za-z_:][\w:]*)
    |(?P<sign>=~|!~|==|!=|<=|>=|[-+*/%^(){},=<>@])""",
    re.VERBOSE,
)
OPERATORS = {"and", "or", "unless", "atan2", "bool", "offset", "inf", "nan"}
GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
AGGREGATIONS = {
    "sum",
    "min",
    "max",
    "avg",
    "count",
    "group",
    "stddev",
    "stdvar",
    "topk",
    "quantile",
}


@dataclass(frozen=True)
class Asked:
    """What an expression asks for."""

    metrics: dict[str, set[str]]  # name -> the labels that choose among its series
    groupings: set[str]  # labels that results are brought together by


def read(expression: str) -> Asked:
    """ValueError where something is not PromQL as far as this knows it."""
    tokens = _tokens(expression)
    metrics: dict[str, set[str]] = {}
    groupings: set[str] = set()
    depth = at = 0
    while at < len(tokens):
        kind, text = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        depth += (text == "(") - (text == ")")
        if depth < 0:
            raise ValueError(f"a `)` too many in {expression}")
        at += 1
        if kind != "word" or text.lower() in OPERATORS:
            continue
        if text in GROUPINGS:
            labels, at = _until(tokens, at, "(", ")", expression)
            groupings.update(label for kind, label in labels if kind == "word")
        elif following != "(" and text not in AGGREGATIONS:
            chosen = metrics.setdefault(text, set())
            if following == "{":
                matchers, at = _until(tokens, at, "{", "}", expression)
                chosen.update(label for kind, label in matchers if kind == "word")
    if depth:
        raise ValueError(f"a `(` too many in {expression}")
    return Asked(metrics, groupings)


def _tokens(expression: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(expression):
        match = TOKEN.match(expression, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"`{expression[at:]}` in {expression}")
        if match.lastgroup != "space":
            found.append((match.lastgroup, match.group()))
        at = match.end()
    return found


def _until(
    tokens: list[tuple[str, str]], at: int, opening: str, closing: str, expression: str
) -> tuple[list[tuple[str, str]], int]:
    """The tokens in a bracket that begins at `at`, and where it goes on behind it."""
    if at >= len(tokens) or tokens[at][1] != opening:
        raise ValueError(f"expected `{opening}` behind `{tokens[at - 1][1]}` in {expression}")
    for end in range(at + 1, len(tokens)):
        if tokens[end][1] == closing:
            return tokens[at + 1 : end], end + 1
    raise ValueError(f"no `{closing}` in {expression}")
