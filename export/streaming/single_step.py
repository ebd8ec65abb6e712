"""The graph of one step of a module that hides its states, with these made inputs and outputs."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from export.streaming.copying import Copy
from export.streaming.counting import Place, shaped_count
from export.streaming.pooling import Pool, SoftmaxPool
from export.streaming.unrolled import Rows, Unrolled

aten = torch.ops.aten


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


class SingleStep(Copy):
    """Writes `graph(x, *states) -> (y, *states')` for any batch from the trace of one step."""

    def __init__(
        self,
        single: Unrolled,
        carried: Mapping[str, Carried],
        pools: Sequence[tuple[Pool, list[str]]],
        counts: Mapping[Place, bool] | None = None,
        count: str = "count",
    ) -> None:
        """Args:
        carried: name -> state.
        pools: each with the names of its parts.
        counts: where the number of steps is taken (see `counting`); None: nowhere.
        count: the name of the state that counts them.
        """
        super().__init__(single)
        self._single = single
        self._carried, self._pools = carried, pools
        self._counts, self._count = counts or {}, [count] if counts else []
        self._softmaxes = {p.operation for p, _ in pools if isinstance(p, SoftmaxPool)}

    def write(self) -> fx.GraphModule:
        """The graph. The weights in it are the module's own."""
        graph = self._graph
        x = graph.placeholder("x")
        env = {self._single.placeholder: x}
        names = [
            *self._carried,
            *(name for _, names in self._pools for name in names),
            *self._count,
        ]
        inputs = {name: graph.placeholder(f"{name}_0") for name in names}
        self._size = self._call(aten.sym_size.int, x, 1 - self._single.time_axis)
        given = {
            place: self._shaped(inputs[name], rows)
            for name, state in self._carried.items()
            for place, rows in state.injections.items()
        }
        outputs: dict[str, fx.Node] = {}
        for name in self._count:
            outputs[name] = self._call(aten.add.Tensor, inputs[name], 1)
            for (user, leaf), is_inverse in self._counts.items():
                rows = self._single.layouts[user]
                given[user, leaf] = self._call(
                    shaped_count, outputs[name], len(rows.shape), rows.axis, is_inverse
                )
        for node in self._single.nodes:
            if node not in env:
                env[node] = self._copied(node, env, given)
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
            outputs[name] = self._flat(env[state.node], state.rows, state.shape)
        graph.output((env[self._single.output], *(outputs[name] for name in names)))
        graph.eliminate_dead_code()
        return fx.GraphModule(self._root, graph)

    def _copied(
        self,
        node: fx.Node,
        env: Mapping[fx.Node, fx.Node],
        given: Mapping[tuple[fx.Node, int], fx.Node],
    ) -> fx.Node:
        if node in self._softmaxes:  # over one step, all weight is on it
            return self._call(aten.ones_like.default, env[node.all_input_nodes[0]])
        return self.copy(node, env, given)
