"""A score says whether the model is worth deploying."""

import math

import numpy as np
import pytest

from models.scores import Score, rmse


@pytest.mark.parametrize(("model", "beaten"), [(0.94, 2), (0.96, 1), (1.2, 1), (2.1, 0)])
def test_each_naive_forecast_must_be_beaten_by_five_percent(model: float, beaten: int) -> None:
    """Against errors of 1 and 2, at 95 % of them."""
    score = Score("one-step", "m", model, {"last value": 1.0, "seasonal": 2.0})
    assert len(score.failures()) == 2 - beaten


def test_a_failure_says_what_came_and_what_was_expected() -> None:
    """Both numbers, the unit, and which forecast was not beaten."""
    score = Score("one-step", "m", 0.96, {"last value": 1.0})
    assert score.failures() == [
        "one-step error is 0.96 m, expected at most 0.95 (95% of `last value`, 1)"
    ]


def test_an_error_that_is_no_number_beats_nothing() -> None:
    """NaN compares false both ways, and must not pass for that."""
    assert len(Score("one-step", "m", math.nan, {"last value": 1.0}).failures()) == 1


def test_rmse_is_over_all_elements() -> None:
    """Errors 3 and 4: the root of 12.5."""
    assert rmse(np.array([[3.0], [0.0]]), np.array([[0], [4]], np.float32)) == pytest.approx(
        np.sqrt(12.5)
    )
