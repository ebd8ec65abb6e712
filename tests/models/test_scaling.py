"""Raw units in, raw units out."""

import numpy as np
import pytest
import torch

from models.scaling import Pipeline, Scaler

VALUES = np.array([[1, 10, 7], [3, 30, 7]], np.float32)


def test_each_feature_is_scaled_by_its_own_mean_and_deviation() -> None:
    """Features 1 and 2 become -1 and 1; the third never varies and is only shifted."""
    scaler = Scaler.fit(VALUES)
    standard = scaler.standardise(VALUES)
    assert standard.tolist() == [[-1, -1, 0], [1, 1, 0]]
    assert standard.dtype == np.float32
    assert scaler.restore(torch.from_numpy(standard)) == pytest.approx(VALUES)


def test_the_pipeline_file_holds_plain_lists() -> None:
    """The form that export reads: mean and std, one number per feature, for x and for y."""
    one = Scaler.fit(VALUES[:, :1])
    assert Pipeline(x=Scaler.fit(VALUES), y=one).to_json() == {
        "x": {"mean": [2.0, 20.0, 7.0], "std": [1.0, 10.0, 1.0]},
        "y": {"mean": [2.0], "std": [1.0]},
    }
