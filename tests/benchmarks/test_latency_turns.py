"""Turns, and what becomes of their times."""

from functools import partial
from time import perf_counter as clock

import numpy as np

from benchmarks.latency.contestants import EAGER, FLOOR, READING, STOCK
from benchmarks.latency.grid import FULL, SHORT, Grid
from benchmarks.latency.in_process import points_of
from benchmarks.latency.made import Size
from benchmarks.latency.point import Findings
from benchmarks.latency.turns import WARM_UP_CALLS, Call, Times, take_turns


def test_contestants_take_turns_and_none_is_always_first() -> None:
    """After the warm-up each round has a slice of everybody, in another order."""
    log: list[str] = []
    names = ("a", "b", "c")
    cell: dict[str, Call] = {name: partial(log.append, name) for name in names}
    other: dict[str, Call] = {"z": partial(log.append, "z")}
    found, _ = take_turns([cell, other], rounds=3, slice_s=0.0)
    warm = 4 * WARM_UP_CALLS
    assert sorted(log[:warm]) == sorted([*names, "z"] * WARM_UP_CALLS)
    assert log[warm:] == [*"abcz", *"zbca", *"cabz"]
    for one in found.values():
        assert one.wall_us.shape == one.cpu_us.shape == one.slice_us.shape == (3,)


def test_a_slice_is_about_as_long_as_asked() -> None:
    """A call of 1 ms is made five times in 5 ms, one of 50 ms once: counted, not timed."""
    counts = {1e-3: 0, 50e-3: 0}

    def busy(seconds: float) -> None:
        counts[seconds] += 1
        end = clock() + seconds
        while clock() < end:
            pass

    take_turns([{str(s): partial(busy, s) for s in counts}], rounds=2, slice_s=5e-3)
    assert counts[50e-3] == WARM_UP_CALLS + 2
    assert WARM_UP_CALLS + 2 <= counts[1e-3] <= WARM_UP_CALLS + 2 * 5


def times(*cpu_us: float) -> Times:
    cpu = np.array(cpu_us)
    return Times(np.tile([10.0, 20.0], 50), cpu * 2, cpu)


def test_points_of_a_cell() -> None:
    """The fastest library is the floor; ratios are of one round, and their median counts."""
    found = {
        p.contestant: p
        for p in points_of(
            "m",
            4,
            2,
            {
                STOCK: times(80, 160, 80),
                "onnx-fp32": times(40, 120, 60),
                f"{FLOOR} (numpy)": times(32, 32, 32),
                f"{FLOOR} (torch)": times(24, 900, 24),
                f"{READING} (dot)": times(8, 8, 8),
            },
        )
    }
    assert set(found) == {STOCK, "onnx-fp32", FLOOR, READING}
    ours, floor = found["onnx-fp32"], found[FLOOR]
    assert (ours.baseline, ours.ratio, ours.cpu_us) == (STOCK, 0.75, 60 / 8)
    assert (ours.p50_us, ours.p99_us, ours.calls) == (15.0, 20.0, 100)
    assert ours.steps_per_s == 8 / 120e-6
    assert floor.cpu_us == 24 / 8 and floor.ratio == 0.3
    (alone,) = points_of("m", 1, 1, {"onnx-fp32": times(3)})
    assert (alone.baseline, alone.ratio) == ("onnx-fp32", 1.0)
    first, _ = points_of("m", 1, 1, {"onnx-fp32": times(3), EAGER: times(6)})
    assert (first.baseline, first.ratio) == (EAGER, 0.5)


def test_the_grids() -> None:
    """The full one is what was promised; the short one has a point for each kind of advice."""
    lstms = {size: cells for size, cells in FULL.made().items() if size.kind == "lstm"}
    single = {(size.hidden, rows) for size in lstms for rows, steps in lstms[size] if steps == 1}
    assert single == {(h, b) for h in (32, 64, 128, 256, 512) for b in (1, 16, 64, 256, 1024)}
    for grid in (SHORT, FULL):
        made = grid.made()
        assert {Size("gru", 128), Size("lstm", 128, 2)} < set(made)
        assert {steps for _, steps in made[Size("lstm", 128)]} == {1, *grid.chunk}
        assert max(rows for rows, _ in grid.own()) == 64
    assert Grid((), (1, 256), (), 1, 1).made() == {}
    assert Grid((), (1, 256), (), 1, 1).own() == [(1, 1)]


def test_who_is_absent_for_one_reason_is_told_once() -> None:
    """With all the models; another reason is another line."""
    findings = Findings()
    for model, why in (("a", "gone"), ("b", "gone"), ("c", "broken"), ("d", "gone")):
        findings.add_absent("OpenVINO", model, why)
    assert findings.absent == {"OpenVINO: c": "broken", "OpenVINO: a, b, d": "gone"}
