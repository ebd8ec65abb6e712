"""The whole road: adapt, lower, quantize, prove, write. All of the artifact, or nothing.

`export` is the sequence; each stage is a module of its own.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.cases import Cases
from export.draft import (
    check_pipeline,
    draft_manifest,
    ports_of,
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
from export.lowered import Lowered
from export.lowering import LoweredNetwork, lower_reference
from export.measured import Measured
from export.model_input import model_input
from export.onnx_in.source import OnnxSource
from export.parity import Gate
from export.placing import place, staging
from export.reporting.evidence import Evidence
from export.reporting.report import write_report
from export.source import Source
from export.target import checked_target
from export.timing import time_steps
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
        for variant in files:
            progress(f"proving {variant}")
            atol = (tolerances or {}).get(variant)
            entry, found, company = _prove(folder, draft, variant, gate, x, atol, isolation_trials)
            isolation[variant] = company
            if variant not in must_pass and not all(m.passed for m in found):
                left_out[variant] = _drift(found)
                rejected += found
                (folder / entry.file).unlink()
                if entry.step:
                    (folder / entry.step.file).unlink()
                continue
            proven[variant] = entry
            measured += found
        _refuse_failed(measured)
        lowering = roads_of(lowered, reference.name, left_out)
        manifest = seal(draft, proven, lowering, _default(default_variant, proven))
        (folder / MANIFEST).write_text(manifest.to_json())
        progress("measuring for the report")
        timing = None
        if timing_s:
            raw = Artifact(folder, draft)
            timing = time_steps(Artifact(folder, manifest), raw, reference, timing_s)
        gates = _gates(lowered, cases)
        write_report(folder, Evidence(manifest, measured, rejected, isolation, gates, timing))
        path = place(folder, out / name / manifest.version)
    return Exported(Artifact.load(path), measured)


def _default(asked: VariantName | None, proven: Collection[VariantName]) -> VariantName:
    if asked is None:
        return next(iter(proven))
    if asked not in proven:
        raise SourceError(f"the default variant `{asked}` is not among those written: {[*proven]}")
    return asked


def _gates(lowered: Lowered, cases: Cases) -> list[GateError]:
    """Of the cells that were recognised; the general road has none."""
    if not isinstance(lowered, LoweredNetwork):
        return []
    return measure_gates(lowered.network, *cases.pieces(STEPS))


def _prove(
    folder: Path,
    draft: Manifest,
    name: VariantName,
    gate: Gate,
    x: Array,
    atol: float | None,
    trials: int,
) -> tuple[Variant, list[Measured], Isolation]:
    artifact = Artifact(folder, draft)
    isolation = measure_isolation(Runtime(artifact, name), x, artifact.initial, trials)
    isolated = isolation.isolated and name not in ONE_SCALE
    entry = draft.variants[name].model_copy(update={"isolated": isolated})
    variants = {**draft.variants, name: entry}
    runtime = Runtime(Artifact(folder, draft.model_copy(update={"variants": variants})), name)
    measured = gate.measure(runtime, atol)
    entry = entry.model_copy(update={"parity": [m.summary() for m in measured]})
    return entry, measured, isolation


def _refuse_failed(measured: Sequence[Measured]) -> None:
    if drift := _drift(measured):
        raise ParityError(
            f"{drift}; not written. Leave the variant out (--variants), or allow it more if your "
            "task does (--tolerance VARIANT=ATOL, --worsening PERCENT)"
        )


def _drift(measured: Sequence[Measured]) -> str:
    """The first fault of each variant, and on what other cases it failed; empty if none did."""
    failed: dict[str, list[Measured]] = {}
    for m in measured:
        if not m.passed:
            failed.setdefault(m.variant, []).append(m)
    said = []
    for first, *more in failed.values():
        also = ", ".join(f"`{m.case.name}`" for m in more)
        said.append(first.faults[0] + (f", and fails on {also}" if also else ""))
    return "; ".join(said)
