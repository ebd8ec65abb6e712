"""The forecasts that need no model, which a model must beat to be worth deploying.

After Hyndman & Athanasopoulos, "Forecasting: Principles and Practice" (2021), section 5.2.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def last_value(history: Array, horizon: int) -> Array:
    """Everything stays as it is.

    Args:
        history: (N, T, O), what was seen.
        horizon: steps to forecast.
    Returns:
        (N, horizon, O): the last step of each history, repeated.
    """
    return np.repeat(history[:, -1:], horizon, axis=1)


def seasonal(history: Array, horizon: int, period_steps: int) -> Array:
    """Everything comes again as it was one period ago.

    Args:
        history: (N, T, O), what was seen; T is at least one period.
        horizon: steps to forecast.
        period_steps: the period, in whole steps.
    Returns:
        (N, horizon, O): the last period of each history, over and over.
    """
    if history.shape[1] < period_steps:
        raise ValueError(
            f"history has {history.shape[1]} steps, expected at least one period of {period_steps}"
        )
    last_period = history[:, history.shape[1] - period_steps :]
    return last_period[:, np.arange(horizon) % period_steps]


def mean_value(history: Array, horizon: int, steps: int) -> Array:
    """Everything stays at its recent average.

    Args:
        history: (N, T, O), what was seen.
        horizon: steps to forecast.
        steps: of the history, from its end, that are averaged.
    Returns:
        (N, horizon, O): the mean of each history's last ``steps`` steps, repeated.
    """
    return np.repeat(history[:, -steps:].mean(axis=1, keepdims=True), horizon, axis=1)
