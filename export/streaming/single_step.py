"""The graph of one step of a module that hides its states, with these made inputs and outputs."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from export.errors import CallError
from export.streaming.pooling import Pool, SoftmaxPool
from export.streaming.unrolled import Rows, Unrolled

aten = torch.ops.aten
MAX_INT = 1 << 40  # a larger size stands for "to the end"


@dataclass(frozen=True)
class Carried:
    """A state: the node of the step's graph that gives it, and where the graph takes it."""

    node: fx.Node
    rows: Rows
    start: Tensor  # (n,) float32, a row of it before the first step
    injections: Mapping[tuple[fx.Node, int], Rows]  # (user, its leaf) -> how it is shaped there

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row, without axes of one element unless there is no other."""
        return tuple(n for n in self.rows.rest if n > 1) or (1,)


class SingleStep:
    """Writes `graph(x, *states) -> (y, *states')` for any batch from the trace of one step."""

    def __init__(
        self,
        single: Unrolled,
        carried: Mapping[str, Carried],
        pools: Sequence[tuple[Pool, list[str]]],
    ) -> None:
        """Args:
        carried: name -> state.
        pools: each with the names of its parts.
        """
        self._single = single
        self._carried, self._pools = carried, pools
        self._softmaxes = {p.operation for p, _ in pools if isinstance(p, SoftmaxPool)}
        self._graph = fx.Graph()
        self._root = nn.Module()

    def write(self) -> fx.GraphModule:
        """The graph. The weights in it are the module's own."""
        graph = self._graph
        x = graph.placeholder("x")
        env = {self._single.placeholder: x}
        names = [*self._carried, *(name for _, names in self._pools for name in names)]
        inputs = {name: graph.placeholder(f"{name}_0") for name in names}
        self._size = self._call(aten.sym_size.int, x, 1 - self._single.time_axis)
        given = {
            place: self._shaped(inputs[name], rows)
            for name, state in self._carried.items()
            for place, rows in state.injections.items()
        }
        outputs: dict[str, fx.Node] = {}
        for node in self._single.nodes:
            if node not in env:
                env[node] = self._copy(node, env, given)
            for pool, parts in self._pools:
                if pool.node is node:
                    taken = [env[n] for n in pool.arguments]
                    both = self._call(pool.forward, taken, [inputs[n] for n in parts])
                    env[node] = self._call(operator.getitem, both, 0)
                    new = self._call(operator.getitem, both, 1)
                    outputs |= {
                        n: self._call(operator.getitem, new, i) for i, n in enumerate(parts)
                    }
        for name, state in self._carried.items():
            outputs[name] = self._flat(env[state.node], state)
        graph.output((env[self._single.output], *(outputs[name] for name in names)))
        graph.eliminate_dead_code()
        return fx.GraphModule(self._root, graph)

    def _copy(
        self,
        node: fx.Node,
        env: Mapping[fx.Node, fx.Node],
        given: Mapping[tuple[fx.Node, int], fx.Node],
    ) -> fx.Node:
        if node.op == "get_attr":
            return self._constant(node)
        if node in self._softmaxes:  # over one step, all weight is on it
            return self._call(aten.ones_like.default, env[node.all_input_nodes[0]])
        if self._changes_nothing(node):
            return env[node.all_input_nodes[0]]
        count = iter(range(1 << 20))

        def leaf(value: object) -> object:  # in the order of `unrolled.leaves`
            index = next(count)
            if (node, index) in given:
                return given[node, index]
            return env[value] if isinstance(value, fx.Node) else self._sized(value)

        args, kwargs = tree_map(leaf, (node.args, dict(node.kwargs)))
        return self._graph.call_function(node.target, tuple(args), kwargs)  # type: ignore[arg-type]

    def _changes_nothing(self, node: fx.Node) -> bool:
        """Rows put into the order that they have, by packing; strides that only name a layout."""
        if node.target not in (aten.index_select.default, aten.as_strided.default):
            return False
        before, after = (self._single.values[n] for n in (node.all_input_nodes[0], node))
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return False
        return before.shape == after.shape and torch.equal(before, after)

    def _sized(self, value: object) -> object:
        """A size that is the batch times something, of the batch that comes."""
        batch = self._single.batch
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        if not 0 < value < MAX_INT or value % batch:
            return value
        return (
            self._size if value == batch else self._call(operator.mul, self._size, value // batch)
        )

    def _constant(self, node: fx.Node) -> fx.Node:
        name = str(node.target)
        value: Tensor = getattr(self._single.root, name)
        axes = [i for i, n in enumerate(value.shape) if n and n % self._single.batch == 0]
        if not axes:
            if isinstance(value, nn.Parameter):
                self._root.register_parameter(name, value)
            else:
                self._root.register_buffer(name, value)
            return self._graph.get_attr(name)
        one = value.narrow(axes[0], 0, 1)
        if len(axes) > 1 or not torch.equal(value, one.expand_as(value)):
            raise CallError(f"a constant of shape {tuple(value.shape)} has a row for each sequence")
        self._root.register_buffer(name, one.detach().clone())
        sizes = [self._sized(n) for n in value.shape]
        return self._call(aten.expand.default, self._graph.get_attr(name), sizes)

    def _shaped(self, state: fx.Node, rows: Rows) -> fx.Node:
        """A state (B, ...) as the graph has it."""
        value = state
        if rows.batch_axis:
            value = self._call(aten.reshape.default, value, [-1, *rows.rest])
            value = self._call(aten.movedim.int, value, 0, rows.batch_axis)
        return self._call(aten.reshape.default, value, [self._sized(n) for n in rows.shape])

    def _flat(self, value: fx.Node, state: Carried) -> fx.Node:
        """A value of the graph as a state (B, ...)."""
        rows = state.rows
        if rows.batch_axis:
            value = self._call(aten.reshape.default, value, [self._sized(n) for n in rows.split])
            value = self._call(aten.movedim.int, value, rows.batch_axis, 0)
        return self._call(aten.reshape.default, value, [-1, *state.shape])

    def _call(self, target: object, *args: object) -> fx.Node:
        return self._graph.call_function(target, args)  # type: ignore[arg-type]
