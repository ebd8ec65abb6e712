"""How long one step takes, in every variant: as ratios, since times are of the day.

How it works: the contestants take turns, round after round, each for a slice of calls, so that a
machine that slows down slows all of them. What counts is the CPU time of the calling thread, which
other programs do not lengthen, and of that the ratio to the baseline's of the same round; the
median over the rounds is told.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch

from export.reference import Reference
from service.artifact import Artifact
from service.cpu import read_cpu
from service.layout import State
from service.runtime import Runtime

Array = np.ndarray
BATCHES = (1, 16, 64)
MIN_ROUNDS, MAX_ROUNDS = 5, 25
WARM_UP_CALLS = 3  # TorchScript optimises a module in its first calls
EAGER = "torch eager"  # the module as it was trained
PACKAGES = ("onnxruntime", "torch", "numpy")

Step = Callable[[], object]


@dataclass(frozen=True)
class Machine:
    """The conditions of a measurement."""

    cpu: str  # with those of its features that int8 asks for
    cores: int  # that this process may use
    versions: Mapping[str, str]


@dataclass(frozen=True)
class StepTime:
    """One step of `batch` rows."""

    contestant: str  # a variant, or EAGER
    batch: int
    as_one_batch: bool  # False: row by row, as the service runs what is not isolated
    microseconds: float  # median over the rounds
    ratio: float  # to the baseline's of the same round, median
    quartiles: tuple[float, float]  # of the ratio


@dataclass(frozen=True)
class Timing:
    """What was measured, and where."""

    baseline: str
    rounds: int  # the fewest of any batch size
    steps: Sequence[StepTime]
    machine: Machine

    def of(self, contestant: str, batch: int, *, served: bool = True) -> StepTime | None:
        """As the service runs it; not `served`: as one batch, where that is another thing."""
        found = [s for s in self.steps if (s.contestant, s.batch) == (contestant, batch)]
        return next((s for s in found if served or s.as_one_batch), None)


def time_steps(artifact: Artifact, raw: Artifact, reference: Reference, seconds: float) -> Timing:
    """Time one step of every variant, and of the module as it was trained.

    Args:
        artifact: as it is served.
        raw: the same, every variant as if it were isolated.
        seconds: what all of it may take, about; a model whose step is slow takes longer.
    """
    variants = list(artifact.manifest.variants)
    baseline = "onnx-fp32" if "onnx-fp32" in variants else variants[0]
    ways = [(v, True) if artifact.variant(v).isolated else (v, False) for v in variants]
    ways += [(v, True) for v, whole in ways if not whole]
    served = {v: Runtime(artifact, v) for v in variants}
    apart = {v: Runtime(raw, v) for v, whole in ways if not whole}
    found, rounds = [], MAX_ROUNDS
    for batch in BATCHES:
        x, state = _input(artifact, batch)
        steps: dict[tuple[str, bool], Step] = {(EAGER, True): _eager(reference, x, state)}
        for variant, whole in ways:
            runtime = apart[variant] if whole and variant in apart else served[variant]
            steps[variant, whole] = _bind(runtime, x, state)
            if batch == 1 and variant in apart:
                steps.pop((variant, False), None)  # row by row is all there is
        times = take_turns(list(steps.values()), seconds / len(BATCHES))
        rounds = min(rounds, len(times))
        base = times[:, next(k for k, (name, _) in enumerate(steps) if name == baseline)]
        for k, (contestant, whole) in enumerate(steps):
            ratio = times[:, k] / base
            low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
            found.append(
                StepTime(
                    contestant,
                    batch,
                    whole,
                    float(np.median(times[:, k])) * 1e6,
                    float(middle),
                    (float(low), float(high)),
                )
            )
    return Timing(baseline, rounds, found, this_machine())


def _bind(runtime: Runtime, x: Array, state: State) -> Step:
    return lambda: runtime.run(x, state)


def _eager(reference: Reference, x: Array, state: State) -> Step:
    given = torch.from_numpy(x)
    states = {name: torch.from_numpy(value) for name, value in state.items()}

    def step() -> object:
        with torch.no_grad():
            return reference.run(given, states)

    return step


def _input(artifact: Artifact, batch: int) -> tuple[Array, State]:
    golden = artifact.golden()
    x = np.resize(golden.x[:, 0], (batch, 1, *golden.x.shape[2:]))
    state = {
        name: np.resize(value, (batch, *value.shape[1:])) for name, value in golden.final.items()
    }
    return x, state


def take_turns(steps: Sequence[Step], seconds: float) -> Array:
    """Seconds a call, (rounds, contestants)."""
    singles = []
    for step in steps:
        for _ in range(WARM_UP_CALLS):
            step()
        singles.append(_seconds(step, 1))
    rounds = int(np.clip(seconds / max(sum(singles), 1e-9), MIN_ROUNDS, MAX_ROUNDS))
    slice_s = seconds / rounds / len(steps)
    calls = [max(1, int(slice_s / max(single, 1e-6))) for single in singles]
    times = np.empty((rounds, len(steps)))
    for k in range(rounds):
        for j in np.roll(np.arange(len(steps)), k).tolist():  # nobody is always first
            times[k, j] = _seconds(steps[j], calls[j])
    return times


def _seconds(step: Step, calls: int) -> float:
    start = time.thread_time()
    for _ in range(calls):
        step()
    return (time.thread_time() - start) / calls


def this_machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(str(read_cpu()), cores or 1, {package: version(package) for package in PACKAGES})
