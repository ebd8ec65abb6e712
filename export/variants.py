"""The model files of an artifact: every variant that was asked for, of one lowered model."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from export.errors import LoweringError, NothingQuantizedError
from export.graphs import archive, torchscript
from export.graphs.stock import write_stock_int8
from export.lowered import Lowered
from export.precision import ALL_ROWWISE, Plan
from service.manifest import File, Ports, VariantName, describe_file

Written = dict[VariantName, tuple[File, File | None]]  # variant -> its file, its step graph


def write_variants(
    folder: Path,
    lowered: Lowered,
    ports: Ports,
    variants: Sequence[VariantName],
    plan: Plan = ALL_ROWWISE,
) -> tuple[Written, dict[VariantName, str]]:
    """The files of each variant, and why those that are not there are not."""
    written: Written = {}
    left_out: dict[VariantName, str] = {}
    float_graphs = lowered.float_graphs(ports)
    for variant in variants:
        target = folder / (f"{variant}.onnx" if variant.startswith("onnx") else f"{variant}.pt")
        step: Path | None = None
        try:
            if variant in ("onnx-fp32", "onnx-int8-rowwise"):
                graphs = float_graphs
                if variant == "onnx-int8-rowwise":
                    graphs = lowered.rowwise_graphs(ports, plan)
                step = folder / f"{variant}.step.onnx"
                onnx.save(graphs[0], target)
                onnx.save(graphs[1], step)
            elif variant == "onnx-int8":
                write_stock_int8(lowered.stock_graph(ports), target)
            else:
                try:
                    module = lowered.torch_module(ports)
                except LoweringError as error:
                    left_out[variant] = str(error)
                    continue
                if variant == "torchscript-int8":
                    module = torchscript.quantize(module)
                archive.save(torchscript.script(module, ports), target)
        except NothingQuantizedError as error:
            left_out[variant] = str(error)
            continue
        written[variant] = (describe_file(target), describe_file(step) if step else None)
    if not written:
        raise LoweringError("; ".join(f"{v}: {why}" for v, why in left_out.items()))
    return written, left_out
