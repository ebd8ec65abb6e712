"""Poolings over time made streamable: attention, mean, sum and greatest, as running values.

Attention pooling, sum of softmax(s)_t v_t over time, is kept by the running softmax of Milakov &
Gimelshein, "Online normalizer calculation for softmax" (2018):

    m' = max(m, s)      l' = l exp(m - m') + exp(s - m')      a' = a exp(m - m') + exp(s - m') v

and the pooled value is a' / l'. Over one step alone the softmax is 1, so that the pooled value of
the one-step graph is v, however the module spells the weighted sum. A mean keeps its sum and a
count; a sum and a greatest keep themselves. What weighs the past anew at each step, by a query
made of the last state say, has no such form and is refused by name.
"""

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from export.errors import CausalityError
from export.streaming.boundary import Edge
from export.streaming.unrolled import SAME, Rows, Unrolled, descendants

aten = torch.ops.aten
LOWEST = -1e30  # below all scores; finite, so that no difference of two is NaN
WINDOWED = "; `--mode windowed --window N` serves it over a window"
SOFTMAX = aten._softmax.default
KINDS = {
    SOFTMAX: "softmax",
    aten.mean.dim: "mean",
    aten.mean.default: "mean",
    aten._adaptive_avg_pool2d.default: "mean",
    aten.sum.dim_IntList: "sum",
    aten.sum.default: "sum",
    aten.cumsum.default: "sum",
    aten.amax.default: "max",
    aten.max.dim: "max",
    aten.cummax.default: "max",
    aten.adaptive_max_pool2d.default: "max",
}


@dataclass(frozen=True)
class Part:
    """One running value: (B, size), and what it is before the first step."""

    name: str
    size: int
    start: float | Tensor  # for all elements, or (size,)


@dataclass(frozen=True)
class Pooling:
    """A pooling over time in the unrolled graph."""

    kind: str
    operation: fx.Node
    node: fx.Node  # which gives the pooled value
    nodes: frozenset[fx.Node]  # all in which the steps meet, or that are weighted on the way
    first: np.ndarray | None = None  # (B, n), of a softmax: the node's value of the first step

    def place(self, unrolled: Unrolled, single: Unrolled, taken: Sequence[fx.Node]) -> "Pool":
        """The same in the graph of one step, where none of `taken` has a part.

        Raises:
            CausalityError: it is not there.
        """
        source = self.operation.all_input_nodes[0]
        rows = unrolled.rows(source)
        first = None if rows is None else rows[:, unrolled.times[source][0] == 0]
        users = [u for node in single.alike(first) for u in node.users]
        for operation in (u for u in users if u.target == self.operation.target):
            made = descendants(single, operation)
            if self.kind == "softmax":
                near = [n for n in single.alike(self.first) if n in made]
                near.sort(key=lambda n: n.target != self.node.target)
            else:
                near = [n for n in (operation, *operation.users) if n.target == self.node.target]
            for node in near:
                below = descendants(single, node)
                if not any(node in descendants(single, t) or t in below for t in taken):
                    return self._at(single, operation, node)
        what = unrolled.describe(self.operation)
        raise CausalityError(f"{what} pools over time, but not over a single step{WINDOWED}")

    def _at(self, single: Unrolled, operation: fx.Node, node: fx.Node) -> "Pool":
        if self.kind == "softmax":
            return SoftmaxPool(single, operation, node)
        return Pool(self.kind, single, node)


class Pool:
    """A mean, sum or greatest in the graph of one step: `node` is the value of this step."""

    def __init__(self, kind: str, single: Unrolled, node: fx.Node) -> None:
        self.kind, self.node = kind, node
        self._rows = single.layouts[node]
        self._size = int(np.prod(self._rows.rest))

    @property
    def parts(self) -> Sequence[Part]:
        if self.kind == "mean":
            return Part("sum", self._size, 0.0), Part("count", 1, 0.0)
        return (Part(self.kind, self._size, LOWEST if self.kind == "max" else 0.0),)

    def forward(
        self, values: Sequence[Tensor], running: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The pooled value, and the running values after this step.

        Args:
            values: of `arguments`.
            running: (B, size) of each of `parts`.
        """
        value = _flat(self._rows, values[0])
        if self.kind == "max":
            pooled = torch.maximum(running[0], value)
            new = [pooled]
        elif self.kind == "sum":
            pooled = running[0] + value
            new = [pooled]
        else:
            new = [running[0] + value, running[1] + 1]
            pooled = new[0] / new[1]
        return _like(pooled, self._rows, values[0]), new

    @property
    def arguments(self) -> tuple[fx.Node, ...]:
        """The nodes whose values `forward` takes."""
        return (self.node,)


def _flat(rows: Rows, value: Tensor) -> Tensor:
    return value.movedim(rows.axis, 0).flatten(1) if value.ndim > 1 else value.unsqueeze(1)


def _like(pooled: Tensor, rows: Rows, value: Tensor) -> Tensor:
    moved = value.movedim(rows.axis, 0)
    return pooled.reshape(moved.shape).movedim(0, rows.axis)


class SoftmaxPool(Pool):
    """An attention pooling: `node` is what it attends to in this step, its softmax being 1."""

    def __init__(self, single: Unrolled, operation: fx.Node, node: fx.Node) -> None:
        super().__init__("softmax", single, node)
        self.operation = operation
        self._score = operation.all_input_nodes[0]
        self._score_rows = single.layouts[self._score]
        self._heads = _heads(single, operation, node)

    @property
    def parts(self) -> Sequence[Part]:
        scores = int(np.prod(self._score_rows.rest))
        return Part("m", scores, LOWEST), Part("l", scores, 0.0), Part("a", self._size, 0.0)

    @property
    def arguments(self) -> tuple[fx.Node, ...]:
        return self.node, self._score

    def forward(
        self, values: Sequence[Tensor], running: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        value, score = _flat(self._rows, values[0]), _flat(self._score_rows, values[1])
        m, l, a = running  # noqa: E741  (the paper's letters)
        greatest = torch.maximum(m, score)
        decay, weight = torch.exp(m - greatest), torch.exp(score - greatest)
        total = l * decay + weight
        a = a * self._spread(decay) + self._spread(weight) * value
        return _like(a / self._spread(total), self._rows, values[0]), [greatest, total, a]

    def _spread(self, scores: Tensor) -> Tensor:
        """The score that belongs to each element of the value."""
        return scores if scores.shape[1] == 1 else scores[:, self._heads]


def find_poolings(
    unrolled: Unrolled, edges: Sequence[Edge], shifted: Collection[fx.Node] = ()
) -> list[Pooling]:
    """The poolings over time, in the order of computation.

    Args:
        shifted: where steps meet because they are kept in a register.
    Raises:
        CausalityError: steps meet in an operation that has no running form.
    """
    found: list[Pooling] = []
    taken: set[fx.Node] = set(shifted)
    meeting = dict.fromkeys(e.user for e in edges if e.stop - e.start > 1)
    for node in meeting:
        if node in taken:
            continue
        kind = _kind(node)
        if kind is None:
            raise CausalityError(_why_refused(unrolled, edges, found, node) + WINDOWED)
        made = _softmax_poolings(unrolled, node) if kind == "softmax" else [_plain(kind, node)]
        found += made
        taken |= {n for pooling in made for n in pooling.nodes}
    return found


def _why_refused(
    unrolled: Unrolled, edges: Sequence[Edge], found: Sequence[Pooling], node: fx.Node
) -> str:
    for pooling in found:
        if node in descendants(unrolled, pooling.node):
            what = unrolled.describe(pooling.operation)
            return f"{what} is over time, and earlier steps use what it gives: it looks ahead"
    edge = next(e for e in edges if e.user is node and e.stop - e.start > 1)
    return (
        f"{unrolled.describe(node)} takes step {edge.start} after step {edge.stop} has come: it "
        "looks back over the whole sequence, or takes it in another order"
    )


def _kind(node: fx.Node) -> str | None:
    return KINDS.get(node.target) if isinstance(node.target, torch._ops.OpOverload) else None


def _plain(kind: str, node: fx.Node) -> Pooling:
    firsts = [u for u in node.users if u.target is operator.getitem and u.args[1] == 0]
    value = firsts[0] if firsts else node
    return Pooling(kind, node, value, frozenset((node, value)))


def _softmax_poolings(unrolled: Unrolled, node: fx.Node) -> list[Pooling]:
    """What is weighted by a softmax over time and summed: one of each sum."""
    source = node.all_input_nodes[0]
    times = unrolled.times[source][0]
    counts = [int((times == t).sum()) for t in range(unrolled.steps)]
    if len(set(counts)) > 1 or sum(counts) != len(times) or node not in unrolled.layouts:
        raise CausalityError(
            f"{unrolled.describe(node)} is over scores that look at later steps, or back from "
            f"each of them{WINDOWED}"
        )
    weighted, summed = _follow(unrolled, node, times)
    if not summed:
        raise CausalityError(f"{unrolled.describe(node)} is over time, and not summed up{WINDOWED}")
    nodes = frozenset((node, *weighted, *summed))
    rows, base = unrolled.layouts[node], _tensor(unrolled.values[node])

    def summed_with(weights: Tensor) -> list[np.ndarray]:
        values = unrolled.values | {node: weights}
        for n in unrolled.nodes[unrolled.order[node] + 1 :]:
            if n in nodes:
                values[n] = unrolled.compute(n, values)
        return [unrolled.layouts[end].flat(_tensor(values[end])).numpy() for end in summed]

    steps = [
        rows.full(torch.from_numpy(times == t).expand(unrolled.batch, -1)).double()
        for t in range(unrolled.steps)
    ]
    parts = zip(*(summed_with(2 * base * step) for step in steps), strict=True)
    for whole, each in zip(summed_with(base), parts, strict=True):
        if np.abs(2 * whole - sum(each)).max() > SAME * max(1.0, float(np.abs(whole).max())):
            raise CausalityError(
                f"{unrolled.describe(node)} is over time, and what is made of its weights is no "
                f"weighted sum{WINDOWED}"
            )
    firsts = summed_with(steps[0])  # all weight on the first step
    return [
        Pooling("softmax", node, end, nodes, first)
        for end, first in zip(summed, firsts, strict=True)
    ]


def _follow(
    unrolled: Unrolled, softmax: fx.Node, times: np.ndarray
) -> tuple[list[fx.Node], list[fx.Node]]:
    """What is made of single weights, and where weights of several steps meet first."""
    rows = unrolled.layouts[softmax]
    count: dict[fx.Node, np.ndarray] = {}
    ends: list[fx.Node] = []
    users = [n for n in unrolled.nodes if unrolled.order[n] > unrolled.order[softmax]]
    values = dict(unrolled.values)
    reach = descendants(unrolled, softmax)
    base = _tensor(values[softmax])
    for step in range(unrolled.steps):
        mask = rows.full(torch.from_numpy(times == step).expand(unrolled.batch, -1))
        moved = dict(values) | {softmax: base + mask.double()}
        for n in users:
            if n in reach:
                moved[n] = unrolled.compute(n, moved)
                changed = unrolled.changed(n, moved[n])
                count[n] = count.get(n, np.zeros_like(changed, dtype=int)) + changed
    weighted: list[fx.Node] = []
    inside = {softmax}
    for n in users:
        if n in reach and any(a in inside for a in n.all_input_nodes):
            if (count[n] > 1).any():
                ends.append(n)
            else:
                weighted.append(n)
                inside.add(n)
    return weighted, ends


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} where a tensor was expected")
    return value


def _heads(single: Unrolled, operation: fx.Node, node: fx.Node) -> list[int]:
    """For each element of the pooled value, which of the scores weighs it."""
    rows = single.layouts[operation]
    size = int(np.prod(rows.rest))
    base = _tensor(single.values[operation])
    index = np.zeros(int(np.prod(single.layouts[node].rest)), dtype=int)
    start, stop = single.order[operation], single.order[node]
    for head in range(size):
        mask = rows.full((torch.arange(size) == head).expand(single.batch, -1))
        moved = dict(single.values) | {operation: base + mask.double()}
        for n in single.nodes[start + 1 : stop + 1]:
            moved[n] = single.compute(n, moved)
        index[single.changed(node, moved[node])] = head
    return [int(i) for i in index]
