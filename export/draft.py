"""An artifact's manifest and its small files, before the proof and after it.

How it works: the ports are read off the reference (`ports_of`) and get the ranges that the cases
saw (`with_ranges`). The draft names every variant as if it were isolated, so that each can be
loaded and proven; `seal` puts in what the proof found, and the version that the content makes.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from export.cases import Cases
from export.errors import SourceError
from export.ladder import Ladder
from export.lowered import Lowered
from export.model_input import model_input
from export.onnx_in.source import OnnxSource
from export.reference import Reference
from export.source import Source
from service.artifact import Golden
from service.manifest import (
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

Array = np.ndarray
GOLDEN_FILE = "golden.safetensors"
INITIAL_FILE = "initial.safetensors"
PRODUCERS = ("torch", "onnx", "onnxruntime", "numpy")


def ports_of(reference: Reference, x: Array) -> Ports:
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


def check_pipeline(source: Source | OnnxSource, ports: Ports, x: Array) -> None:
    if misfit := source.pipeline.misfit(ports.x, ports.y):
        raise SourceError(misfit)
    tokens = source.pipeline.vocabulary
    if tokens and x.dtype.kind == "i" and not 0 <= int(x.min()) <= int(x.max()) < len(tokens):
        raise SourceError(
            f"the example holds ids from {x.min()} to {x.max()}, the pipeline's `vocabulary` has "
            f"{len(tokens)} tokens: 0 to {len(tokens) - 1}"
        )


def with_ranges(ports: Ports, lowered: Lowered, cases: Cases, pipeline: Pipeline) -> Ports:
    """The ports with what was seen at them, and what the mathematics bounds."""

    def seen(values: Array) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    def state(port: StatePort) -> StatePort:
        bound = 1.0 if port.name in bounded else None
        return port.model_copy(update={"range": cases.state_ranges[port.name], "bound": bound})

    case = cases.teacher_forced
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


def roads_of(lowered: Lowered, module: str, left_out: Mapping[VariantName, str]) -> list[Lowering]:
    """The road of every layer, and the variants that were not written."""
    gone = [Lowering(layer=v, road="not written", why=why) for v, why in left_out.items()]
    return lowered.roads(module) + gone


def precisions_of(ladder: Ladder) -> list[Lowering]:
    """The layers that the ladder did not leave in int8, and why."""
    layers = ladder.rungs[-1].layers
    return [
        Lowering(layer=layer, road=str(layers[layer]), why=why)
        for layer, why in ladder.reasons.items()
    ]


def write_initial(folder: Path, reference: Reference, ports: Ports) -> File | None:
    """The initial state, where it is not zeros: name_0 -> (1, ...)."""
    initial = {name: value.numpy() for name, value in reference.initial(1).items()}
    if not any(value.any() for value in initial.values()):
        return None
    tensors = {s.input: np.ascontiguousarray(initial[s.name]) for s in ports.states}
    save_file(tensors, folder / INITIAL_FILE)
    return describe_file(folder / INITIAL_FILE)


def write_golden(folder: Path, golden: Golden, ports: Ports) -> None:
    tensors = {"x": golden.x, "y": golden.y}
    tensors |= {s.output: golden.final[s.name] for s in ports.states}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / GOLDEN_FILE)


def draft_manifest(
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


def seal(
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
