"""A stream whose waveform changes: for each window of it, which shape has the wave?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data import Series

SHAPES = ("sine", "square", "triangle", "sawtooth")
NOISE = 0.3  # standard deviation, where the waves have a root mean square of 1: shapes blur
SEGMENT_STEPS = (60, 180)  # a shape lasts so long, at least and below
PERIOD_STEPS = (12.0, 30.0)


@dataclass(frozen=True)
class LabelledSeries:
    """A series and the class of each step.

    Args:
        series: the values, and where they are cut.
        labels: (T,) int64, an index into ``classes``.
        classes: what there is to tell apart.
    """

    series: Series
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def shapes(
    train: int = 12_000, validation: int = 2_000, holdout: int = 4_000, seed: int = 0
) -> LabelledSeries:
    """Waves of random shape, period and phase, one after the other, with Gaussian noise.

    All have mean 0 and root mean square 1, so that neither level nor loudness tells the shape.

    Args:
        train, validation, holdout: steps of each split.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    steps = train + validation + holdout
    values: list[NDArray[np.float64]] = []
    labels: list[NDArray[np.int64]] = []
    while sum(map(len, values)) < steps:
        length = int(rng.integers(*SEGMENT_STEPS))
        label = int(rng.integers(len(SHAPES)))
        turns = rng.uniform() + np.arange(length) / rng.uniform(*PERIOD_STEPS)
        values.append(wave(SHAPES[label], turns) + NOISE * rng.standard_normal(length))
        labels.append(np.full(length, label))
    series = Series(
        name="waves",
        unit="unitless",
        values=np.concatenate(values)[:steps, None].astype(np.float32),
        period_steps=1,
        train_end=train,
        validation_end=train + validation,
    )
    return LabelledSeries(series, np.concatenate(labels)[:steps], SHAPES)


def wave(shape: str, turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) turns (1 is a whole period) to the wave there, root mean square 1 over a period."""
    phase = turns % 1
    waves: dict[str, NDArray[np.float64]] = {
        "sine": np.sqrt(2) * np.sin(2 * np.pi * phase),
        "square": np.where(phase < 0.5, 1.0, -1.0),
        "triangle": np.sqrt(3) * (1 - 4 * np.abs(phase - 0.5)),
        "sawtooth": np.sqrt(3) * (2 * phase - 1),
    }
    return waves[shape]
