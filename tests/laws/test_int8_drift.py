"""How far the int8 variants drift over 10,000 steps of real input that nothing was read off."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import zoo
from models.data import Series, sine, temperature
from service.artifact import Artifact
from service.runtime import Runtime

Array = np.ndarray
STEPS = 10_000
HALF = 0.5
READ = 1_200  # of the example: its first half, which the export may look at


def far_input(name: str) -> Series:
    """As many steps of the model's own kind of input, or a year of weather and more."""
    return sine(holdout=READ + STEPS) if name == "sine-cell" else temperature()


def unread(series: Series) -> Array:
    """(STEPS, I) raw: after what the export read, and then, if need be, from the start again."""
    after = series.values[series.validation_end + READ :]
    return np.concatenate([after, series.values, series.values])[:STEPS]


@pytest.mark.parametrize("name", ["sine-cell", "series-lstm"])
def test_rowwise_drifts_at_most_half_as_far_as_stock(
    name: str, demo_artifacts: dict[str, Artifact], demo_runs: dict[str, Path]
) -> None:
    """The greatest error of y over 10,000 steps, teacher-forced, the state carried."""
    artifact = demo_artifacts[name]
    raw = unread(far_input(name))
    x = artifact.manifest.pipeline.encode(raw)[None].astype(np.float32)
    module = getattr(zoo, name.replace("-", "_"))().eval()
    module.load_state_dict(load_file(demo_runs[name] / "weights.safetensors"))
    with torch.no_grad():
        y = module(torch.from_numpy(x))[0].numpy()

    def drift(variant: str) -> float:
        found, _ = Runtime(artifact, variant).run(x, artifact.initial)
        return float(np.abs(found - y).max())

    assert drift("onnx-int8-rowwise") <= HALF * drift("onnx-int8")
