"""The model files of an artifact: every variant that was asked for, of one lowered model."""

from collections.abc import Collection, Sequence
from pathlib import Path

import onnx

from export.errors import LoweringError, NothingQuantizedError, UnavailableError
from export.graphs.stock import write_stock_int8
from export.graphs.torch_export import write_torch_export
from export.graphs.torch_int8 import quantize
from export.graphs.torchscript import write_torchscript
from export.lowered import Graphs, Lowered
from export.precision import ALL_ROWWISE, Plan
from service.manifest import File, Ports, VariantName, describe_file

Written = dict[VariantName, tuple[File, File | None]]  # variant -> its file, its step graph


def write_variants(
    folder: Path,
    lowered: Lowered,
    ports: Ports,
    variants: Sequence[VariantName],
    plan: Plan = ALL_ROWWISE,
    asked: Collection[VariantName] = (),
) -> tuple[Written, dict[VariantName, str]]:
    """The files of each variant, and why those that are not there are not.

    Raises:
        UnavailableError: this torch cannot make one of those `asked` for.
        LoweringError: there is no variant at all.
    """
    written: Written = {}
    left_out: dict[VariantName, str] = {}
    float_graphs = lowered.float_graphs(ports)
    for variant in variants:
        try:
            if variant == "onnx-fp32":
                written[variant] = save_graphs(folder, variant, float_graphs)
            elif variant == "onnx-int8-rowwise":
                written[variant] = save_graphs(folder, variant, lowered.rowwise_graphs(ports, plan))
            elif variant == "onnx-int8":
                target = folder / f"{variant}.onnx"
                write_stock_int8(lowered.stock_graph(ports), target)
                written[variant] = describe_file(target), None
            else:
                written[variant] = _write_torch(folder, variant, lowered, ports), None
        except UnavailableError as error:
            if variant in asked:
                raise UnavailableError(
                    f"{variant} cannot be written: {error}. Leave it out of --variants, or use a "
                    "torch that has it"
                ) from error
            left_out[variant] = str(error)
        except NothingQuantizedError as error:
            left_out[variant] = str(error)
        except LoweringError as error:
            if variant.startswith("onnx"):
                raise
            left_out[variant] = str(error)
    if not written:
        raise LoweringError("; ".join(f"{v}: {why}" for v, why in left_out.items()))
    return written, left_out


def save_graphs(folder: Path, variant: VariantName, graphs: Graphs) -> tuple[File, File]:
    """The chunk graph and the step graph of a variant."""
    chunk, step = folder / f"{variant}.onnx", folder / f"{variant}.step.onnx"
    onnx.save(graphs[0], chunk)
    onnx.save(graphs[1], step)
    return describe_file(chunk), describe_file(step)


def _write_torch(folder: Path, variant: VariantName, lowered: Lowered, ports: Ports) -> File:
    if variant == "torch-export":
        target = folder / f"{variant}.pt2"
        write_torch_export(lowered.torch_step(ports), ports, target)
        return describe_file(target)
    module = lowered.torch_module(ports)
    if variant == "torchscript-int8":
        module = quantize(module)
    target = folder / f"{variant}.pt"
    write_torchscript(module, ports, target)
    return describe_file(target)
