"""A loop whose first step is made of other operations than the next ones.

`if h is None:` without the product of h, a state that begins from `fc(x[:, 0])`, `total = outs[0]`:
nothing stands in the state's place in the first step. The step is then both: the first step, from
the trace over one, and a later one, from the trace over three, in which what goes on from its
second step is given and what its third makes is taken. A state of its own, 0 until the first step
was made, says which of the two counts.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from export.errors import CallError
from export.streaming.boundary import Boundary, Edge
from export.streaming.copying import Copy
from export.streaming.counting import Place, find_counts, shaped_count
from export.streaming.single_step import Carried, SingleStep
from export.streaming.unrolled import Unrolled, walk

aten = torch.ops.aten
TRACED = 3  # steps; after the first alone, states that begin alike would not be told apart
State = tuple[fx.Node, fx.Node, fx.Node]  # the same after the first, second and third step


def find_states(
    unrolled: Unrolled, single: Unrolled, boundaries: Sequence[Boundary]
) -> list[State]:
    """What goes on from each of the first three steps, in the order of computation.

    It is there in the graph of one step alone: h is, its product with U for the next step is not.

    Raises:
        CallError: it is not the same after each, or no whole values.
    """
    crossing = [boundary.crossing for boundary in boundaries]
    if len({len(edges) for edges in crossing}) > 1:
        counts = " and ".join(str(len(edges)) for edges in crossing)
        raise CallError(f"{counts} values go on from its first steps: it has no one form")
    first, second, third = crossing
    earlier = _corresponding(unrolled, second, first)
    later = _corresponding(unrolled, second, third)
    allowed = [
        node
        for node in earlier.keys() & later.keys()
        if unrolled.is_whole(earlier[node], 0)
        and unrolled.is_whole(later[node], 2)
        and single.alike(unrolled.rows(earlier[node]))
    ]
    found = boundaries[1].state(allowed, is_late=True)
    if not set(found) <= set(allowed):
        raise CallError("what goes on from its first steps was not found in each of them")
    return [(earlier[node], node, later[node]) for node in found]


def _corresponding(
    unrolled: Unrolled, edges: Sequence[Edge], others: Sequence[Edge]
) -> dict[fx.Node, fx.Node]:
    """What goes on over one boundary, and what it is made of, by what goes on over another."""
    if any(a.user.target != b.user.target for a, b in zip(edges, others, strict=True)):
        raise CallError("its first steps hand on values to different operations")
    found: dict[fx.Node, fx.Node] = {}

    def note(a: fx.Node, b: fx.Node, user: fx.Node, leaf: int) -> bool:
        found.setdefault(a, b)
        return False

    pairs = [(a.source, b.source) for a, b in zip(edges, others, strict=True)]
    for a, b in pairs:
        note(a, b, b, 0)
    for _ in walk(pairs, note):
        continue
    return found


class FirstApart(nn.Module):
    """`graph(x (B, 1, ...), *states, count (B, 1)) -> (y, *states', count')`."""

    def __init__(
        self,
        unrolled: Unrolled,
        single: Unrolled,
        named: Mapping[str, Carried],
        states: Mapping[str, State],
        gives_all: bool,
    ) -> None:
        """Write it.

        Args:
            named: the states in the graph of one step.
            states: the same in the unrolled graph.
            gives_all: y has an axis of time, where x has it.
        """
        super().__init__()
        later = unrolled.shortened(TRACED)
        counts = find_counts(unrolled, later)
        self.is_counted = bool(counts)
        self._axis = 1 - single.time_axis if gives_all else 0
        self.first = SingleStep(single, named, ()).write()
        ends = [
            (_alike(later, unrolled, s[1]), _alike(later, unrolled, s[2])) for s in states.values()
        ]
        shapes = [carried.shape for carried in named.values()]
        self.later = _Later(later, ends, shapes, counts, gives_all).write()

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One step."""
        *given, count = states
        first, later = self.first(x, *given), self.later(x, *given, count + 1)
        new = [
            torch.where(count.reshape([-1 if i == axis else 1 for i in range(a.ndim)]) > 0, a, b)
            for a, b, axis in zip(later, first, (self._axis, *[0] * len(given)), strict=True)
        ]
        return (*new, count + 1 if self.is_counted else (count + 1).clamp(max=1))


def _alike(graph: Unrolled, unrolled: Unrolled, node: fx.Node) -> list[fx.Node]:
    found = graph.alike(unrolled.rows(node))
    if not found:
        raise CallError(f"what goes on from a step is not there over {graph.steps} steps alone")
    return found


class _Later(Copy):
    """Writes `graph(x (B, 1, ...), *states, count) -> (y, *states')` of the last traced step."""

    def __init__(
        self,
        source: Unrolled,
        ends: Sequence[tuple[Sequence[fx.Node], Sequence[fx.Node]]],
        shapes: Sequence[tuple[int, ...]],
        counts: Mapping[Place, bool],
        gives_all: bool,
    ) -> None:
        """Args:
        ends: for each state, the nodes that have it before and after the step.
        shapes: of a row of each.
        """
        super().__init__(source)
        self._ends, self._shapes, self._counts = ends, shapes, counts
        self._gives_all = gives_all

    def write(self) -> fx.GraphModule:
        """The graph. The weights in it are the module's own."""
        graph, source = self._graph, self._source
        x = graph.placeholder("x")
        given = [graph.placeholder(f"s{i}") for i in range(len(self._ends))]
        count = graph.placeholder("count")
        axis = source.time_axis
        self._size = self._call(aten.sym_size.int, x, 1 - axis)
        # What the steps before make of x is not used: only what goes on from them is, and is given.
        env = {source.placeholder: self._call(aten.cat.default, [x] * source.steps, axis)}
        for (before, _), state in zip(self._ends, given, strict=True):
            for node in before:
                env[node] = self._shaped(state, source.layouts[node])
        places = {
            (user, leaf): self._call(
                shaped_count, count, len(source.layouts[user].shape), source.layouts[user].axis, inv
            )
            for (user, leaf), inv in self._counts.items()
        }
        for node in source.nodes:
            if node not in env:
                env[node] = self.copy(node, env, places)
        y = env[source.output]
        if self._gives_all:
            y = self._call(aten.slice.Tensor, y, axis, source.steps - 1, source.steps)
        new = []
        for (_, after), shape in zip(self._ends, self._shapes, strict=True):
            new.append(self._flat(env[after[0]], source.layouts[after[0]], shape))
        graph.output((y, *new))
        graph.eliminate_dead_code()
        return fx.GraphModule(self._root, graph)
