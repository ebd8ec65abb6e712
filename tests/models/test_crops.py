"""Crops are where they should be."""

import numpy as np
import pytest

from models.crops import evenly_spaced, random_crops
from models.errors import SeriesError


def test_random_crops_are_subsequences_that_start_anywhere() -> None:
    """Consecutive values, and in 200 crops every start from the first to the last."""
    values = np.arange(10, dtype=np.float32)[:, None]
    crops = random_crops(values, 4, 200, np.random.default_rng(0))[..., 0]
    assert (np.diff(crops, axis=1) == 1).all()
    assert sorted({int(start) for start in crops[:, 0]}) == list(range(7))


def test_fixed_windows_go_from_the_first_step_to_the_last() -> None:
    """Three windows of 4 in 10 steps; and no window twice when there are fewer than asked for."""
    values = np.arange(10, dtype=np.float32)[:, None]
    assert evenly_spaced(values, 4, 3)[..., 0].tolist() == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
    ]
    assert evenly_spaced(values, 9, 100)[:, 0, 0].tolist() == [0, 1]


def test_a_split_shorter_than_a_crop_is_refused() -> None:
    """Ten steps hold no crop of eleven."""
    with pytest.raises(SeriesError, match="a split has 10 steps, expected at least 11"):
        random_crops(np.zeros((10, 1), np.float32), 11, 1, np.random.default_rng(0))
