"""The series are what they say, and no split sees another's time."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models import data
from models.data import Series, sine, temperature
from models.errors import SeriesError

LOADERS = pytest.mark.parametrize("load", [sine, temperature])


@LOADERS
def test_splits_follow_each_other_in_time_and_leave_nothing_out(load: Callable[[], Series]) -> None:
    """Train, validation and held-out, put end to end, are the series."""
    series = load()
    joined = np.concatenate((series.train, series.validation, series.holdout))
    assert np.array_equal(joined, series.values)
    assert min(len(series.train), len(series.validation)) > 700


@LOADERS
def test_held_out_time_is_long_enough_to_prove_parity(load: Callable[[], Series]) -> None:
    """At least 2,200 steps of one float32 feature, all finite."""
    holdout = load().holdout
    assert len(holdout) >= 2200
    assert holdout.shape[1:] == (1,)
    assert holdout.dtype == np.float32
    assert np.isfinite(holdout).all()


def test_the_sine_is_a_sine_with_noise_of_the_size_that_it_says() -> None:
    """What is left after subtracting sin(0.1 t) has mean 0 and standard deviation 0.1."""
    values = sine(noise=0.1).values[:, 0]
    noise = values - np.sin(0.1 * np.arange(len(values)))
    assert noise.mean() == pytest.approx(0, abs=0.005)
    assert noise.std() == pytest.approx(0.1, abs=0.005)
    assert sine().period_steps == 63  # 2 pi / 0.1 = 62.8


def test_the_sine_depends_on_its_seed_alone() -> None:
    """The same seed gives the same values, another seed others."""
    assert np.array_equal(sine(seed=3).values, sine(seed=3).values)
    assert not np.array_equal(sine(seed=3).values, sine(seed=4).values)


def test_the_temperature_is_that_of_greensboro() -> None:
    """8,760 hours; the first hours of the file, its extremes and its mean, read by eye."""
    values = temperature().values[:, 0]
    assert len(values) == 365 * 24
    assert values[:3].tolist() == pytest.approx([10.0, 10.0, 10.0])
    assert (values.min(), values.max()) == pytest.approx((-16.7, 35.6))
    assert values.mean() == pytest.approx(14.4218, abs=1e-3)
    assert temperature().period_steps == 24


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with another hash is an error that says which was expected and what to install."""
    other = hashlib.sha256(b"another file").hexdigest()
    monkeypatch.setattr(data, "TMY3_SHA256", other)
    with pytest.raises(SeriesError, match=rf"expected {other}; run `pip install pvlib==\d"):
        temperature()


def test_a_missing_file_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a package without the file nor a missing package ends in a traceback."""
    monkeypatch.setattr(data, "TMY3_FILE", str(Path("pvlib") / "data" / "none.csv"))
    with pytest.raises(SeriesError, match=r"none\.csv is not installed; run `pip install pvlib=="):
        temperature()


@pytest.mark.parametrize("cuts", [(0, 5), (5, 5), (6, 5), (5, 10)])
def test_cuts_out_of_order_are_refused(cuts: tuple[int, int]) -> None:
    """Each split of ten steps must hold at least one."""
    with pytest.raises(SeriesError, match="expected two cuts inside it, in order"):
        Series("ten", "1", np.zeros((10, 1), np.float32), 2, *cuts)
