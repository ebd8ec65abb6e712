"""The findings as tables: in the terminal, and in docs/scaling.md between their marks.

`<!-- measured: NAME -->` begins a part of the document that is written here, `<!-- end -->` ends
it; a test compares them with docs/scaling.json.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks import capacity
from benchmarks.scaling.findings import Findings

MARK = re.compile(r"(<!-- measured: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
TEN_MILLION = [  # steps a second of each session, way
    (0.01, "unary"),
    (0.1, "ws binary"),
    (2.0, "ws binary"),
]


@dataclass(frozen=True)
class Part:
    """One table."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.head, tuple("---" if n == 0 else "---:" for n in range(len(self.head)))]
        return "".join(f"| {' | '.join(row)} |\n" for row in [*lines, *self.rows])


def show(found: Findings, console: Console) -> None:
    for part in parts(found):
        table = Table(title=part.title)
        for number, one in enumerate(part.head):
            table.add_column(one, justify="right" if number else "left")
        for row in part.rows:
            table.add_row(*row)
        console.print(table)


def rewrite(document: str, found: Findings) -> str:
    """The document with its measured parts as they are now."""
    texts = {part.name: part.markdown() for part in parts(found)}

    def fill(match: re.Match[str]) -> str:
        return match[1] + texts[match[2]] + match[3]

    return MARK.sub(fill, document)


def parts(found: Findings) -> list[Part]:
    """Every table that has rows."""
    every = (
        _conditions, _awake, _any, _held, _upkeep, _ways, _wire, _redis, _starts, _formula, _need
    )  # fmt: skip
    return [part for make in every if (part := make(found)).rows]


def _conditions(found: Findings) -> Part:
    rows = [(str(name), str(value)) for name, value in found.conditions.items()]
    return Part("conditions", "conditions", ("what", "value"), rows)


def _awake(found: Findings) -> Part:
    points = [one for one in found.points if one.load == "awake"]
    ages = sorted({one.age for one in points})
    head = ("asleep", "batch", *(f"{age:,} steps old" for age in ages))
    rows = []
    for batch in sorted({one.batch for one in points}):
        for asleep in sorted({one.asleep for one in points}):
            some = {p.age: p for p in points if (p.batch, p.asleep) == (batch, asleep)}
            cells = (f"{some[age].cpu_us:.0f} ({some[age].to_first:.2f})" for age in ages)
            rows.append((f"{asleep:,}", str(batch), *cells))
    return Part("awake", "CPU of a step, us (ratio), of sessions that go on", head, rows)


def _any(found: Findings) -> Part:
    rows = [
        (f"{p.asleep:,}", str(p.batch), f"{p.cpu_us:.0f}", f"{p.to_first:.2f}", f"{p.faults:.2f}")
        for p in found.points
        if p.load == "any"
    ]
    head = ("asleep", "batch", "CPU us", "ratio", "page faults")
    return Part("any", "a step that wakes any of the sleepers", head, rows)


def _held(found: Findings) -> Part:
    rows = [
        (f"{h.asleep:,}", f"{h.state_bytes:,}", f"{h.disk_bytes:,.0f}", f"{h.memory_bytes:,.0f}")
        for h in found.held
    ]
    head = ("asleep", "state bytes", "disk bytes each", "mapped memory each")
    return Part("held", "what sleepers take", head, rows)


def _upkeep(found: Findings) -> Part:
    head = (
        "asleep", "put to sleep us", "sweep ms", "expiry us", "held at once ms",
        "close ms", "open ms", "repair ms",
    )  # fmt: skip
    rows = [
        (
            f"{u.asleep:,}", f"{u.fill_us:.1f}", f"{u.sweep_ms:.2f}", f"{u.expiry_us:.1f}",
            f"{u.expiry_longest_ms:.1f}", f"{u.close_ms:.1f}", f"{u.open_ms:.1f}",
            f"{u.repair_ms:.1f}",
        )
        for u in found.upkeep
    ]  # fmt: skip
    return Part("upkeep", "what sleepers cost beside the steps (CPU)", head, rows)


def _ways(found: Findings) -> Part:
    rows = [
        (w.way, str(w.sessions), f"{w.asleep:,}", f"{w.state_bytes:,}", f"{w.cpu_us:.0f}")
        for w in sorted(found.ways, key=lambda w: (w.way, w.state_bytes, w.asleep))
    ]
    head = ("way", "sessions", "asleep", "state bytes", "server CPU us")
    return Part("ways", "a step over a real server", head, rows)


def _wire(found: Findings) -> Part:
    rows = [
        (w.way, str(w.sessions), f"{w.payload:.0f}", f"{w.segments:.2f}", f"{w.total:.0f}")
        for w in found.wire
    ]
    head = ("way", "sessions", "payload bytes", "segments", "bytes with headers")
    return Part("wire", "a step on the network, both directions", head, rows)


def _redis(found: Findings) -> Part:
    rows = [
        (
            f"{r.asleep:,}", f"{r.state_bytes:,}", f"{r.memory_bytes:,.0f}",
            f"{r.server_us:.1f}", f"{r.wire_bytes:,.0f}",
        )
        for r in found.redis
    ]  # fmt: skip
    head = ("sessions", "state bytes", "memory each", "Redis CPU us a step", "bytes a step")
    return Part("redis", "Redis", head, rows)


def _starts(found: Findings) -> Part:
    rows = [
        (
            f"bentoml serve, {s.models} model{'s' * (s.models > 1)}, to the first 200",
            f"{s.wall_s:.2f}", f"{s.cpu_s:.2f}", f"{s.memory_mib:.0f}",
        )
        for s in found.starts
    ]  # fmt: skip
    rows += [(f"python -c '{one.what}'", "", f"{one.cpu_s:.2f}", "") for one in found.imports]
    return Part("starts", "start", ("what", "wall s", "CPU s", "memory MiB"), rows)


def _formula(found: Findings) -> Part:
    rows = [
        (what, f"{said:,.0f}", f"{measured:,.0f}", f"{(said / measured - 1) * 100:+.1f}", how)
        for what, said, measured, how in _predictions(found)
    ]
    head = ("what", "formula", "measured", "error %", "")
    return Part("formula", "the formula beside what was measured", head, rows)


def _predictions(found: Findings) -> Iterator[tuple[str, float, float, str]]:
    if not (found.models and found.ways):
        return
    constants = capacity.fit(found)
    sizes = [one.state_bytes for one in found.models]
    ends = (min(sizes), max(sizes))
    for way in found.ways:
        how = "" if way.asleep or way.state_bytes not in ends else "fitted"
        said = capacity.step_us(constants, way.way, way.state_bytes, None)
        what = f"CPU us, {way.way}, state {way.state_bytes:,}, {way.asleep:,} asleep"
        yield what, said, way.cpu_us, how
    for held in found.held:
        said = capacity.disk_bytes(held.asleep, held.state_bytes) / held.asleep
        yield f"disk bytes each of {held.asleep:,}", said, held.disk_bytes, ""
    for one in found.redis:
        how = "fitted" if one.state_bytes in ends else ""
        said = capacity.redis_bytes(constants, one.state_bytes)
        what = f"Redis bytes each of {one.asleep:,}, state {one.state_bytes:,}"
        yield what, said, one.memory_bytes, how


def _need(found: Findings) -> Part:
    head = (
        "steps/s each", "way", "cores", "workers", "disk GB", "memory GB", "network GB/s",
        "Redis GB", "Redis nodes",
    )  # fmt: skip
    rows = []
    if found.models and found.ways and found.wire and found.redis:
        constants = capacity.fit(found)
        for rate, way in TEN_MILLION:
            n = capacity.need(capacity.Demand(10_000_000, rate, way=way), constants)
            cells = (
                f"{n.cores:,.0f}",
                f"{n.workers:,}",
                f"{n.disk_gb:.1f}",
                f"{n.memory_gb:.1f}",
                f"{n.network_gb_s:.3f}",
                f"{n.redis_memory_gb:.1f}",
                f"{n.redis_nodes:,}",
            )
            rows.append((f"{rate:g}", way, *cells))
    return Part("ten million", "10,000,000 live sessions, state of 1,160 bytes", head, rows)
