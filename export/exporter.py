"""The whole road: adapt, lower, quantize, prove, write. All of the artifact, or nothing.

`export` is the sequence; each stage is a module of its own.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from export.cases import Cases
from export.draft import (
    check_pipeline,
    draft_manifest,
    ports_of,
    precisions_of,
    roads_of,
    seal,
    with_ranges,
    write_golden,
    write_initial,
)
from export.errors import ParityError, SourceError
from export.finding import find_reference
from export.gate_errors import STEPS, GateError, measure_gates
from export.isolation import TRIALS, Isolation, measure_isolation
from export.ladder import Ladder, climb
from export.lowered import Lowered
from export.lowering import LoweredNetwork, lower_reference
from export.measured import Measured, faults_of
from export.model_input import model_input
from export.onnx_in.source import OnnxSource
from export.parity import Gate
from export.placing import place, staging
from export.precision import ALL_ROWWISE, Plan
from export.reporting.evidence import Evidence
from export.reporting.report import write_report
from export.source import Source
from export.target import checked_target
from export.timing import time_steps
from export.trials import PROBE_STEPS, ROWWISE, Proof, VariantTrials
from export.variants import write_variants
from service.artifact import Artifact
from service.manifest import MANIFEST, Manifest, Variant, VariantName
from service.runtime import Runtime

Array = np.ndarray
ALL_VARIANTS: tuple[VariantName, ...] = (  # those that are written unless others are asked for
    "onnx-fp32",
    "onnx-int8",
    "onnx-int8-rowwise",
    "torchscript-fp32",
    "torchscript-int8",
)
ON_REQUEST: tuple[VariantName, ...] = ("torch-export",)
FLOAT_VARIANTS: tuple[VariantName, ...] = ("onnx-fp32", "torchscript-fp32", "torch-export")
# Stock dynamic quantization takes one activation scale for the whole batch. On some models and
# examples the trials do not catch it; it is no less there.
ONE_SCALE: tuple[VariantName, ...] = ("onnx-int8", "torchscript-int8")
WAY_OUT = (
    "not written. Leave the variant out (--variants), or allow it more if your task does "
    "(--tolerance VARIANT=ATOL, --worsening PERCENT)"
)

Progress = Callable[[str], None]  # told what begins


@dataclass(frozen=True)
class Exported:
    """A written artifact and what the gate measured."""

    artifact: Artifact
    measured: Sequence[Measured]


def export(
    source: Source | OnnxSource,
    name: str,
    out: Path,
    *,
    notation: str | None = None,
    window: int | None = None,
    variants: Sequence[VariantName] | None = None,
    default_variant: VariantName | None = None,
    tolerances: Mapping[str, float] | None = None,
    steps: int | None = None,
    target: Array | None = None,
    worsening: float | None = None,
    isolation_trials: int = TRIALS,
    timing_s: float = 0.0,
    max_drift: float | None = None,
    min_speedup: float | None = None,
    progress: Progress = lambda what: None,
) -> Exported:
    """Export `source` as artifact `out/name/VERSION/`.

    Args:
        notation: how the module is called (`--call`); None: found out.
        window: `--mode windowed`: the inputs that the model sees at each step; None: it carries
            its own state.
        variants: those to write, the first of them the default unless `default_variant` says.
            None: `ALL_VARIANTS` as far as they can be had; what cannot, or is int8 and drifts, is
            left out, and that is said.
        tolerances: variant -> atol, in place of the gate's own; these must pass.
        steps: how long each case of the proof is (10,000); a shorter example is cycled.
        target: the truth of y at each step of the example, in raw units (of tokens and classes
            their ids, of a score 0 or 1), for metrics of the task.
        worsening: by how much those of an int8 variant may be worse than the reference's, in
            place of the default: a share of an error's value, or of percentage points.
        isolation_trials: rows that are put into every kind of company, for each variant.
        timing_s: what the timing of a step may take, about; 0: no times in the report, whose bytes
            are then the same whenever it is written.
        max_drift: atol of the int8 variants that `tolerances` does not name, in place of the gate's
            own; what exceeds it is left out.
        min_speedup: how many times faster than onnx-fp32 a step of onnx-int8-rowwise has to be, at
            batch 1 and at batch 64, on this machine; None: nothing is timed, and the same input
            gives the same bytes.
        progress: told, in a few words, what begins.
    Raises:
        ExportError: some part failed; nothing was written. A float variant that drifts, or one
            that was asked for, is such a part.
    """
    must_pass = {*(variants or ()), *(tolerances or ()), *FLOAT_VARIANTS}
    progress("calling the module")
    x = model_input(source)
    piece = torch.from_numpy(x[:, : max(64, window or 0)])
    reference = find_reference(source.module, piece, notation, window, source.pipeline.alarm)
    progress("running the reference")
    ports = ports_of(reference, x)
    check_pipeline(source, ports, x)
    tail = tuple(int(size) for size in ports.y.shape[2:])
    if target is not None:
        means = source.pipeline.y_means(tail)
        target = checked_target(target, x.shape, tail, means, tail[-1] if tail else 1)
    cases = Cases(reference, x, ports, source.pipeline, steps, progress)
    gate = Gate(cases, target, worsening, progress)
    gate.check_causal()
    progress("lowering")
    lowered = lower_reference(reference, torch.from_numpy(x))
    ports = with_ranges(ports, lowered, cases, source.pipeline)
    check_pipeline(source, ports, x)  # what ids there are is known now
    with staging(out / name) as folder:
        progress("writing the graphs")
        files, left_out = write_variants(
            folder, lowered, ports, variants or ALL_VARIANTS, asked=variants or ()
        )
        write_golden(folder, cases.golden, ports)
        initial = write_initial(folder, reference, ports)
        draft = draft_manifest(source, name, ports, reference, folder, initial, files)
        measured: list[Measured] = []
        rejected: list[Measured] = []
        isolation: dict[str, Isolation] = {}
        proven: dict[VariantName, Variant] = {}
        refused: list[str] = []
        ladder: Ladder | None = None
        for variant in files:
            progress(f"proving {variant}")
            atol = (tolerances or {}).get(variant, max_drift if "int8" in variant else None)
            prove = partial(_prove, folder, gate=gate, x=x, atol=atol, trials=isolation_trials)
            if variant == ROWWISE:
                short = partial(Cases, reference, x, ports, source.pipeline, PROBE_STEPS)
                trials = VariantTrials(lowered, folder, draft, prove, short, atol)
                ladder = climb(trials, min_speedup, lambda what: progress(f"{ROWWISE}: {what}"))
                proof, why = trials.proof, ladder.why_not
            else:
                proof = prove(draft, variant)
                why = faults_of(proof.measured)
            isolation[variant] = proof.isolation
            entry = proof.entry
            if why and variant in must_pass:
                refused.append(why)
            elif why:
                left_out[variant] = why
                rejected += proof.measured
                (folder / entry.file).unlink()
                if entry.step:
                    (folder / entry.step.file).unlink()
                continue
            proven[variant] = entry
            measured += proof.measured
        if refused:
            raise ParityError(f"{'; '.join(refused)}; {WAY_OUT}")
        lowering = roads_of(lowered, reference.name, left_out)
        if ladder and ladder.taken:
            lowering += precisions_of(ladder)
        manifest = seal(draft, proven, lowering, _default(default_variant, proven))
        (folder / MANIFEST).write_text(manifest.to_json())
        progress("measuring for the report")
        timing = None
        if timing_s:
            raw = Artifact(folder, draft)
            timing = time_steps(Artifact(folder, manifest), raw, reference, timing_s)
        rungs = ladder.rungs if ladder else ()
        gates = _gates(lowered, cases, ladder)
        evidence = Evidence(manifest, measured, rejected, isolation, gates, timing, rungs)
        write_report(folder, evidence)
        path = place(folder, out / name / manifest.version)
    return Exported(Artifact.load(path), measured)


def _default(asked: VariantName | None, proven: Collection[VariantName]) -> VariantName:
    if asked is None:
        return next(iter(proven))
    if asked not in proven:
        raise SourceError(f"the default variant `{asked}` is not among those written: {[*proven]}")
    return asked


def _gates(lowered: Lowered, cases: Cases, ladder: Ladder | None) -> list[GateError]:
    """Of the cells that were recognised; the general road has none."""
    if not isinstance(lowered, LoweredNetwork):
        return []
    plan = Plan(ladder.taken.layers) if ladder and ladder.taken else ALL_ROWWISE
    return measure_gates(lowered.network, *cases.pieces(STEPS), plan, lowered.gradients)


def _prove(
    folder: Path,
    draft: Manifest,
    name: VariantName,
    *,
    gate: Gate,
    x: Array,
    atol: float | None,
    trials: int,
) -> Proof:
    artifact = Artifact(folder, draft)
    isolation = measure_isolation(Runtime(artifact, name), x, artifact.initial, trials)
    isolated = isolation.isolated and name not in ONE_SCALE
    entry = draft.variants[name].model_copy(update={"isolated": isolated})
    variants = {**draft.variants, name: entry}
    runtime = Runtime(Artifact(folder, draft.model_copy(update={"variants": variants})), name)
    measured = gate.measure(runtime, atol)
    entry = entry.model_copy(update={"parity": [m.summary() for m in measured]})
    return Proof(entry, measured, isolation)
