"""The naive forecasts, worked out by hand."""

import numpy as np
import pytest

from models.naive import last_value, seasonal

HISTORY = np.array([[[1], [2], [3], [4], [5]], [[6], [7], [8], [9], [0]]], np.float32)


def test_last_value_goes_on_as_it_ended() -> None:
    """The last step of each row, three times."""
    assert last_value(HISTORY, 3)[..., 0].tolist() == [[5, 5, 5], [0, 0, 0]]


def test_seasonal_repeats_the_last_period_past_its_length() -> None:
    """Period 3, seven steps ahead: the last three values, twice and a third."""
    assert seasonal(HISTORY, 7, 3)[..., 0].tolist() == [
        [3, 4, 5, 3, 4, 5, 3],
        [8, 9, 0, 8, 9, 0, 8],
    ]


def test_seasonal_needs_a_whole_period() -> None:
    """Five steps hold no period of six."""
    with pytest.raises(ValueError, match="history has 5 steps, expected at least one period of 6"):
        seasonal(HISTORY, 1, 6)
