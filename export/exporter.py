"""The whole road: adapt, lower, quantize, prove, write. All of the artifact, or nothing.

`export` is the sequence; each stage is a module of its own.
"""

import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from export.errors import (
    ParityError,
    SourceError,
)
from export.finding import find_reference
from export.isolation import is_isolated
from export.lowered import Lowered
from export.lowering import lower_reference
from export.onnx_in.source import OnnxSource
from export.parity import Gate, Measured
from export.placing import place, staging
from export.reference import Reference
from export.report import write_report
from export.source import Source
from export.variants import write_variants
from service.artifact import Artifact, Golden
from service.manifest import (
    MANIFEST,
    File,
    Lowering,
    Manifest,
    Port,
    Ports,
    Provenance,
    StatePort,
    Variant,
    VariantName,
    content_version,
    describe_file,
)
from service.pipeline import Pipeline
from service.runtime import Runtime

Array = np.ndarray
ALL_VARIANTS: tuple[VariantName, ...] = (
    "onnx-fp32",
    "onnx-int8",
    "onnx-int8-rowwise",
    "torchscript-fp32",
    "torchscript-int8",
)
FLOAT_VARIANTS: tuple[VariantName, ...] = ("onnx-fp32", "torchscript-fp32")
GOLDEN_FILE = "golden.safetensors"
INITIAL_FILE = "initial.safetensors"
PRODUCERS = ("torch", "onnx", "onnxruntime", "numpy")

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
    progress: Progress = lambda what: None,
) -> Exported:
    """Export `source` as artifact `out/name/VERSION/`.

    Args:
        notation: how the module is called (`--call`); None: found out.
        window: `--mode windowed`: the inputs that the model sees at each step; None: it carries
            its own state.
        variants: those to write, the first of them the default unless `default_variant` says.
            None: all that there can be; an int8 one that drifts is left out, and that is said.
        tolerances: variant -> atol, in place of the gate's own; these must pass.
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
    ports = _ports(reference, x)
    _check_pipeline(source, ports, x)
    gate = Gate(reference, x, ports, source.pipeline)
    gate.check_causal()
    progress("lowering")
    lowered = lower_reference(reference, torch.from_numpy(x))
    ports = _with_ranges(ports, lowered, gate, source.pipeline)
    _check_pipeline(source, ports, x)  # what ids there are is known now
    with staging(out / name) as folder:
        progress("writing the graphs")
        files, left_out = write_variants(folder, lowered, ports, variants or ALL_VARIANTS)
        _write_golden(folder, gate.golden, ports)
        initial = _write_initial(folder, reference, ports)
        draft = _draft(source, name, ports, reference, folder, initial, files)
        measured: list[Measured] = []
        proven: dict[VariantName, Variant] = {}
        for variant in files:
            progress(f"proving {variant}")
            entry, found = _prove(folder, draft, variant, gate, x, (tolerances or {}).get(variant))
            if variant not in must_pass and not all(m.passed for m in found):
                left_out[variant] = _drift(found)
                (folder / entry.file).unlink()
                if entry.step:
                    (folder / entry.step.file).unlink()
                continue
            proven[variant] = entry
            measured += found
        _refuse_failed(measured)
        lowering = _lowering(lowered, reference.name, left_out)
        manifest = _seal(draft, proven, lowering, _default(default_variant, proven))
        (folder / MANIFEST).write_text(manifest.to_json())
        write_report(folder, manifest, measured)
        path = place(folder, out / name / manifest.version)
    return Exported(Artifact.load(path), measured)


def model_input(source: Source | OnnxSource) -> Array:
    """The example as the module takes it: (N, T, ...) float32, standardised (unitless).

    Integers without a scaling are token ids: (T,) or (N, T) int64.

    Raises:
        SourceError: the example has not the pipeline's features, or overflows float32.
    """
    raw = source.example
    if raw.dtype.kind in "iu" and source.pipeline.x is None:  # token ids
        return np.atleast_2d(raw).astype(np.int64)
    if raw.ndim == 1:
        raw = raw[:, None]
    if raw.ndim == 2:
        raw = raw[None]
    scaling = source.pipeline.x
    if scaling and raw.shape[-1] != len(scaling.mean):
        raise SourceError(
            f"the example has {raw.shape[-1]} features, the pipeline's `x` has {len(scaling.mean)}"
        )
    x = source.pipeline.encode(raw).astype(np.float32)
    if not np.isfinite(x).all():
        raise SourceError("the example overflows float32 once scaled; mend it or the pipeline")
    return x


def _ports(reference: Reference, x: Array) -> Ports:
    with torch.no_grad():
        initial = reference.initial(1)
        y, _ = reference.run(torch.from_numpy(x[:1, :1]), initial)
    return Ports(
        x=Port(dtype="int64" if x.dtype.kind == "i" else "float32", shape=["B", "T", *x.shape[2:]]),
        y=Port(dtype="float32", shape=["B", "T", *y.shape[2:]]),
        states=[
            StatePort(
                name=s.name,
                input=f"{s.name}_0",
                output=f"{s.name}_n",
                dtype="float32" if initial[s.name].is_floating_point() else "int64",
                shape=["B", *s.shape],
            )
            for s in reference.states
        ],
    )


def _check_pipeline(source: Source | OnnxSource, ports: Ports, x: Array) -> None:
    if misfit := source.pipeline.misfit(ports.x, ports.y):
        raise SourceError(misfit)
    tokens = source.pipeline.vocabulary
    if tokens and x.dtype.kind == "i" and not 0 <= int(x.min()) <= int(x.max()) < len(tokens):
        raise SourceError(
            f"the example holds ids from {x.min()} to {x.max()}, the pipeline's `vocabulary` has "
            f"{len(tokens)} tokens: 0 to {len(tokens) - 1}"
        )


def _with_ranges(ports: Ports, lowered: Lowered, gate: Gate, pipeline: Pipeline) -> Ports:
    """The ports with what was seen at them, and what the mathematics bounds."""

    def seen(values: Array) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    def state(port: StatePort) -> StatePort:
        bound = 1.0 if port.name in bounded else None
        return port.model_copy(update={"range": gate.state_ranges[port.name], "bound": bound})

    case = gate.teacher_forced
    bounded = lowered.bounded_states
    ids = lowered.ids
    if ids is None and ports.x.dtype == "int64" and pipeline.vocabulary is not None:
        ids = len(pipeline.vocabulary)  # the module does not say what it takes, the user does
    return ports.model_copy(
        update={
            "x": ports.x.model_copy(update={"range": seen(case.x), "ids": ids}),
            "y": ports.y.model_copy(update={"range": seen(case.y)}),
            "states": [state(port) for port in ports.states],
        }
    )


def _lowering(lowered: Lowered, module: str, left_out: Mapping[VariantName, str]) -> list[Lowering]:
    """The road of every layer, and the variants that were not written."""
    gone = [Lowering(layer=v, road="not written", why=why) for v, why in left_out.items()]
    return lowered.roads(module) + gone


def _write_initial(folder: Path, reference: Reference, ports: Ports) -> File | None:
    """The initial state, where it is not zeros: name_0 -> (1, ...)."""
    initial = {name: value.numpy() for name, value in reference.initial(1).items()}
    if not any(value.any() for value in initial.values()):
        return None
    tensors = {s.input: np.ascontiguousarray(initial[s.name]) for s in ports.states}
    save_file(tensors, folder / INITIAL_FILE)
    return describe_file(folder / INITIAL_FILE)


def _write_golden(folder: Path, golden: Golden, ports: Ports) -> None:
    tensors = {"x": golden.x, "y": golden.y}
    tensors |= {s.output: golden.final[s.name] for s in ports.states}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / GOLDEN_FILE)


def _default(asked: VariantName | None, proven: Collection[VariantName]) -> VariantName:
    if asked is None:
        return next(iter(proven))
    if asked not in proven:
        raise SourceError(f"the default variant `{asked}` is not among those written: {[*proven]}")
    return asked


def _draft(
    source: Source | OnnxSource,
    name: str,
    ports: Ports,
    reference: Reference,
    folder: Path,
    initial: File | None,
    files: Mapping[VariantName, tuple[File, File | None]],
) -> Manifest:
    """The manifest before the proof: every variant is loaded as if it were isolated."""
    return Manifest(
        schema_version=1,
        name=name,
        version="0" * 16,
        producer={"python": platform.python_version(), **{p: version(p) for p in PRODUCERS}},
        mode=reference.mode,
        ports=ports,
        pipeline=source.pipeline,
        default_variant=next(iter(files)),
        variants={
            variant: Variant(**file.model_dump(), isolated=True, step=step, parity=[])
            for variant, (file, step) in files.items()
        },
        golden=describe_file(folder / GOLDEN_FILE),
        initial=initial,
        lowering=[],
        provenance=Provenance(
            module=source.spec,
            call=reference.describe(),
            weights_sha256=source.weights_sha256,
            example_sha256=source.example_sha256,
            example_steps=int(model_input(source).shape[1]),
        ),
    )


def _prove(
    folder: Path, draft: Manifest, name: VariantName, gate: Gate, x: Array, atol: float | None
) -> tuple[Variant, list[Measured]]:
    artifact = Artifact(folder, draft)
    isolated = is_isolated(Runtime(artifact, name), x, artifact.initial)
    entry = draft.variants[name].model_copy(update={"isolated": isolated})
    variants = {**draft.variants, name: entry}
    runtime = Runtime(Artifact(folder, draft.model_copy(update={"variants": variants})), name)
    measured = gate.measure(runtime, atol)
    return entry.model_copy(update={"parity": [m.summary() for m in measured]}), measured


def _refuse_failed(measured: Sequence[Measured]) -> None:
    if drift := _drift(measured):
        raise ParityError(
            f"{drift}; not written. Leave the variant out (--variants), or allow it more if your "
            "task does (--tolerance VARIANT=ATOL)"
        )


def _drift(measured: Sequence[Measured]) -> str:
    """What drifts, where, and by how much; empty if nothing does."""
    return "; ".join(
        f"{m.variant} drifts to {m.errors[m.worst]:.1e} at step {m.worst} of {len(m.errors)} "
        f"(atol {m.tolerance.atol:g}, rtol {m.tolerance.rtol:g}) on case `{m.case.name}`"
        for m in measured
        if not m.passed
    )


def _seal(
    draft: Manifest,
    proven: Mapping[VariantName, Variant],
    lowering: list[Lowering],
    default_variant: VariantName,
) -> Manifest:
    manifest = draft.model_copy(
        update={
            "variants": dict(proven),
            "lowering": lowering,
            "default_variant": default_variant,
        }
    )
    return manifest.model_copy(update={"version": content_version(manifest)})
