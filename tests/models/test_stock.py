"""The generated bars look like bars, and behave like a stock's."""

import numpy as np
import pytest

from models.stock import daily_range, stock


def test_bars_hold_what_bars_hold() -> None:
    """High is the highest, low the lowest; enough days held out; the same seed, the same bars."""
    series = stock(train=500, validation=100, holdout=400)
    open_, high, low, close, volume = series.values.T
    assert (high >= np.maximum(open_, close)).all()
    assert (low <= np.minimum(open_, close)).all()
    assert volume.min() > 0
    assert np.array_equal(series.values, stock(train=500, validation=100, holdout=400).values)
    assert not np.array_equal(series.values, stock(500, 100, 400, seed=1).values)
    assert daily_range(series.values)[:, 0] == pytest.approx(high - low)


def test_returns_cannot_be_forecast_and_volatility_can() -> None:
    """Returns are uncorrelated from day to day, their sizes are not, and volume foretells ranges.
    The stationary daily volatility is 1.5 %."""
    bars = stock().values.astype(np.float64)
    assert len(stock().holdout) >= 2200
    returns = np.diff(np.log(bars[:, 3]))

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1])

    assert correlation(returns[1:], returns[:-1]) == pytest.approx(0, abs=0.05)
    assert correlation(abs(returns[1:]), abs(returns[:-1])) > 0.15
    ranges = (bars[:, 1] - bars[:, 2]) / bars[:, 3]
    assert correlation(bars[:-1, 4], ranges[1:]) > 0.5
    assert returns.std() == pytest.approx(0.015, rel=0.15)
