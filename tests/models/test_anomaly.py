"""Scores of a detector, worked out by hand, and one through the real loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.anomaly import (
    AnomalyDetection,
    auc,
    largest_jumps,
    missed,
    reconstruction_errors,
    z_scores,
)
from models.autoencoder import AnomalyDetector
from models.data import Series
from models.faults import FaultySeries
from models.fitting import Settings, fit

WINDOWS = np.array([[0, 1, -3], [2, 2, 2]], np.float32)[..., None]


def flat_and_loud() -> FaultySeries:
    """Noise around 5 with mean and deviation 5 and 1, and ten steps of 9 in the held-out part."""
    values = 5 + np.tile([[1.0], [-1.0]], (150, 1)).astype(np.float32)
    faulty = np.zeros(300, np.bool_)
    faulty[250:260] = True
    values[faulty] = 9
    return FaultySeries(Series("loud", "V", values, 2, 100, 200), faulty)


class Says(nn.Module):
    """Reconstructs what training had, 1, -1 or -1, 1, and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)


def test_errors_are_those_worked_out_by_hand() -> None:
    """Clamped to 1: off by 2 in one of three, and by 1 in all three."""
    assert reconstruction_errors(Says(), WINDOWS) == pytest.approx([4 / 3, 1])
    assert z_scores(WINDOWS) == pytest.approx([3, 2])
    assert largest_jumps(WINDOWS) == pytest.approx([4, 0])


def test_auc_is_the_share_of_pairs_in_order_and_ties_count_half() -> None:
    """Faulty 3 and 1 against calm 0, 1, 2: 3 wins thrice, 1 wins once and ties once: 4.5 of 6."""
    errors = np.array([3.0, 0, 1, 2, 1])
    has_fault = np.array([True, False, False, False, True])
    assert auc(errors, has_fault) == pytest.approx(4.5 / 6)
    assert auc(-errors, has_fault) == pytest.approx(1 - 4.5 / 6)


def test_missed_are_those_under_the_threshold_of_calm_time() -> None:
    """99 % of 0, 1, ..., 100 lie up to 99: of faulty 98, 99 and 99.5, two are missed."""
    errors = np.array([98.0, 99.0, 99.5, 1000.0])
    has_fault = np.array([True, True, True, False])
    assert missed(errors, has_fault, np.arange(101.0)) == pytest.approx(200 / 3)


def test_a_detector_that_knows_what_is_calm_makes_no_error() -> None:
    """Every window with a step of 9 in it errs more than every one without."""
    task = AnomalyDetection(flat_and_loud, window=4)
    order, at_threshold = task.score(Says())
    assert (order.model, at_threshold.model) == (0, 0)
    assert order.naive["z-score"] == 0
    # of the 13 windows with a fault, 6 touch an end of it, where 6 to 9 or 9 to 6 is a jump of 3
    # or 5 against 2 of calm windows; the largest jump misses the 7 that lie within
    assert order.naive["largest jump"] > 10


def test_the_alarm_is_set_by_validation_alone() -> None:
    """The 99 % quantile of its errors, whatever comes in held-out time."""

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    pipeline = AnomalyDetection(flat_and_loud, window=4).finished_pipeline(Zero()).to_json()
    assert pipeline["alarm"] == {"score": "mse", "threshold": pytest.approx(1), "quantile": 0.99}
    assert pipeline["x"] == pipeline["y"] == {"mean": [5], "std": [1]}


def test_the_decoder_sees_the_last_hidden_state_at_each_step() -> None:
    """So two windows with one last state have one reconstruction, step by step the decoder's."""
    torch.manual_seed(0)
    model = AnomalyDetector(1, 4)
    x = torch.randn(2, 5, 1)
    _, (h, _) = model.encoder(x)
    out, _ = model.decoder(torch.stack([h[0]] * 5, dim=1))
    torch.testing.assert_close(model(x), model.fc(out), atol=1e-6, rtol=0)


def test_one_epoch_of_the_real_loop_finds_the_fault(tmp_path: Path) -> None:
    """Fewer pairs in the wrong order than by the largest jump."""
    torch.manual_seed(0)
    task = AnomalyDetection(flat_and_loud, window=4)
    model = AnomalyDetector(1, 8)
    settings = Settings(epochs=1, batches=60, batch_size=16, learning_rate=0.02)
    checkpoint = tmp_path / "weights.safetensors"
    fit(model, task, settings, np.random.default_rng(0), checkpoint, lambda _: None)
    order, _ = task.score(model)
    assert order.model < order.naive["largest jump"]
    assert checkpoint.is_file()
