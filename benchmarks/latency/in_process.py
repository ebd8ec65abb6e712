"""The part without a network: one call after the other, for every model and size.

In a cell (a model, so many rows, so many steps of each) all contestants take turns, and so do the
cells: everything is opened, then every round has all of it, as the advisor compares models. Of the
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
from benchmarks.latency.turns import Call, Times, take_turns
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
        return len(self._plan.sizes) + len(self._plan.artifacts) + self._plan.rounds

    def measure(self, findings: Findings, tell: Tell) -> None:
        """
        Raises:
            ExportError: a made model could not be exported.
        """
        plan = self._plan
        torch.set_num_threads(plan.threads)
        cells: dict[tuple[str, int, int], dict[str, Call]] = {}
        with threadpool_limits(plan.threads), tempfile.TemporaryDirectory() as scratch:
            for size, own_cells in plan.sizes.items():
                tell(f"{size.name}: exported, unless it is there")
                artifact = make(plan.cache, size, plan.variants)
                module = network(size.kind, size.hidden, size.layers)
                cells |= self._open(artifact, size.model, module, own_cells, findings, scratch)
            for artifact in plan.artifacts:
                model = model_of(artifact)
                tell(f"{model.name}: opened")
                try:
                    own = module_of(artifact)
                except LookupError as error:
                    findings.add_absent("what else runs it", model.name, str(error))
                    own = None
                cells |= self._open(artifact, model, own, plan.own_cells, findings, scratch)
            times = take_turns(list(cells.values()), plan.rounds, plan.slice_s, tell)
        for (name, rows, steps), found in zip(cells, times, strict=True):
            findings.points += points_of(name, rows, steps, found)

    def _open(
        self,
        artifact: Artifact,
        model: Model,
        module: nn.Module | None,
        cells: Sequence[Cell],
        findings: Findings,
        scratch: str,
    ) -> dict[tuple[str, int, int], dict[str, Call]]:
        """(model, rows, steps) -> who takes part there."""
        plan = self._plan
        found = list(artifact.manifest.variants)
        variants = [v for v in found if not model.is_made or v in plan.variants]
        findings.models.append(model)
        folder = Path(tempfile.mkdtemp(dir=scratch))
        contestants = Contestants(artifact, model, module, variants, plan.threads, folder)
        opened = {(model.name, *cell): contestants.calls(*cell) for cell in cells}
        for name, why in contestants.absent.items():
            findings.add_absent(name, model.name, why)
        return opened


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
