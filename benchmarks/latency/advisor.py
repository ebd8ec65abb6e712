"""The latency advisor: what a change would buy on this machine, in words, from measured points.

Rules
- Each sentence compares points that differ in one thing, and names their figures: microseconds of
  CPU time for one step of one row. Where nothing was measured nothing is said.
- Models that stand in artifacts come before those made for the purpose.
- Less than 5 % is no difference.
- How fast, not how good: a smaller model is another model, with an error of its own.
- Over the wire only ways to ask are compared: stores, served minutes apart, differ by less than two
  servers of one store do on a machine that others use.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from benchmarks.latency.point import IN_PROCESS, WIRE, Model, Point
from export.reporting.words import join

SERVED, ROWWISE = "onnx-fp32", "onnx-int8-rowwise"
VARIANTS = (SERVED, ROWWISE)  # what is served by default, and what may be served instead
NOTHING = 0.05  # a share of the time: less is within what two runs differ by
MOST_PLACES = 3  # batch sizes that a sentence names: the least, the middle and the greatest

Place = tuple[int, int]  # rows, steps of each


@dataclass(frozen=True)
class Advice:
    """One sentence."""

    topic: str
    text: str


def advise(models: Sequence[Model], points: Sequence[Point]) -> list[Advice]:
    """All that can be said of these points, topic by topic."""
    measured = _Measured(models, points)
    return [
        *measured.sizes(),
        *measured.layers(),
        *measured.kinds(),
        *measured.int8(),
        *measured.chunks(),
        *measured.company(),
        *_ways(points),
    ]


class _Measured:
    """The points in process, by model, contestant and place."""

    def __init__(self, models: Sequence[Model], points: Sequence[Point]) -> None:
        found: dict[tuple[str, str], dict[Place, Point]] = {}
        for p in points:
            if p.part == IN_PROCESS:
                found.setdefault((p.model, p.contestant), {})[p.rows, p.steps] = p
        self._points = found
        self._models = sorted(
            models, key=lambda m: (m.is_made, m.kind != "lstm", -m.hidden, -m.layers, m.name)
        )
        self._made = [m for m in self._models if m.is_made and m.kind]

    def sizes(self) -> Iterator[Advice]:
        for one, other in _pairs(self._made, lambda m: replace(m, name="", hidden=0)):
            what = f"{one.kind.upper()}, hidden {one.hidden} → {other.hidden}"
            yield from self._advice("Hidden size", what + _layers(one), one, other)

    def layers(self) -> Iterator[Advice]:
        for one, other in _pairs(self._made, lambda m: replace(m, name="", layers=0)):
            what = f"{one.kind.upper()} of {one.hidden}, layers {one.layers} → {other.layers}"
            yield from self._advice("Layers", what, one, other)

    def kinds(self) -> Iterator[Advice]:
        for one, other in _pairs(self._made, lambda m: replace(m, name="", kind="")):
            what = f"{other.kind.upper()} instead of {one.kind.upper()}, hidden {one.hidden}"
            yield from self._advice("Cell", what + _layers(one), one, other)

    def int8(self) -> Iterator[Advice]:
        for model in self._models:
            before, after = self._of(model, SERVED), self._of(model, ROWWISE)
            pairs = [(p, p) for p in before if p in after]
            what = f"{model.name}, {ROWWISE} instead of {SERVED}"
            yield from _sentence("int8", what, [(before[p], after[q]) for p, q in pairs])

    def chunks(self) -> Iterator[Advice]:
        for model in self._models:
            for variant in VARIANTS:
                found = self._of(model, variant)
                for steps in sorted({steps for _, steps in found if steps > 1}):
                    places = [(r, s) for r, s in found if s == steps and (r, 1) in found]
                    pairs = [(found[rows, 1], found[rows, steps]) for rows, _ in places]
                    what = f"{model.name} as {variant}, chunks of {steps} instead of single steps"
                    yield from _sentence("Chunks", what, pairs)

    def company(self) -> Iterator[Advice]:
        for model in self._models:
            found = self._of(model, SERVED)
            crowds = [rows for rows, steps in found if steps == 1 and rows > 1]
            if (1, 1) in found and crowds:
                what = f"{model.name} as {SERVED}, many sessions at a time instead of one"
                pairs = [(found[1, 1], found[rows, 1]) for rows in crowds]
                yield from _sentence("Batches", what, pairs)

    def _of(self, model: Model, variant: str) -> dict[Place, Point]:
        return self._points.get((model.name, variant), {})

    def _advice(self, topic: str, what: str, one: Model, other: Model) -> Iterator[Advice]:
        before, after = self._of(one, SERVED), self._of(other, SERVED)
        yield from _sentence(topic, what, [(before[p], after[p]) for p in before if p in after])


def _pairs(
    models: Sequence[Model], rest: Callable[[Model], Model]
) -> Iterator[tuple[Model, Model]]:
    """Neighbours among models that are alike in the rest."""
    groups: dict[Model, list[Model]] = {}
    for model in models:
        groups.setdefault(rest(model), []).append(model)
    for group in groups.values():
        yield from pairwise(group)


def _layers(model: Model) -> str:
    return f", {model.layers} layers" if model.layers > 1 else ""


def _ways(points: Sequence[Point]) -> Iterator[Advice]:
    """How the service is asked, next to the way that is the baseline, in the first store."""
    found = _closed(points)
    stores = dict.fromkeys((p.model, p.store) for p in found.values())
    for model, store in {name: (name, store) for name, store in reversed(stores)}.values():
        own = [p for p in found.values() if (p.model, p.store) == (model, store)]
        for way in dict.fromkeys(p.contestant for p in own):
            pairs = [
                (found[key], p)
                for p in own
                if p.contestant == way
                and p.baseline not in (None, way)
                and (key := _wire_key(replace(p, contestant=p.baseline or ""))) in found
            ]
            if pairs:
                what = f"{model} over the wire, {way} instead of {pairs[0][0].contestant}"
                yield from _sentence("The wire", what, pairs)


def _closed(points: Sequence[Point]) -> dict[tuple[str, str, str, int, int], Point]:
    return {_wire_key(p): p for p in points if p.part == WIRE and p.asked_per_s is None}


def _wire_key(p: Point) -> tuple[str, str, str, int, int]:
    return p.model, p.contestant, p.store, p.rows, p.steps


def _sentence(topic: str, what: str, pairs: Iterable[tuple[Point, Point]]) -> Iterator[Advice]:
    """What the second of each pair buys next to the first, if there is any pair."""
    kept = _some(sorted(pairs, key=lambda pair: (pair[1].steps, pair[1].rows)))
    if kept:
        mixed = len({after.steps for _, after in kept}) > 1
        effects = [_effect(before, after, mixed) for before, after in kept]
        yield Advice(topic, f"{what}: {join(effects)}.")


def _some(pairs: Sequence[tuple[Point, Point]]) -> list[tuple[Point, Point]]:
    """Of each number of steps at most `MOST_PLACES`: the least, the middle, the greatest."""
    kept = []
    for steps in dict.fromkeys(after.steps for _, after in pairs):
        own = [pair for pair in pairs if pair[1].steps == steps]
        if len(own) > MOST_PLACES:
            own = [own[0], own[len(own) // 2], own[-1]]
        kept += own
    return kept


def _effect(before: Point, after: Point, mixed: bool) -> str:
    times = before.cpu_us / after.cpu_us
    said = f"{_factor(times)} times as fast"
    if times < 1:
        said = f"{_factor(1 / times)} times as slow"
    if abs(times - 1) < NOTHING:
        said = "no difference"
    return f"{said} {_place(after, mixed)} ({_us(before.cpu_us)} → {_us(after.cpu_us)} us)"


def _factor(times: float) -> str:
    return f"{times:.2f}" if times < 2 else f"{times:.1f}" if times < 20 else f"{times:.0f}"


def _us(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _place(p: Point, mixed: bool) -> str:
    where = f"at batch {p.rows}"
    if p.part == WIRE:
        where = f"with {p.rows} session{'s' if p.rows > 1 else ''}"
    return where if p.steps == 1 or not mixed else f"{where} in chunks of {p.steps}"
