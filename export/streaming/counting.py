"""Divisions by the number of steps: a length that a trace has as a number, counted instead.

`outs.sum(1) / x.size(1)` and `total / len(outs)` are divided by 4 in a trace over four steps, and
by 1 over one. Such a number is told by both, and is the count of steps in the graph of one step.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from export.streaming.unrolled import Unrolled, leaves, walk

aten = torch.ops.aten
ARITHMETIC = {aten.div.Tensor, aten.mul.Tensor}
Place = tuple[fx.Node, int]  # a user, and which of its leaves


def find_counts(unrolled: Unrolled, short: Unrolled) -> Mapping[Place, bool]:
    """Where the graph over fewer steps takes their number -> whether it takes 1 over it."""
    found: dict[Place, bool] = {}
    for a, b in walk([(unrolled.output, short.output)]):
        if a.target not in ARITHMETIC or b not in short.layouts or short.layouts[b].inner > 1:
            continue
        for i, (one, other) in enumerate(zip(leaves(a), leaves(b), strict=True)):
            pair = _number(unrolled, one), _number(short, other)
            if pair == (unrolled.steps, short.steps):
                found[b, i] = False
            elif pair == (1 / unrolled.steps, 1 / short.steps):
                found[b, i] = True
    return found


def find_position(unrolled: Unrolled, single: Unrolled) -> fx.Node | None:
    """What takes a constant that is another at each step, as a positional encoding is."""
    firsts = [v for n in single.nodes if (v := _constant(single, n)) is not None]
    for node in unrolled.nodes:
        value = _constant(unrolled, node)
        users = [u for u in node.users if u in unrolled.order and unrolled.classes(u)]
        for axis, size in enumerate(() if value is None else value.shape):
            if value is None or size != unrolled.steps or not users:
                continue
            first = value.narrow(axis, 0, 1)
            if not torch.equal(value, first.expand_as(value)) and any(
                first.shape == one.shape and torch.equal(first, one) for one in firsts
            ):
                return users[0]
    return None


def _constant(unrolled: Unrolled, node: fx.Node) -> Tensor | None:
    value = unrolled.values[node]
    return value if isinstance(value, Tensor) and not unrolled.classes(node) else None


def shaped_count(count: Tensor, ndim: int, axis: int, is_inverse: bool) -> Tensor:
    """(B, 1) as a number for each row of a value whose batch is on `axis`."""
    shaped = count.reshape([-1 if i == axis else 1 for i in range(ndim)])
    return 1 / shaped if is_inverse else shaped


def _number(unrolled: Unrolled, leaf: object) -> float | None:
    """A number, or a constant that is one all over."""
    if isinstance(leaf, int | float):
        return None if isinstance(leaf, bool) else leaf
    if not isinstance(leaf, fx.Node) or unrolled.classes(leaf):
        return None
    value = unrolled.values[leaf]
    if not isinstance(value, Tensor) or not value.numel() or value.dtype is torch.bool:
        return None
    first = value.reshape(-1)[0]
    return float(first) if bool((value == first).all()) else None
