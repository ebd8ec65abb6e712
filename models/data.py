"""The series that the models learn: a sine wave to look at, and a year of real weather.

Each is cut once, by time: train, then validation, then held-out. Nothing is shuffled across a cut,
and whatever is fitted (weights, scaling, when to stop) sees held-out time never.
"""

import csv
import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import SeriesError

Array = NDArray[np.float32]

PVLIB_VERSION = "0.16.1"  # the version whose copy of the file was read and hashed
TMY3_FILE = "pvlib/data/723170TYA.CSV"
TMY3_SHA256 = "1e96f84638ce98e6b29002bc45a27aa69bb29b0ed0368d3b52b7b1f81610c6c9"
TMY3_COLUMN = "Dry-bulb (C)"
HOURS_PER_DAY = 24


@dataclass(frozen=True)
class Series:
    """A series in raw units, and where it is cut.

    Args:
        name: what was measured, for tables.
        unit: of the values, for tables.
        values: (T, I) float32, raw units, evenly spaced in time.
        period_steps: the length of a season, rounded to whole steps.
        train_end: index of the first validation step.
        validation_end: index of the first held-out step.
    """

    name: str
    unit: str
    values: Array
    period_steps: int
    train_end: int
    validation_end: int

    def __post_init__(self) -> None:
        if not 0 < self.train_end < self.validation_end < len(self.values):
            raise SeriesError(
                f"series `{self.name}` has {len(self.values)} steps and is cut at "
                f"{self.train_end} and {self.validation_end}, expected two cuts inside it, in order"
            )

    @property
    def train(self) -> Array:
        return self.values[: self.train_end]

    @property
    def validation(self) -> Array:
        return self.values[self.train_end : self.validation_end]

    @property
    def holdout(self) -> Array:
        return self.values[self.validation_end :]


def sine(
    noise: float = 0.1, train: int = 3000, validation: int = 800, holdout: int = 2400, seed: int = 0
) -> Series:
    """The tutorials' sine wave, ``sin(0.1 t)``, with the noise that a sensor would add.

    The noise is what makes it a forecast: without it, last period's value is already right, and
    there would be nothing to beat. The period, 62.8 steps, is no whole number of steps.

    Args:
        noise: standard deviation of the Gaussian noise, where the sine has amplitude 1.
        train, validation, holdout: steps of each split.
        seed: of the noise.
    """
    t = np.arange(train + validation + holdout)
    clean = np.sin(0.1 * t)
    noisy = clean + noise * np.random.default_rng(seed).standard_normal(len(t))
    return Series(
        name="noisy sine",
        unit="unitless",
        values=noisy[:, None].astype(np.float32),
        period_steps=round(2 * np.pi / 0.1),
        train_end=train,
        validation_end=train + validation,
    )


def temperature() -> Series:
    """Hourly dry-bulb temperature in Greensboro, North Carolina, over a typical year, degrees C.

    8,760 values from January to December: the TMY3 file of station 723170 (Wilcox & Marion, "Users
    Manual for TMY3 Data Sets", NREL/TP-581-43156, 2008). A typical year is twelve real months, each
    from another year (January 1988, February 1996, ...), joined by smoothing six hours on either
    side. So the weather is measured, and eleven of its midnights are not.

    The file lies in the wheel of pvlib, under that package's licence, BSD-3-Clause; the data were
    produced by the US National Renewable Energy Laboratory for the Department of Energy and
    published for use without a fee. Carousel does not redistribute the file: it reads the copy that
    pip installed, offline, and without importing pvlib (which would pull in pandas and scipy).

    Cut at 215 and 265 days: 5,160 hours to train, 1,200 to validate, 2,400 held out (from
    23 September), so that the held-out weather is of a season that was not trained on.

    Raises:
        SeriesError: pvlib is missing or carries another file. Install the pinned version.
    """
    rows = csv.DictReader(_tmy3_text().splitlines()[1:])  # the first line names the station
    values = [float(row[TMY3_COLUMN]) for row in rows]
    return Series(
        name="temperature",
        unit="°C",
        values=np.array(values, dtype=np.float32)[:, None],
        period_steps=HOURS_PER_DAY,
        train_end=215 * HOURS_PER_DAY,
        validation_end=265 * HOURS_PER_DAY,
    )


def _tmy3_text() -> str:
    """The text of the pinned file, checked against its hash."""
    install = f"pip install pvlib=={PVLIB_VERSION}"
    try:
        content = Path(str(distribution("pvlib").locate_file(TMY3_FILE))).read_bytes()
    except (PackageNotFoundError, FileNotFoundError) as error:
        raise SeriesError(f"{TMY3_FILE} is not installed; run `{install}`") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != TMY3_SHA256:
        raise SeriesError(
            f"{TMY3_FILE} has sha256 {sha256}, expected {TMY3_SHA256}; run `{install}`"
        )
    return content.decode("ascii")
