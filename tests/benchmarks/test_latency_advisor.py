"""The advisor and the targets on made-up points: what is said, and that nothing else is."""

from dataclasses import replace

import pytest

from benchmarks.latency.advisor import advise
from benchmarks.latency.contestants import FLOOR, READING, STOCK
from benchmarks.latency.point import IN_PROCESS, WIRE, Model, Point
from benchmarks.latency.standing import targets

FP32, INT8 = "onnx-fp32", "onnx-int8-rowwise"
L256, L128 = (Model(f"lstm-{h}", "lstm", 8, h, 1, is_made=True) for h in (256, 128))
STACK = Model("lstm-128-x2", "lstm", 8, 128, 2, is_made=True)
GRU = Model("gru-128", "gru", 8, 128, 1, is_made=True)
PUMP = Model("pump", "lstm", 3, 100, 1, is_made=False)


def point(
    model: Model, cpu_us: float, rows: int = 1, steps: int = 1, contestant: str = FP32
) -> Point:
    return Point(IN_PROCESS, model.name, contestant, rows, steps, 9, 1, 2, 3, 1e3, cpu_us)


def said(models: list[Model], points: list[Point]) -> list[str]:
    return [f"{one.topic}: {one.text}" for one in advise(models, points)]


def test_one_point_gives_no_advice() -> None:
    """Nor do points that differ in two things."""
    assert said([L128], [point(L128, 20)]) == []
    assert said([], []) == []
    assert said([L256, GRU], [point(L256, 60), point(GRU, 20)]) == []
    assert said([L256, L128], [point(L256, 60), point(L128, 4, rows=64)]) == []
    assert said([L256, STACK], [point(L256, 60), point(STACK, 20)]) == []


def test_a_smaller_hidden_size() -> None:
    """Both figures are named, at each batch size that both have."""
    points = [point(L256, 58), point(L128, 20), point(L256, 6.2, 64), point(L128, 2, 64)]
    only_one = point(L128, 1.5, 1024)
    found = said([L128, L256], [*points, only_one])
    assert found[0] == (
        "Hidden size: LSTM, hidden 256 → 128: 2.9 times as fast at batch 1 (58.0 → 20.0 us) and "
        "3.1 times as fast at batch 64 (6.20 → 2.00 us)."
    )
    assert [text.split(":")[0] for text in found] == ["Hidden size", "Batches", "Batches"]


def test_fewer_layers_and_another_cell() -> None:
    """A GRU that is slower is said to be so; 4 % are no difference."""
    models = [GRU, STACK, L128]
    points = [point(GRU, 25), point(STACK, 36), point(L128, 20)]
    assert said(models, points) == [
        "Layers: LSTM of 128, layers 2 → 1: 1.80 times as fast at batch 1 (36.0 → 20.0 us).",
        "Cell: GRU instead of LSTM, hidden 128: 1.25 times as slow at batch 1 (20.0 → 25.0 us).",
    ]
    near = [point(GRU, 20.8), point(L128, 20)]
    assert said([GRU, L128], near) == [
        "Cell: GRU instead of LSTM, hidden 128: no difference at batch 1 (20.0 → 20.8 us)."
    ]


def test_int8_of_one_model_alone_and_in_chunks() -> None:
    """The user's own models come first; a place that only one variant has is left out."""
    points = [
        *(point(L128, us, rows, steps) for us, rows, steps in ((20, 1, 1), (6, 1, 16), (2, 64, 1))),
        *(point(L128, us, rows, steps, INT8) for us, rows, steps in ((16, 1, 1), (24, 1, 16))),
        *(point(PUMP, us, contestant=name) for us, name in ((15, FP32), (12, INT8))),
    ]
    found = [text for text in said([L128, PUMP], points) if text.startswith("int8")]
    assert found == [
        "int8: pump, onnx-int8-rowwise instead of onnx-fp32: 1.25 times as fast at batch 1 "
        "(15.0 → 12.0 us).",
        "int8: lstm-128, onnx-int8-rowwise instead of onnx-fp32: 1.25 times as fast at batch 1 "
        "(20.0 → 16.0 us) and 4.0 times as slow at batch 1 in chunks of 16 (6.00 → 24.0 us).",
    ]


def test_chunks_and_company() -> None:
    """Of each variant; of many batch sizes the least, the middle and the greatest."""
    rows = (1, 4, 16, 64, 256)
    points = [point(L128, 20 / n, n) for n in rows]
    points += [point(L128, 8, 1, 16), point(L128, 30, 1, 1, INT8), point(L128, 30.5, 1, 128, INT8)]
    found = said([L128], points)
    assert found[1:] == [
        "Chunks: lstm-128 as onnx-fp32, chunks of 16 instead of single steps: 2.5 times as fast at "
        "batch 1 (20.0 → 8.00 us).",
        "Chunks: lstm-128 as onnx-int8-rowwise, chunks of 128 instead of single steps: no "
        "difference at batch 1 (30.0 → 30.5 us).",
        "Batches: lstm-128 as onnx-fp32, many sessions at a time instead of one: 4.0 times as fast "
        "at batch 4 (20.0 → 5.00 us), 64 times as fast at batch 64 (20.0 → 0.31 us) and 256 "
        "times as fast at batch 256 (20.0 → 0.08 us).",
    ]


def test_the_user_s_model_is_not_compared_with_made_ones() -> None:
    """Its x is of another width, and its output too."""
    own = replace(PUMP, hidden=256, input_size=8)
    assert said([own, L128], [point(own, 60), point(L128, 20)]) == []


def test_ways_over_the_wire() -> None:
    """Next to the way that is the baseline, in the same store; open loops are another matter."""
    unary = Point(WIRE, "pump", "unary", 16, 1, 99, 1, 2, 3, 1e3, 400, "unary", 1.0, store="disk")
    ndjson = replace(unary, contestant="ndjson", cpu_us=40, ratio=0.1)
    memory = replace(unary, store="memory", cpu_us=320)
    more = replace(ndjson, store="memory", cpu_us=20)  # said of the first store alone
    opened = replace(ndjson, cpu_us=4, asked_per_s=500.0)
    assert said([], [unary, ndjson, memory, more, opened]) == [
        "The wire: pump over the wire, ndjson instead of unary: 10.0 times as fast with 16 "
        "sessions (400 → 40.0 us).",
    ]


def cell(model: Model, rows: int, **ratios: float) -> list[Point]:
    names = {"stock": STOCK, "served": FP32, "product": FLOOR, "reading": READING}
    return [
        replace(point(model, 1, rows, contestant=names[k]), baseline=STOCK, ratio=ratio)
        for k, ratio in ratios.items()
    ]


def test_targets_are_counted_over_the_cells_that_they_are_of() -> None:
    """Slower than stock; far from the floor; big. The floor is the fastest way to compute it."""
    points = [
        *cell(L128, 1, stock=1, served=0.8, product=0.4, reading=0.3),
        *cell(L128, 64, stock=1, served=0.9, product=0.5),
        *cell(L256, 64, stock=1, served=1.5, product=0.72),
        *cell(GRU, 64, stock=1, served=0.7),  # no floor
        *cell(PUMP, 64, stock=1, served=1.02, product=0.9),
    ]
    one, gain, near = targets([L128, L256, GRU, PUMP], points)
    assert (one.met, one.of, one.worst) == (3, 4, "1.50 (lstm-256, batch 64)")
    assert (gain.met, gain.of, gain.worst) == (1, 2, "0.90 (lstm-128, batch 64)")
    assert (near.met, near.of, near.worst) == (1, 2, "2.08 (lstm-256, batch 64)")
    assert str(near) == (
        "at batch 64 and hidden 128 or more at most 2 times the floor: met in 1 of 2 cells; "
        "farthest 2.08 (lstm-256, batch 64)"
    )


@pytest.mark.parametrize("missing", ["stock", "served", "product"])
def test_a_target_without_its_points_is_not_judged(missing: str) -> None:
    """Chunks and other baselines do not count either."""
    ratios = {"stock": 1.0, "served": 0.8, "product": 0.5}
    found = cell(L128, 64, **{k: v for k, v in ratios.items() if k != missing})
    if missing == "stock":
        found = [replace(p, baseline="torch eager") for p in found]
    chunks = [replace(p, steps=16) for p in cell(L128, 64, **ratios)]
    assert targets([L128], [*found, *chunks]) == []
