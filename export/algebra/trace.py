"""One step of a reference, traced to a graph of tensor operations and computable in float64.

The trace sees every spelling alike: `nn.LSTM` and a cell written by hand both become products,
sums, sigmoids and tanhs. The batch is a prime that no other axis has, so that the batch axis of
every value in the graph is known by its size.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import Argument

from export.algebra.decompositions import WRITTEN_OUT
from export.algebra.packing import packing_as_views
from export.errors import LoweringError
from export.reference import Reference

aten = torch.ops.aten
CLEARED = {
    aten.empty.memory_format: aten.zeros.default,
    aten.new_empty.default: aten.new_zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
}
BATCH_PRIMES = (61, 67, 71, 73, 79, 83, 89, 97)


@dataclass(frozen=True)
class Trace:
    """A functional graph of one step: placeholders x, *states; outputs y, *states'."""

    graph: fx.GraphModule
    batch: int
    x_shape: tuple[int, ...]  # of one step, without the batch
    y_shape: tuple[int, ...]
    state_names: tuple[str, ...]

    def placeholders(self) -> list[fx.Node]:
        return [n for n in self.graph.graph.nodes if n.op == "placeholder"]

    def outputs(self) -> list[fx.Node]:
        output = next(n for n in self.graph.graph.nodes if n.op == "output")
        return list(output.args[0])

    def compute(self, node: fx.Node, values: Mapping[fx.Node, object]) -> object:
        """The value of `node` in float64, from the values of its arguments."""
        if node.op == "get_attr":
            value = getattr(self.graph, str(node.target)).detach()
            return value.double() if value.is_floating_point() else value
        lookup = cast(Callable[[fx.Node], Argument], values.__getitem__)
        args = fx.map_arg(node.args, lookup)
        kwargs = {**fx.map_arg(node.kwargs, lookup)}
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(value, Tensor) and value.dtype is torch.float32:  # made of no other value
            return value.double()
        return value

    def run(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """One step in float64: x (B, ...), name -> (B, ...) -> y (B, ...) and the new state."""
        values: dict[fx.Node, object] = {}
        given = iter((x.unsqueeze(1), *(state[name] for name in self.state_names)))
        for node in self.graph.graph.nodes:
            if node.op == "output":
                break
            values[node] = next(given) if node.op == "placeholder" else self.compute(node, values)
        y, *states = (cast(Tensor, values[node]) for node in self.outputs())
        return y[:, 0], dict(zip(self.state_names, states, strict=True))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value as traced."""
    return tuple(int(n) for n in node.meta["tensor_meta"].shape)


def is_integer(node: fx.Node) -> bool:
    """Whether a node's value is of integers: token ids."""
    return not node.meta["tensor_meta"].dtype.is_floating_point


def trace_step(reference: Reference, x: Tensor) -> Trace:
    """Trace one step of `reference`; x (B, T, ...) gives the features and the dtype.

    Raises:
        LoweringError: the module could not be traced.
    """
    taken = reference.axis_sizes | set(x.shape[2:])
    batch = next(p for p in BATCH_PRIMES if p not in taken)
    rows = x.reshape(-1, *x.shape[2:])
    first = rows[torch.arange(batch) % rows.shape[0]].unsqueeze(1)  # (B, 1, ...)
    names = tuple(s.name for s in reference.states)

    def step(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        y, state = reference.run(x, dict(zip(names, states, strict=True)))
        return (y, *(state[name] for name in names))

    inputs = (first, *reference.initial(batch).values())
    try:
        graph = make_graph(step, inputs)
    except Exception as error:  # whatever the user's code raises
        raise LoweringError(f"one step of {reference.name} could not be traced: {error}") from error
    trace = Trace(graph, batch, tuple(x.shape[2:]), (), names)
    return Trace(graph, batch, tuple(x.shape[2:]), shape_of(trace.outputs()[0])[2:], names)


def make_graph(step: Callable[..., object], inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The functional graph of `step` for inputs of these shapes."""
    with torch.no_grad(), without_onednn(), packing_as_views(), _one_fake_mode():
        raw = make_fx(step)(*inputs)
        # A second pass, over single operations: the first does not see into nn.LSTM's own.
        weights = _take_weights(raw)
        function = torch.func.functionalize(raw, remove="mutations")
        graph = make_fx(function, decomposition_table=WRITTEN_OUT)(*inputs, *weights)
    _give_weights(graph, weights)
    _clear_uninitialised(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


@contextmanager
def _one_fake_mode() -> Iterator[None]:
    """What `make_fx` notes of each value's shape is made in this mode; else it makes one for each
    value, with the stack that led there: half of the time of a trace.
    """
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        yield


def _take_weights(raw: fx.GraphModule) -> list[Tensor]:
    """Make the weights inputs, after the others: functionalize sees no mutation of anything else,
    as of nn.LSTM's gates where they are made of a learned start.
    """
    nodes = [n for n in raw.graph.nodes if n.op == "get_attr"]
    names = list(dict.fromkeys(str(n.target) for n in nodes))
    last = [n for n in raw.graph.nodes if n.op == "placeholder"][-1]
    with raw.graph.inserting_after(last):
        taken = {name: raw.graph.placeholder(f"weight_{name}") for name in reversed(names)}
    for node in nodes:
        node.replace_all_uses_with(taken[str(node.target)])
        raw.graph.erase_node(node)
    raw.recompile()
    return [getattr(raw, name) for name in names]


def _give_weights(graph: fx.GraphModule, weights: Sequence[Tensor]) -> None:
    """Make the inputs after the others the weights that they are."""
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    for i, (node, value) in enumerate(
        zip(placeholders[len(placeholders) - len(weights) :], weights, strict=True)
    ):
        if isinstance(value, nn.Parameter):
            graph.register_parameter(f"weight_{i}", value)
        else:
            graph.register_buffer(f"weight_{i}", value)
        with graph.graph.inserting_before(node):
            taken = graph.graph.get_attr(f"weight_{i}")
        taken.meta = node.meta
        node.replace_all_uses_with(taken)
        graph.graph.erase_node(node)


@contextmanager
def without_onednn() -> Iterator[None]:
    """oneDNN would hide the whole LSTM in one opaque operation; without it, it is plain algebra."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # its flags' own noise
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _clear_uninitialised(graph: fx.Graph) -> None:
    """Memory that a module sets before it reads it: zeros until then, not what lay there."""
    for node in graph.nodes:
        if node.target in CLEARED:
            node.target = CLEARED[node.target]
            if node.target is aten.zeros.default:
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != "memory_format"}
