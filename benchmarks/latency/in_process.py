"""The part without a network: one call after the other, for every model and size.

In a cell (a model, so many rows, so many steps of each) all contestants take turns. Of the
libraries that compute a floor the fastest counts. Ratios are to stock ONNX Runtime's CPU time of
the same round; where it cannot run the model, to torch eager's, else to the first variant's.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from benchmarks.latency.contestants import EAGER, FLOORS, STOCK, Contestants, module_of
from benchmarks.latency.made import Size, make, network
from benchmarks.latency.part import Tell
from benchmarks.latency.point import IN_PROCESS, Findings, Model, Point
from benchmarks.latency.turns import Times, take_turns
from service.artifact import Artifact
from service.manifest import VariantName

Cell = tuple[int, int]  # rows, steps of each


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    sizes: Mapping[Size, Sequence[Cell]]  # of made models
    artifacts: Sequence[Artifact]  # the user's
    own_cells: Sequence[Cell]  # of those
    variants: Sequence[VariantName]  # of made models; of the user's: all that there are
    rounds: int
    slice_s: float  # of a contestant in a round
    threads: int  # of each engine
    cache: Path  # of made models


class InProcess:
    """As `Part` asks."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def turns(self) -> int:
        cells = sum(1 + len(cells) for cells in self._plan.sizes.values())
        return cells + len(self._plan.artifacts) * (1 + len(self._plan.own_cells))

    def measure(self, findings: Findings, tell: Tell) -> None:
        """
        Raises:
            ExportError: a made model could not be exported.
        """
        plan = self._plan
        torch.set_num_threads(plan.threads)
        with threadpool_limits(plan.threads):
            for size, cells in plan.sizes.items():
                tell(f"{size.name}: exported, unless it is there")
                artifact = make(plan.cache, size, plan.variants)
                module = network(size.kind, size.hidden, size.layers)
                self._contest(artifact, size.model, module, cells, findings, tell)
            for artifact in plan.artifacts:
                model = model_of(artifact)
                tell(f"{model.name}: opened")
                try:
                    own = module_of(artifact)
                except LookupError as error:
                    findings.add_absent("what else runs it", model.name, str(error))
                    own = None
                self._contest(artifact, model, own, plan.own_cells, findings, tell)

    def _contest(
        self,
        artifact: Artifact,
        model: Model,
        module: nn.Module | None,
        cells: Sequence[Cell],
        findings: Findings,
        tell: Tell,
    ) -> None:
        plan = self._plan
        found = list(artifact.manifest.variants)
        variants = [v for v in found if not model.is_made or v in plan.variants]
        findings.models.append(model)
        with tempfile.TemporaryDirectory() as scratch:
            contestants = Contestants(
                artifact, model, module, variants, plan.threads, Path(scratch)
            )
            for rows, steps in cells:
                tell(f"{model.name}: {rows} x {steps}")
                times = take_turns(contestants.calls(rows, steps), plan.rounds, plan.slice_s)
                findings.points += points_of(model.name, rows, steps, times)
            for name, why in contestants.absent.items():
                findings.add_absent(name, model.name, why)


def points_of(model: str, rows: int, steps: int, times: Mapping[str, Times]) -> Iterator[Point]:
    """One for each contestant; of `FLOOR (library)` the fastest, as FLOOR."""
    counted = {name: value for name, value in times.items() if not name.startswith(FLOORS)}
    for floor in FLOORS:
        ways = [value for name, value in times.items() if name.startswith(f"{floor} (")]
        if ways:
            counted[floor] = min(ways, key=lambda way: float(np.median(way.cpu_us)))
    baseline = next((name for name in (STOCK, EAGER) if name in counted), next(iter(counted)))
    for name, value in counted.items():
        p50, p90, p99 = np.percentile(value.wall_us, [50, 90, 99]).tolist()
        yield Point(
            part=IN_PROCESS,
            model=model,
            contestant=name,
            rows=rows,
            steps=steps,
            calls=len(value.wall_us),
            p50_us=p50,
            p90_us=p90,
            p99_us=p99,
            steps_per_s=rows * steps * 1e6 / float(np.median(value.slice_us)),
            cpu_us=float(np.median(value.cpu_us)) / (rows * steps),
            baseline=baseline,
            ratio=float(np.median(value.cpu_us / counted[baseline].cpu_us)),
        )


def model_of(artifact: Artifact) -> Model:
    """What the ports tell of a user's model: states h and c, (B, H) or (B, L, H), are an LSTM's."""
    ports = artifact.manifest.ports
    states = {port.name: [int(dim) for dim in port.shape[1:]] for port in ports.states}
    width = int(np.prod([int(dim) for dim in ports.x.shape[2:]]))
    if set(states) != {"h", "c"} or not 1 <= len(states["h"]) <= 2:
        return Model(artifact.manifest.name, "", width, 0, 0, is_made=False)
    *layers, hidden = states["h"]
    return Model(
        artifact.manifest.name, "lstm", width, hidden, layers[0] if layers else 1, is_made=False
    )
