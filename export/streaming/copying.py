"""Nodes of a trace written into another graph, for any batch."""

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from export.errors import CallError
from export.streaming.unrolled import Rows, Unrolled

aten = torch.ops.aten
MAX_INT = 1 << 40  # a larger size stands for "to the end"


class Copy:
    """A graph in the making, with nodes of `source` in it."""

    def __init__(self, source: Unrolled) -> None:
        self._source = source
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._size: fx.Node | None = None  # the batch that comes

    def copy(
        self,
        node: fx.Node,
        env: Mapping[fx.Node, fx.Node],
        given: Mapping[tuple[fx.Node, int], fx.Node],
    ) -> fx.Node:
        """A node with the copies of its arguments.

        Args:
            env: node of the source -> its copy.
            given: (user, its leaf) -> what it takes there instead.
        """
        if node.op == "get_attr":
            return self._constant(node)
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
        before, after = (self._source.values[n] for n in (node.all_input_nodes[0], node))
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return False
        return before.shape == after.shape and torch.equal(before, after)

    def _sized(self, value: object) -> object:
        """A size that is the batch times something, of the batch that comes."""
        batch = self._source.batch
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        if not 0 < value < MAX_INT or value % batch:
            return value
        return (
            self._size if value == batch else self._call(operator.mul, self._size, value // batch)
        )

    def _constant(self, node: fx.Node) -> fx.Node:
        name = str(node.target)
        value: Tensor = getattr(self._source.root, name)
        axes = [i for i, n in enumerate(value.shape) if n and n % self._source.batch == 0]
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

    def _flat(self, value: fx.Node, rows: Rows, shape: Sequence[int]) -> fx.Node:
        """A value of the graph as a state (B, *shape)."""
        if rows.batch_axis:
            value = self._call(aten.reshape.default, value, [self._sized(n) for n in rows.split])
            value = self._call(aten.movedim.int, value, rows.batch_axis, 0)
        return self._call(aten.reshape.default, value, [-1, *shape])

    def _call(self, target: object, *args: object) -> fx.Node:
        return self._graph.call_function(target, args)  # type: ignore[arg-type]
