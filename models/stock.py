"""Daily bars of a stock that does not exist: open, high, low, close, volume.

Generated, since no well-kept package carries real ones. What the literature agrees on is in them:
returns that cannot be forecast, volatility that comes in clusters, volume that goes with it. So
tomorrow's price is no honest target, and tomorrow's range is.
"""

import numpy as np
from numpy.typing import NDArray

from models.data import Series

Array = NDArray[np.float32]

FEATURES = ("open", "high", "low", "close", "volume")
DAILY_VOLATILITY = 0.015  # of log price: a common stock's, about 24 % a year
ALPHA, BETA = 0.25, 0.7  # GARCH(1,1), brisk: weight of yesterday's squared return, of its variance
REVERSION = 0.01  # share of the log distance to 100 that is undone a day: keeps prices in range
TICKS_PER_DAY = 32


def stock(
    train: int = 12_000, validation: int = 1000, holdout: int = 2400, seed: int = 0
) -> Series:
    """Bars from a GARCH(1,1) walk (Bollerslev, 1986) of 32 ticks a day, around a price of 100.

    The day's variance is ``omega + alpha * r**2 + beta * variance`` of the day before. Volume is in
    thousands of shares: log-normal around the volatility that the day leaves behind, so that it is
    high on days of large moves (Karpoff, 1987) and foretells the next day's range.

    Args:
        train, validation, holdout: days of each split.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    days = train + validation + holdout
    ticks = rng.standard_normal((days, TICKS_PER_DAY)) / np.sqrt(TICKS_PER_DAY)
    volume_noise = 0.1 * rng.standard_normal(days)
    omega = (1 - ALPHA - BETA) * DAILY_VOLATILITY**2
    variance, close = DAILY_VOLATILITY**2, 0.0  # close: log of price / 100
    bars = np.empty((days, len(FEATURES)))
    for day in range(days):
        sigma = np.sqrt(variance)
        moves = sigma * ticks[day] - REVERSION * close / TICKS_PER_DAY
        path = close + np.cumsum(moves)
        open_, log_return = path[0], path[-1] - close
        close = path[-1]
        prices = 100 * np.exp([open_, path.max(), path.min(), close])
        variance = omega + ALPHA * log_return**2 + BETA * variance
        volume = 1000 * np.sqrt(variance) / DAILY_VOLATILITY * np.exp(volume_noise[day])
        bars[day] = (*prices, volume)
    return Series(
        name="generated daily bars",
        unit="USD",
        values=bars.astype(np.float32),
        period_steps=1,
        train_end=train,
        validation_end=train + validation,
    )


def daily_range(bars: Array) -> Array:
    """(T, 5) bars to (T, 1): high minus low, USD."""
    return bars[:, 1:2] - bars[:, 2:3]
