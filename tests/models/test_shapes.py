"""The waves are what their labels say."""

import numpy as np
import pytest

from models.shapes import NOISE, SHAPES, shapes, wave


@pytest.mark.parametrize(
    ("shape", "at_quarters"),
    [
        ("sine", [0, np.sqrt(2), 0, -np.sqrt(2)]),
        ("square", [1, 1, -1, -1]),
        ("triangle", [-np.sqrt(3), 0, np.sqrt(3), 0]),
        ("sawtooth", [-np.sqrt(3), -np.sqrt(3) / 2, 0, np.sqrt(3) / 2]),
    ],
)
def test_each_shape_at_the_quarters_of_a_turn(shape: str, at_quarters: list[float]) -> None:
    """Worked out by hand; and over a turn mean 0 and root mean square 1, for all alike."""
    assert wave(shape, np.arange(4) / 4) == pytest.approx(at_quarters, abs=1e-9)
    turn = wave(shape, (np.arange(10_000) + 0.5) / 10_000)
    assert turn.mean() == pytest.approx(0, abs=1e-3)
    assert np.sqrt((turn**2).mean()) == pytest.approx(1, abs=1e-3)


def test_every_step_has_its_label_and_every_shape_comes() -> None:
    """Labels run along with the values; the held-out part is long enough and has all classes."""
    data = shapes()
    assert len(data.labels) == len(data.series.values)
    assert len(data.series.holdout) >= 2200
    assert set(data.labels[data.series.validation_end :]) == set(range(len(SHAPES)))
    square = data.series.values[data.labels == SHAPES.index("square"), 0]
    assert np.abs(np.abs(square) - 1).mean() == pytest.approx(NOISE * np.sqrt(2 / np.pi), rel=0.05)
