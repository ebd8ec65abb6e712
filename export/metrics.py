"""What an error means to the task: forecasts, perplexity, classes, alarms.

A `Score` is one number of one model. A `Metric` holds a variant's against the reference's, and
says how much worse it is: a share of the reference's value for errors, and percentage points for
shares.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Array = np.ndarray
# Beside an error far below what the truth varies by, any variant looks bad: a forecast that is off
# by a thousandth of the spread gets twice as bad by a thousandth more.
LEAST_ERROR = 0.5  # of the truth's spread: what an error counts as, when it is less


@dataclass(frozen=True)
class Score:
    """One number of how well one model does."""

    name: str
    value: float
    unit: str
    kind: Literal["error", "share"]  # less is better, or more
    scale: float = 0.0  # of errors: the spread of the truth, in the same unit


@dataclass(frozen=True)
class Metric:
    """A score of the reference and of a variant."""

    name: str
    unit: str
    reference: float
    variant: float
    worsening: float  # negative: the variant is better
    allowed: float

    @property
    def passed(self) -> bool:
        return self.worsening <= self.allowed  # False for NaN


def compare(reference: Score, variant: Score, allowed: float) -> Metric:
    if reference.kind == "share":
        worsening = reference.value - variant.value
    else:
        base = max(reference.value, LEAST_ERROR * reference.scale)
        worsening = (variant.value - reference.value) / base if base else variant.value
    return Metric(
        reference.name, reference.unit, reference.value, variant.value, worsening, allowed
    )


def error_of(name: str, y: Array, truth: Array, unit: str) -> Score | None:
    """Root mean square of y - truth, both (n, ...) in one unit; NaN in the truth does not count.

    Each output counts in its own spread if they are several, so that one in large units does not
    hide the others.
    """
    known = np.isfinite(truth)
    if not known.any():
        return None
    wanted = truth.reshape(len(truth), -1).astype(np.float64)
    squares = (y.reshape(wanted.shape).astype(np.float64) - wanted) ** 2
    squares = np.where(known.reshape(wanted.shape), squares, np.nan)
    spread = np.nanstd(wanted, axis=0)
    if wanted.shape[1] > 1:
        unit = "standard deviations"
        squares = squares / np.where(spread > 0, spread, 1.0) ** 2
        spread = np.ones(1)
    value = np.sqrt(squares[known.reshape(wanted.shape)].mean())  # NaN of y stays NaN
    return Score(name, float(value), unit, "error", float(spread[0]))


def perplexity(logits: Array, ids: Array) -> Score:
    """How many tokens the model wavers between, on average, before it is told which came.

    Args:
        logits: (n, V). ids: (n,) int64, those that came.
    """
    above = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    surprise = np.log(np.exp(above).sum(axis=1)) - above[np.arange(len(ids)), ids]
    with np.errstate(over="ignore"):
        return Score("perplexity", float(np.exp(surprise.mean())), "tokens", "error")


def share_equal(name: str, found: Array, wanted: Array) -> Score:
    """How often two (n,) arrays of ids are the same."""
    return Score(name, float((found == wanted).mean()), "of steps", "share")


def auc(name: str, scores: Array, is_anomaly: Array) -> Score | None:
    """The share of pairs of an anomalous and a calm step in which the anomalous one scores higher.

    The area under the ROC curve by ranks (Hanley & McNeil, 1982); a tie counts one half.

    Args:
        scores: (n,) float. is_anomaly: (n,) bool.
    """
    anomalous, calm = scores[is_anomaly], np.sort(scores[~is_anomaly])
    if not len(anomalous) or not len(calm):
        return None
    if not np.isfinite(scores).all():
        return Score(name, float("nan"), "of pairs", "share")
    below = np.searchsorted(calm, anomalous, side="left")
    up_to = np.searchsorted(calm, anomalous, side="right")
    return Score(name, float((below + up_to).mean() / (2 * len(calm))), "of pairs", "share")
