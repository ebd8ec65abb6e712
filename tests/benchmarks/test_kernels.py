"""The benchmark of the kernels measures what it says, on a cell small enough for a test."""

import json
from pathlib import Path

from benchmarks.kernels import OURS, STOCK, Point, main


def test_it_reports_every_point(tmp_path: Path) -> None:
    """Two batch sizes of a step and of a chunk, beside stock and the floor."""
    target = tmp_path / "kernels.json"
    options = "--hidden 16 --batch 1 3 --steps 1 4 --seconds 0.05 --input-size 3"
    assert main([*options.split(), "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert [(p["steps"], p["batch"]) for p in report["points"]] == [(1, 1), (1, 3), (4, 1), (4, 3)]
    for point in report["points"]:
        assert set(point["us"]) == {STOCK, "stock int8", *OURS, "floor"}
        assert point["to_stock"][STOCK] == 1
        assert all(ratio > 0 for ratio in point["to_floor"].values())
    assert report["conditions"]["cpu"]


def test_a_missed_target_is_named() -> None:
    """Slower than stock; not 1.2 times its steps where it is far from the floor; far from it."""

    def missed(ours: float, stock: float, hidden: int = 32, batch: int = 1) -> list[str]:
        fp32 = OURS[0]
        floors = {STOCK: stock, fp32: ours * stock}
        return Point(hidden, batch, 1, {}, {fp32: ours}, floors).missed

    assert missed(0.99, 1.3) == []
    assert missed(1.01, 1.3) == ["1.01 of stock's time"]
    assert missed(0.8, 1.5) == []
    assert missed(0.9, 1.5) == ["1.11x stock's steps/s, stock at 1.50 floors"]
    assert missed(0.8, 2.6, hidden=128, batch=64) == ["2.08 floors"]
    assert missed(0.8, 2.6, hidden=128, batch=16) == []
