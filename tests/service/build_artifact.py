"""A small artifact for the service's tests: one LSTM layer and a linear head, from a seed.

The golden sequences come from plain numpy, written down once more here, so that what the service
computes is compared with something that shares no code with it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from service.artifact import Golden
from service.manifest import (
    MANIFEST,
    File,
    Lowering,
    Manifest,
    Parity,
    Port,
    Ports,
    Provenance,
    StatePort,
    Tolerance,
    Variant,
    content_version,
    describe_file,
)
from service.pipeline import Pipeline, Scaling

Array = np.ndarray

OPSET = 17
GOLDEN_SEQUENCES, GOLDEN_STEPS = 3, 24


@dataclass(frozen=True)
class Spec:
    """What to build."""

    name: str
    input_size: int = 1
    output_size: int = 1
    hidden_size: int = 8
    seed: int = 0
    scaling: Pipeline = field(default_factory=Pipeline)
    overflow_above: float | None = None  # |x| from which y is driven to infinity
    tolerance: float = 1e-5
    start: float = 0.0  # every element of h and c of a session that has not begun
    golden_error: float = 0.0  # added to the golden y: what the self-test must find
    ids: int | None = None  # x is token ids, of which there are so many


def build_artifact(root: Path, spec: Spec) -> Path:
    """Write the artifact NAME/VERSION/ under `root` and return its directory."""
    weights = _weights(spec)
    golden = _golden(spec, weights)
    building = root / spec.name / "building"
    building.mkdir(parents=True)
    onnx.save(_graph(spec, weights), building / "onnx-fp32.onnx")
    tensors = {"x": golden.x, "y": golden.y + np.float32(spec.golden_error)}
    tensors |= {f"{name}_n": value for name, value in golden.final.items()}
    save_file(tensors, building / "golden.safetensors")
    if spec.start:
        start = np.full((1, 1, spec.hidden_size), spec.start, np.float32)
        save_file({"h_0": start, "c_0": start}, building / "initial.safetensors")
    return seal(building, _manifest(spec, building))


def seal(building: Path, manifest: Manifest) -> Path:
    """Give the manifest its version, write it, and move the directory into place."""
    sealed = manifest.model_copy(update={"version": content_version(manifest)})
    (building / MANIFEST).write_text(sealed.to_json())
    return building.rename(building.parent / sealed.version)


def reseal(path: Path, **changes: Any) -> Path:
    """Change fields of an artifact's manifest and make its version right again."""
    manifest = json.loads((path / MANIFEST).read_text()) | changes
    return seal(path, Manifest.model_validate(manifest))


def oracle(spec: Spec, x: Array) -> Array:
    """y (T, O) of one raw sequence x (T, I) from the initial state, in float64, raw units."""
    weights = _weights(spec)
    x = spec.scaling.encode(x)
    y, _ = _run(weights, _embed(weights, x)[np.newaxis], spec.start)
    return spec.scaling.decode(y[0])


def scaling(input_size: int, output_size: int) -> Pipeline:
    """Raw units that are far from the model's: mean 20 and up, deviations 3 and up."""
    return Pipeline(
        x=Scaling(
            mean=[20.0 + i for i in range(input_size)], std=[3.0 + i for i in range(input_size)]
        ),
        y=Scaling(mean=[20.0] * output_size, std=[3.0] * output_size),
    )


def _weights(spec: Spec) -> dict[str, Array]:
    rng = np.random.default_rng(spec.seed)
    i, h, o = spec.input_size, spec.hidden_size, spec.output_size

    def normal(*shape: int) -> Array:
        return rng.normal(0.0, 0.4, shape).astype(np.float32)

    weights = {
        "W": normal(1, 4 * h, i),  # ONNX's order of gates: i, o, f, g
        "R": normal(1, 4 * h, h),
        "B": normal(1, 8 * h),
        "head": normal(h, o),
        "bias": normal(o),
    }
    return weights if spec.ids is None else weights | {"embedding": 5 * normal(spec.ids, i)}


def _embed(weights: dict[str, Array], x: Array) -> Array:
    """Ids (...,) or rows (..., I) -> (..., I) float64."""
    return np.asarray(weights["embedding"][x] if "embedding" in weights else x, np.float64)


def _run(weights: dict[str, Array], x: Array, start: float) -> tuple[Array, dict[str, Array]]:
    """x (N, T, I) -> y (N, T, O) and the final states (N, 1, H), in float64."""
    w, r = weights["W"][0].astype(np.float64), weights["R"][0].astype(np.float64)
    b = weights["B"][0].astype(np.float64)
    size = r.shape[1]
    h = c = np.full((len(x), size), start)
    ys = []
    for t in range(x.shape[1]):
        gates = x[:, t] @ w.T + h @ r.T + b[: 4 * size] + b[4 * size :]
        i, o, f, g = np.split(gates, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        ys.append(h @ weights["head"].astype(np.float64) + weights["bias"])
    return np.stack(ys, axis=1), {"h": h[:, np.newaxis], "c": c[:, np.newaxis]}


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _golden(spec: Spec, weights: dict[str, Array]) -> Golden:
    rng = np.random.default_rng(spec.seed + 1)
    if spec.ids is None:
        size = (GOLDEN_SEQUENCES, GOLDEN_STEPS, spec.input_size)
        x: Array = rng.normal(size=size).astype(np.float32)
    else:
        x = rng.integers(0, spec.ids, (GOLDEN_SEQUENCES, GOLDEN_STEPS))
    y, final = _run(weights, _embed(weights, x), spec.start)
    narrow = {name: np.ascontiguousarray(value, np.float32) for name, value in final.items()}
    return Golden(x, y.astype(np.float32), narrow)


def _graph(spec: Spec, weights: dict[str, Array]) -> onnx.ModelProto:
    """Batch-first ports around one LSTM node; y rows past the length are zero."""
    h = spec.hidden_size

    def info(name: str, dtype: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, list(shape))

    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    constants += [
        numpy_helper.from_array(np.array([1], np.int64), "axis_1"),
        numpy_helper.from_array(np.array([2], np.int64), "axis_2"),
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
        numpy_helper.from_array(np.array(1, np.int64), "one"),
    ]
    nodes = [
        helper.make_node("Identity", ["x"], ["x_rows"])
        if spec.ids is None
        else helper.make_node("Gather", ["embedding", "x"], ["x_rows"]),
        helper.make_node("Transpose", ["x_rows"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node("Cast", ["lengths"], ["lengths_32"], to=TensorProto.INT32),
        helper.make_node("Transpose", ["h_0"], ["h_layer"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["c_0"], ["c_layer"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM",
            ["x_time", "W", "R", "B", "lengths_32", "h_layer", "c_layer"],
            ["hs", "h_last", "c_last"],
            hidden_size=h,
        ),
        helper.make_node("Transpose", ["h_last"], ["h_n"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["c_last"], ["c_n"], perm=[1, 0, 2]),
        helper.make_node("Squeeze", ["hs", "axis_1"], ["hs_time"]),
        helper.make_node("Transpose", ["hs_time"], ["hs_batch"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["hs_batch", "head"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["y_padded"]),
        helper.make_node("Shape", ["x"], ["x_shape"], start=1, end=2),
        helper.make_node("Squeeze", ["x_shape"], ["steps"]),
        helper.make_node("Range", ["zero", "steps", "one"], ["t"]),
        helper.make_node("Unsqueeze", ["lengths", "axis_1"], ["lengths_column"]),
        helper.make_node("Less", ["t", "lengths_column"], ["counts"]),
        helper.make_node("Unsqueeze", ["counts", "axis_2"], ["counts_3d"]),
        helper.make_node("Where", ["counts_3d", "y_whole", "nothing"], ["y"]),
    ]
    constants.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    nodes[-1:-1], more = _overflow(spec)
    constants += more
    state: tuple[str | int, ...] = ("B", 1, h)
    graph = helper.make_graph(
        nodes,
        spec.name,
        [
            info("x", TensorProto.FLOAT, "B", "T", spec.input_size)
            if spec.ids is None
            else info("x", TensorProto.INT64, "B", "T"),
            info("lengths", TensorProto.INT64, "B"),
            info("h_0", TensorProto.FLOAT, *state),
            info("c_0", TensorProto.FLOAT, *state),
        ],
        [
            info("y", TensorProto.FLOAT, "B", "T", spec.output_size),
            info("h_n", TensorProto.FLOAT, *state),
            info("c_n", TensorProto.FLOAT, *state),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _overflow(spec: Spec) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """y_padded -> y_whole: the same, or infinite where |x| exceeds the spec's bound."""
    if spec.overflow_above is None:
        return [helper.make_node("Identity", ["y_padded"], ["y_whole"])], []
    nodes = [
        helper.make_node("Abs", ["x"], ["x_abs"]),
        helper.make_node("Greater", ["x_abs", "bound"], ["x_wild"]),
        helper.make_node("Where", ["x_wild", "infinity", "y_padded"], ["y_whole"]),
    ]
    return nodes, [
        numpy_helper.from_array(np.array(spec.overflow_above, np.float32), "bound"),
        numpy_helper.from_array(np.array(np.inf, np.float32), "infinity"),
    ]


def _manifest(spec: Spec, building: Path) -> Manifest:
    def state(name: str) -> StatePort:
        return StatePort(
            dtype="float32",
            shape=["B", 1, spec.hidden_size],
            name=name,
            input=f"{name}_0",
            output=f"{name}_n",
        )

    parity = Parity(
        case="teacher-forced: golden",
        steps=GOLDEN_STEPS,
        tolerance=Tolerance(atol=spec.tolerance),
        max_error=0.0,
        at_step=0,
        passed=True,
    )
    graph: File = describe_file(building / "onnx-fp32.onnx")
    return Manifest(
        schema_version=1,
        name=spec.name,
        version="0" * 16,
        producer={"numpy": np.__version__},
        mode="causal",
        ports=Ports(
            x=Port(dtype="float32", shape=["B", "T", spec.input_size])
            if spec.ids is None
            else Port(dtype="int64", shape=["B", "T"], ids=spec.ids),
            y=Port(dtype="float32", shape=["B", "T", spec.output_size]),
            states=[state("h"), state("c")],
        ),
        pipeline=spec.scaling,
        default_variant="onnx-fp32",
        variants={"onnx-fp32": Variant(**graph.model_dump(), isolated=True, parity=[parity])},
        golden=describe_file(building / "golden.safetensors"),
        initial=describe_file(building / "initial.safetensors") if spec.start else None,
        lowering=[Lowering(layer="lstm", road="LSTM", why="one layer, one direction")],
        provenance=Provenance(
            call="X, (h, c)=None -> Y, (h, c)",
            module="tests.service.build_artifact:build_artifact",
            weights_sha256="0" * 64,
            example_sha256="0" * 64,
            example_steps=GOLDEN_STEPS,
        ),
    )
