"""One step of a reference as torch.export sees it: any operation, of any batch.

The program is x (B, ...), *states -> y (B, ...), *states'. Where torch.export does not keep the
batch free (the module asks for its size, or reads a value), the step that was traced with a prime
batch is exported in the module's place: there every size that is a multiple of the prime is made
one of the batch again.
"""

import copy
import io
import linecache
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OperatorBase
from torch.export import Dim, ExportedProgram

from export.algebra.decompositions import STANDARDIZE
from export.algebra.trace import Trace, shape_of, trace_step
from export.errors import DecisionError, LoweringError
from export.reference import Reference
from export.user_code import users_line

EXAMPLE_BATCH = 3  # more than 1, which torch.export takes for a constant
OPSET = 21
SILENCED = ("torch.onnx", "torch.export", "torch.fx", "onnxscript")  # loggers
aten = torch.ops.aten
SIZED = {  # operations that are told the shape of their result
    "view", "_unsafe_view", "reshape", "expand", "zeros", "ones", "full", "empty", "new_zeros",
    "new_ones", "new_full", "new_empty", "view_copy", "expand_copy", "rand", "randn",
}  # fmt: skip
LAYERS = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
TO_THE_END = 2**63 - 1


def export_step(reference: Reference, x: Tensor) -> ExportedProgram:
    """Export one step; x (N, T, ...) gives the features and the dtype.

    Raises:
        LoweringError: torch.export takes neither the module nor its trace.
    """
    found: list[ExportedProgram] = []
    reasons = []
    decision = ""
    for make in (_called, _traced):
        try:
            found.append(_export(make(reference, x), reference, x))
        except Exception as error:  # torch.export's errors share no base, nor do the module's
            reasons.append(f"{make.__name__.strip('_')}: {_first_line(error)}")
            decision = decision or _decision(error)
        # Over one step a layer is plain algebra, whose products can be quantized: traced, it is.
        if found and (reference.mode == "windowed" or not _has_layers(found[0])):
            break
    if not found and decision:
        raise DecisionError(
            f"`forward` decides by the values of a tensor{decision}, so one step is not one graph; "
            "take the decision out (the service refuses NaN and infinity by itself), or write it "
            "with torch.where"
        )
    if not found:
        raise LoweringError(f"torch.export does not take a step of {reference.name}: {reasons}")
    return found[-1]


def to_onnx(program: ExportedProgram, states: tuple[str, ...]) -> bytes:
    """The program as ONNX: inputs x, `NAME_0`; outputs y, `NAME_n`; serialized.

    Raises:
        LoweringError: an operation has no translation.
    """
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=["x", *(f"{name}_0" for name in states)],
                output_names=["y", *(f"{name}_n" for name in states)],
                verbose=False,
            )
    except Exception as error:  # its errors share no base
        raise LoweringError(f"torch.onnx does not take the step: {_cause(error)}") from error
    if exported is None:
        raise LoweringError("torch.onnx gave nothing for the step")
    return bytes(exported.model_proto.SerializeToString())


class ProgramStep(nn.Module):
    """A step program to be called as every step is, with as many states as there are."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self._program = program.module(check_guards=False)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = self._program(x, *states)
        return result


def as_module(program: ExportedProgram) -> nn.Module:
    """The program as a module that can be exported again, each constant a buffer of its own.

    What torch gives holds them as plain attributes that may share memory, which a scan refuses.
    """
    module = program.module(check_guards=False)
    held: dict[str, Any] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(str(node.target))(module)
        held[str(node.target)] = value.detach().clone() if isinstance(value, Tensor) else value
    return fx.GraphModule(held, module.graph)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's exporters: their warnings are about torch itself and packages not needed."""
    loggers = [logging.getLogger(name) for name in SILENCED]
    levels = [logger.level for logger in loggers]
    # It prints the graph so far where a module decides by values.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Step(nn.Module):
    """The reference's step as torch.export takes it; what it holds becomes constants."""

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self._reference = reference

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        names = [spec.name for spec in self._reference.states]
        y, new = self._reference.run(x.unsqueeze(1), dict(zip(names, states, strict=True)))
        return y[:, 0], *(new[name] for name in names)


class _TracedStep(nn.Module):
    """The step that was traced, its batch made free again."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self._traced = graph  # `_graph` is what a GraphModule calls its own

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        y, *new = self._traced(x.unsqueeze(1), *states)
        return y[:, 0], *new


def _called(reference: Reference, x: Tensor) -> nn.Module:
    return _Step(reference)


def _traced(reference: Reference, x: Tensor) -> nn.Module:
    return _TracedStep(_free_batch(trace_step(reference, x)))


def _export(step: nn.Module, reference: Reference, x: Tensor) -> ExportedProgram:
    rows = x.reshape(-1, *x.shape[2:])
    first = rows[torch.arange(EXAMPLE_BATCH) % rows.shape[0]]
    states = tuple(reference.initial(EXAMPLE_BATCH).values())
    batch = {0: Dim("B", min=1)}
    # All states are one variadic argument, whose shapes stand in a tuple of their own.
    shapes = (batch, (batch,) * len(states))
    with quiet(), torch.no_grad():
        exported = torch.export.export(
            step, (first.clone(), *states), dynamic_shapes=shapes, strict=False
        )
        program: ExportedProgram = exported.run_decompositions(
            DECOMPOSED
        )  # and without in-place operations
    if program.graph_signature.buffers_to_mutate or program.graph_signature.user_inputs_to_mutate:
        raise LoweringError("the step changes its inputs, or what the module holds")
    return program


def _log_sigmoid(x: Tensor) -> Tensor:
    return -nn.functional.softplus(-x)


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    return _log_sigmoid(x), x.new_zeros(0)


def _standardize(z: Tensor, epsilon: float) -> Tensor:
    return nn.functional.layer_norm(z, z.shape[-1:], eps=epsilon)


def _sort(
    z: Tensor, *, stable: bool = True, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(z, dim, descending)
    return values, indices


# torch.onnx writes a log sigmoid as Log(Sigmoid(x)), which is -inf where x is below -88.
DECOMPOSED: dict[OperatorBase, Callable[..., Any]] = {
    aten.log_sigmoid.default: _log_sigmoid,
    aten.log_sigmoid_forward.default: _log_sigmoid_forward,
    aten.sort.stable: _sort,  # a trace has it; torch.onnx knows the other overload alone
    STANDARDIZE: _standardize,  # ours, from a trace; torch's own norm is what ONNX has
}


def _has_layers(program: ExportedProgram) -> bool:
    return any(operation(node) in LAYERS for node in program.graph.nodes)


def operation(node: fx.Node) -> str:
    """The name of a node's operation without its overload; empty if it is none of torch's."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target.overloadpacket.__name__)


def _free_batch(trace: Trace) -> fx.GraphModule:
    graph = copy.deepcopy(trace.graph)
    nodes = list(graph.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    with graph.graph.inserting_after(placeholders[-1]):
        batch = graph.graph.call_function(aten.sym_size.int, (placeholders[0], 0))

    def size(n: object) -> object:
        if not isinstance(n, int) or n == 0 or n % trace.batch:
            return n
        times = n // trace.batch
        return batch if times == 1 else graph.graph.call_function(operator.mul, (batch, times))

    for node in nodes:
        with graph.graph.inserting_before(node):
            if operation(node) in SIZED:
                node.args = tuple(
                    [size(n) for n in arg] if isinstance(arg, list | tuple) else arg
                    for arg in node.args
                )
            elif operation(node) == "slice" and len(node.args) > 3:
                value, axis, start, stop = node.args[:4]
                if stop == trace.batch == shape_of(value)[axis]:
                    node.args = (value, axis, start, TO_THE_END, *node.args[4:])
    graph.recompile()
    return graph


def _decision(error: BaseException | None) -> str:
    """Where the user's code asks a tensor for its value; empty if that is not what went wrong."""
    while error is not None:
        if "data-dependent" in str(error) or "out of a tracing tensor" in str(error):
            line = users_line(error)
            source = f": {linecache.getline(*line).strip()[:80]}" if line else ""
            return f" ({Path(line[0]).name}:{line[1]}{source})" if line else " (`if`, `assert`)"
        error = error.__cause__
    return ""


def _first_line(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return said.partition(". Failure message:")[0][:200]


def _cause(error: BaseException) -> str:
    """The innermost error's first line: the outer ones are torch's advice on filing reports."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return said.partition(". Failure message:")[0][:200]
