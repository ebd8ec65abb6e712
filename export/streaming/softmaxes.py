"""A softmax over an axis spelled as exponentials and their sum, made the one operation that it is.

`e = exp(s - s.max())`, `e / e.sum()` or `(e * v).sum() / e.sum()`, `exp(log_softmax(s))` and
`exp(s - logsumexp(s))`: e is put as softmax(s), its sum as 1, and that counts if the graph gives
the same in float64.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx

aten = torch.ops.aten
SAME = 1e-9  # relative
GREATEST: set[object] = {aten.amax.default, aten.max.dim}
VIEWS: set[object] = {
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.view.default,
    aten.transpose.int,
    aten.permute.default,
}
NEAR = 8  # operations of a logsumexp, written out


def put_softmaxes(graph: fx.GraphModule, run: Callable[[fx.GraphModule], Tensor]) -> fx.GraphModule:
    """The graph with its softmaxes as such.

    Args:
        graph: not changed.
        run: what a graph gives in float64, for the same input each time.
    """
    graph = _with_views_first(graph)
    count = len([n for n in graph.graph.nodes if n.target is aten.exp.default])
    wanted: Tensor | None = None
    for place in reversed(range(count)):
        exps = [n for n in graph.graph.nodes if n.target is aten.exp.default]
        if place >= len(exps):  # it went with a later one, whose logsumexp it was in
            continue
        for score, axis in list(_readings(exps[place]))[:1]:
            wanted = run(graph) if wanted is None else wanted
            other = _with_softmax(graph, exps[place], score, axis)
            scale = max(1.0, float(wanted.abs().max()))
            if float((run(other) - wanted).abs().max()) <= SAME * scale:
                graph = other
    return graph


def _with_views_first(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with `exp(s).squeeze(-1)` as `exp(s.squeeze(-1))`."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    for exp in [n for n in copied.nodes if n.target is aten.exp.default]:
        while len(exp.users) == 1 and (view := next(iter(exp.users))).target in VIEWS:
            with copied.inserting_before(exp):
                args = (exp.args[0], *view.args[1:])
                inner = copied.call_function(view.target, args)
            inner.meta = exp.meta = view.meta
            view.replace_all_uses_with(exp)
            copied.erase_node(view)
            exp.args = (inner,)
    return fx.GraphModule(graph, copied)


def _readings(exp: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """Of what it could be the softmax, and over which axis."""
    inner = exp.args[0]
    if not isinstance(inner, fx.Node):
        return
    if inner.target is aten._log_softmax.default:
        score, axis = inner.args[:2]
        if isinstance(score, fx.Node) and isinstance(axis, int):
            yield score, axis
        return
    is_shifted = inner.target is aten.sub.Tensor and isinstance(inner.args[0], fx.Node)
    score = inner.args[0] if is_shifted else inner
    if not isinstance(score, fx.Node):
        return
    for user in exp.users:
        axis = _axis_of_sum(user)
        if axis is not None:
            yield score, axis
    front = inner.all_input_nodes[1:] if is_shifted else []
    for _ in range(NEAR):
        for node in front:
            axes = node.args[1] if node.target in GREATEST and len(node.args) > 1 else None
            axis = axes[0] if isinstance(axes, list | tuple) and len(axes) == 1 else axes
            if isinstance(axis, int):
                yield score, axis
        front = [a for n in front for a in n.all_input_nodes]


def _axis_of_sum(node: fx.Node) -> int | None:
    if node.target is not aten.sum.dim_IntList:
        return None
    axes = node.args[1]
    if isinstance(axes, list | tuple) and len(axes) == 1 and isinstance(axes[0], int):
        return axes[0]
    return None


def _with_softmax(graph: fx.GraphModule, exp: fx.Node, score: fx.Node, axis: int) -> fx.GraphModule:
    copied = fx.Graph()
    taken: dict[fx.Node, fx.Node] = {}
    output = copied.graph_copy(graph.graph, taken)
    node = taken[exp]
    with copied.inserting_before(node):
        softmax = copied.call_function(aten._softmax.default, (taken[score], axis, False))
    softmax.meta = dict(node.meta)
    ndim = len(node.meta["tensor_meta"].shape)
    for user in list(node.users):
        of_sum = _axis_of_sum(user)
        if of_sum is not None and of_sum % ndim == axis % ndim:
            shape = [int(n) for n in user.meta["tensor_meta"].shape]
            with copied.inserting_before(user):
                one = copied.call_function(aten.full.default, (shape, 1.0))
            one.meta = dict(user.meta)
            user.replace_all_uses_with(one)
            copied.erase_node(user)
    node.replace_all_uses_with(softmax)
    copied.output(output)
    copied.eliminate_dead_code()
    return fx.GraphModule(graph, copied)
