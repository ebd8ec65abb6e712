"""Times of a step are ratios of contestants that took turns."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from export.finding import find_reference
from export.timing import BATCHES, EAGER, MIN_ROUNDS, Timing, take_turns, this_machine, time_steps
from models.zoo import sine_cell
from service.artifact import Artifact


def spin(seconds: float) -> Callable[[], object]:
    """A step that takes so much CPU time, however busy the machine is."""

    def step() -> object:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return None

    return step


def test_ratios_are_those_of_the_steps() -> None:
    """Three times the work is three times the time."""
    times = take_turns([spin(2e-4), spin(6e-4)], seconds=0.1)
    assert len(times) >= MIN_ROUNDS
    assert np.median(times[:, 1] / times[:, 0]) == pytest.approx(3, rel=0.15)


def test_a_slow_step_is_still_taken_a_few_times() -> None:
    """A budget that is too small is exceeded, not broken into no rounds."""
    assert take_turns([spin(1e-3)], seconds=1e-4).shape == (MIN_ROUNDS, 1)


@pytest.fixture(scope="module")
def timing(demo_artifacts: dict[str, Artifact]) -> Timing:
    artifact = demo_artifacts["sine-cell"]
    manifest = artifact.manifest
    loose = {k: v.model_copy(update={"isolated": True}) for k, v in manifest.variants.items()}
    raw = Artifact(artifact.path, manifest.model_copy(update={"variants": loose}))
    x = torch.from_numpy(artifact.golden().x[:1])
    reference = find_reference(sine_cell().eval(), x, None, None, None)
    return time_steps(artifact, raw, reference, seconds=0.3)


def test_every_variant_and_the_trained_module_are_timed(timing: Timing) -> None:
    """At every batch size; the baseline is 1, by definition."""
    for contestant in ("onnx-fp32", "onnx-int8", EAGER):
        for batch in BATCHES:
            found = timing.of(contestant, batch)
            assert found is not None
            assert found.microseconds > 1
            assert found.quartiles[0] <= found.ratio <= found.quartiles[1]
    assert {s.ratio for s in timing.steps if s.contestant == "onnx-fp32"} == {1.0}
    assert timing.rounds >= MIN_ROUNDS


def test_what_is_not_isolated_is_timed_as_it_is_served_and_as_one_batch(timing: Timing) -> None:
    """64 rows one by one take many times as long as together."""
    served, whole = timing.of("onnx-int8", 64), timing.of("onnx-int8", 64, served=False)
    assert served is not None
    assert whole is not None
    assert not served.as_one_batch
    assert whole.as_one_batch
    assert served.ratio > 5 * whole.ratio
    alone = timing.of("onnx-int8", 1)
    assert alone == timing.of("onnx-int8", 1, served=False)
    assert timing.of("onnx-int8", 7) is None


def test_the_machine_is_told() -> None:
    """Ratios are of a machine, too."""
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.versions["onnxruntime"]
