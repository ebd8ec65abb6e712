"""What the ladder asks of a plan, found out with files: written, proven, timed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from export.cases import Cases
from export.isolation import Isolation
from export.lowered import Lowered
from export.measured import Measured
from export.parity import Gate
from export.precision import ALL_ROWWISE, Plan
from export.timing import take_turns
from export.variants import save_graphs
from service.artifact import Artifact
from service.layout import State
from service.manifest import File, Manifest, Variant, VariantName
from service.runtime import Runtime

Array = np.ndarray
ROWWISE: VariantName = "onnx-int8-rowwise"
BASELINE: VariantName = "onnx-fp32"
PROBE_STEPS = 1_000  # of the shorter piece: a second's work, and enough for a climate
BATCHES = (1, 64)
TIMING_S = 0.25  # of one pair at one batch size: ratios are then good to some hundredths


@dataclass(frozen=True)
class Proof:
    """What was found of one variant."""

    entry: Variant
    measured: Sequence[Measured]
    isolation: Isolation


class VariantTrials:
    """Plans for the rowwise variant of one artifact that is being written."""

    def __init__(
        self,
        lowered: Lowered,
        folder: Path,
        draft: Manifest,
        prove: Callable[[Manifest, VariantName], Proof],
        short_cases: Callable[[], Cases],
        atol: float | None,
    ) -> None:
        """Args:
        folder: where the artifact is being written.
        draft: its manifest before the proof.
        prove: proves a variant as a draft of the manifest describes it.
        short_cases: those of `PROBE_STEPS`, run when they are first needed.
        atol: in place of the gate's own tolerances.
        """
        self._lowered = lowered
        self._folder = folder
        self._draft = draft
        self._prove = prove
        self._short_cases = short_cases
        self._short_gate: Gate | None = None
        self._atol = atol
        self._proof: Proof | None = None

    @property
    def layers(self) -> Mapping[str, int]:
        return self._lowered.layers

    @property
    def proof(self) -> Proof:
        """Of the plan that was proven last; of all in int8, if none was."""
        return self._proof or self._prove_plan(ALL_ROWWISE)

    def prove(self, plan: Plan) -> tuple[Sequence[Measured], int]:
        found = self._prove_plan(plan)
        return found.measured, _size(found.entry)

    def _prove_plan(self, plan: Plan) -> Proof:
        found = self._prove(self._written(self._folder, plan), ROWWISE)
        precision = {layer: plan.of(layer) for layer in self.layers}
        entry = found.entry.model_copy(update={"precision": precision})
        self._proof = replace(found, entry=entry)
        return self._proof

    def probe(self, plan: Plan) -> Sequence[Measured]:
        if self._short_gate is None:
            self._short_gate = Gate(self._short_cases())
        with TemporaryDirectory() as scratch:
            return self._short_gate.measure(self._runtime(Path(scratch), plan), self._atol)

    def gain(self, plan: Plan, over: Plan | None = None) -> float:
        with TemporaryDirectory() as one, TemporaryDirectory() as other:
            quick = self._runtime(Path(one), plan)
            slow = self._runtime(Path(other), over)
            return speedup(quick, slow, *self._one_row())

    def _runtime(self, folder: Path, plan: Plan | None) -> Runtime:
        draft = self._written(folder, plan)
        return Runtime(Artifact(folder, draft), BASELINE if plan is None else ROWWISE)

    def _written(self, folder: Path, plan: Plan | None) -> Manifest:
        """The draft with the files of a plan (None: of `BASELINE`), which are written now."""
        name, ports = (BASELINE, ROWWISE)[plan is not None], self._draft.ports
        if plan is None:
            graphs = self._lowered.float_graphs(ports)
        else:
            graphs = self._lowered.rowwise_graphs(ports, plan)
        file, step = save_graphs(folder, name, graphs)
        variants = {**self._draft.variants, name: _entry(file, step)}
        return self._draft.model_copy(update={"variants": variants})

    def _one_row(self) -> tuple[Array, State]:
        """A step of the example, and the state after some."""
        golden = Artifact(self._folder, self._draft).golden()
        return golden.x[:1, -1:], {name: value[:1] for name, value in golden.final.items()}


def _entry(file: File, step: File) -> Variant:
    return Variant(**file.model_dump(), isolated=True, step=step, parity=[])


def _size(entry: Variant) -> int:
    return entry.size + (entry.step.size if entry.step else 0)


def speedup(quick: Runtime, slow: Runtime, x: Array, state: State) -> float:
    """A step's time in `slow` / in `quick`, the lesser of those at `BATCHES`.

    Args:
        x: (1, 1, ...) one step of one row.
        state: name -> (1, ...).
    """
    ratios = []
    for batch in BATCHES:
        rows = np.repeat(x, batch, axis=0)
        states = {name: np.repeat(value, batch, axis=0) for name, value in state.items()}
        times = take_turns([partial(r.run, rows, states) for r in (slow, quick)], TIMING_S)
        ratios.append(float(np.median(times[:, 0] / times[:, 1])))
    return min(ratios)
