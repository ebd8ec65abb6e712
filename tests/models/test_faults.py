"""Faults are where they are said to be, and of the kind that they are said to be."""

import numpy as np
import pytest

from models.data import temperature
from models.faults import FAULTS, faulty_temperature, inject

CALM = np.array([[1.0], [2.0], [4.0]], np.float32)


def test_only_the_held_out_part_has_faults_and_only_where_it_says() -> None:
    """Elsewhere the values are those of the sound series; the same seed gives the same faults."""
    data, sound = faulty_temperature(), temperature()
    assert not data.faulty[: sound.validation_end].any()
    changed = (data.series.values != sound.values)[:, 0]
    assert not changed[~data.faulty].any()
    assert changed[data.faulty].mean() > 0.9  # a stuck reading begins with the true one
    assert 0.1 < data.faulty[sound.validation_end :].mean() < 0.25
    assert np.array_equal(data.series.values, faulty_temperature().series.values)


@pytest.mark.parametrize(
    ("fault", "sizes"),
    [("drift", [10 / 3, 20 / 3, 10]), ("bump", [10 * np.sqrt(0.5), 10, 10 * np.sqrt(0.5)])],
)
def test_drift_and_bump_are_as_worked_out_by_hand(fault: str, sizes: list[float]) -> None:
    """Three hours of it: off by so much, all to one side."""
    off = (inject(fault, CALM, np.random.default_rng(0)) - CALM)[:, 0]
    assert abs(off) == pytest.approx(sizes, rel=1e-6)
    assert len(set(np.sign(off))) == 1


def test_stuck_repeats_and_jitter_is_noise() -> None:
    """The first value three times; noise of two degrees; and the sound values are left alone."""
    rng = np.random.default_rng(0)
    assert inject("stuck", CALM, rng)[:, 0].tolist() == [1, 1, 1]
    noise = inject("jitter", np.zeros((5000, 1), np.float32), rng)
    assert noise.std() == pytest.approx(2, rel=0.05)
    assert CALM[:, 0].tolist() == [1, 2, 4]
    assert set(FAULTS) == {"jitter", "drift", "bump", "stuck"}
