"""The model files of an artifact: every variant that was asked for, from one network."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from export import torchscript
from export.errors import LoweringError, NothingQuantizedError
from export.lstm_graph import fits_lstm_nodes, write_lstm_graphs
from export.network import Network
from export.rowwise import write_rowwise_graphs
from export.step_graph import Products, write_step_graphs
from export.stock import write_stock_int8
from service.manifest import File, Ports, VariantName, describe_file

Written = dict[VariantName, tuple[File, File | None]]  # variant -> its file, its step graph


def write_variants(
    folder: Path, network: Network, ports: Ports, variants: Sequence[VariantName]
) -> tuple[Written, dict[VariantName, str]]:
    """The files of each variant, and why those that are not there are not."""
    written: Written = {}
    left_out: dict[VariantName, str] = {}
    float_graphs = (
        write_lstm_graphs(network, ports)
        if fits_lstm_nodes(network)
        else write_step_graphs(network, ports, Products())
    )
    float_graph = folder / "onnx-fp32.onnx"
    onnx.save(float_graphs[0], float_graph)  # the stock tool reads it, wanted or not
    for variant in variants:
        target = folder / (f"{variant}.onnx" if variant.startswith("onnx") else f"{variant}.pt")
        step: Path | None = None
        try:
            if variant in ("onnx-fp32", "onnx-int8-rowwise"):
                graphs = float_graphs
                if variant == "onnx-int8-rowwise":
                    graphs = write_rowwise_graphs(network, ports)
                step = folder / f"{variant}.step.onnx"
                onnx.save(graphs[0], target)
                onnx.save(graphs[1], step)
            elif variant == "onnx-int8":
                write_stock_int8(float_graph, target)
            else:
                module = torchscript.lowered_module(network, ports)
                if variant == "torchscript-int8":
                    module = torchscript.quantize(module)
                torchscript.save(torchscript.script(module, ports), target)
        except NothingQuantizedError as error:
            left_out[variant] = str(error)
            continue
        written[variant] = (describe_file(target), describe_file(step) if step else None)
    if "onnx-fp32" not in variants:
        float_graph.unlink()
    if not written:
        raise LoweringError("; ".join(f"{v}: {why}" for v, why in left_out.items()))
    return written, left_out
