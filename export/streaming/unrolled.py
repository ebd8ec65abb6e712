"""A module that hides its states, unrolled: its trace over a few steps, and what depends on when.

Rules
- The batch is a prime that divides no size of the module, so that a size in the graph which it
  divides is the batch times something.
- Every value is seen as rows, (B, n), wherever its batch axis lies and whatever it is folded with.
- The time of an element is the last step of X that it depends on, found by changing one step at a
  time and looking at what changes in float64, in any row: rows are of many scales, so that neither
  a relu at zero nor a saturated gate hides a dependence in all of them. -1: it is constant.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from export.algebra.trace import Trace, make_graph
from export.errors import CallError
from export.streaming.places import describe_operation
from export.streaming.softmaxes import put_softmaxes

Array = np.ndarray
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 79, 83, 89, 97, 101)
CONSTANT = -1
SAME = 1e-9  # relative: the rounding of float64 when a product is taken over other shapes


@dataclass(frozen=True)
class Rows:
    """Where the batch lies in a value: axis `axis` is (batch, inner), or (inner, batch)."""

    shape: tuple[int, ...]
    axis: int
    batch: int
    is_outer: bool

    @property
    def inner(self) -> int:
        return self.shape[self.axis] // self.batch

    @property
    def rest(self) -> tuple[int, ...]:
        """The shape of a row."""
        return tuple(n for i, n in enumerate(self.split) if i != self.batch_axis)

    @property
    def batch_axis(self) -> int:
        """Of a value reshaped to `split`."""
        return self.axis if self.is_outer else self.axis + 1

    @property
    def split(self) -> tuple[int, ...]:
        """The shape with the batch on an axis of its own."""
        if self.inner == 1:
            return self.shape
        pair = (self.batch, self.inner) if self.is_outer else (self.inner, self.batch)
        return (*self.shape[: self.axis], *pair, *self.shape[self.axis + 1 :])

    def flat(self, value: Tensor) -> Tensor:
        """(B, n) of a value of `shape`."""
        return value.reshape(self.split).movedim(self.batch_axis, 0).reshape(self.batch, -1)

    def full(self, rows: Tensor) -> Tensor:
        """The value whose rows are (B, n)."""
        value = rows.reshape(self.batch, *self.rest).movedim(0, self.batch_axis)
        return value.reshape(self.shape)


class Unrolled:
    """The graph of `module(X)` over `steps` steps, with the times of all values."""

    def __init__(
        self, module: nn.Module, x: Tensor, steps: int, time_axis: int, batch: int | None = None
    ) -> None:
        """Trace it.

        Args:
            module: in eval mode; it takes X as its only argument. Not changed.
            x: (N, T, ...), an example; its features, dtype and (if integer) ids count.
            steps: K.
            time_axis: of X as the module takes it: 0 or 1.
            batch: the prime; None: one is chosen.
        Raises:
            CallError: it cannot be traced, or rows of the batch meet in it.
        """
        self.steps, self.time_axis = steps, time_axis
        self._inputs: dict[fx.Node, Array] = {}  # taken for inputs, beside x
        self._steps_of: dict[fx.Node, Array] = {}  # what is known of times
        self._module, self._example = module, x
        self.batch = batch or _choose_batch(module, x, steps)
        self.x = self.draw(0)
        try:
            graph = make_graph(lambda value: _one(module(value)), (self.outside(self.x),))
        except CallError:
            raise
        except Exception as error:  # whatever the user's code raises
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise CallError(f"it could not be traced over {steps} steps: {line}") from error
        with torch.no_grad():
            graph = put_softmaxes(graph, self._run)
        self._trace = Trace(graph, self.batch, (), (), ())
        self.root = graph
        self.nodes: list[fx.Node] = [n for n in graph.graph.nodes if n.op != "output"]
        self.order = {n: i for i, n in enumerate(self.nodes)}
        self.placeholder = next(n for n in self.nodes if n.op == "placeholder")
        output = next(n for n in graph.graph.nodes if n.op == "output")
        found = output.args[0][0] if isinstance(output.args[0], tuple | list) else output.args[0]
        if not isinstance(found, fx.Node):
            raise CallError("its output does not depend on x")
        self.output = found

    def _run(self, graph: fx.GraphModule) -> Tensor:
        """What a graph gives for x, in float64."""
        trace, values = Trace(graph, self.batch, (), (), ()), dict[fx.Node, object]()
        outside = self.outside(self.x)
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                values[node] = outside.double() if outside.is_floating_point() else outside
            elif node.op != "output":
                values[node] = trace.compute(node, values)
        output = next(n for n in graph.graph.nodes if n.op == "output")
        found = values.get(output.all_input_nodes[0]) if output.all_input_nodes else None
        return found if isinstance(found, Tensor) else torch.zeros(1)

    def shortened(self, steps: int) -> "Unrolled":
        """The same module over the first `steps` of the same x."""
        other = Unrolled(self._module, self._example, steps, self.time_axis, self.batch)
        other.x = self.x[:, :steps]
        return other

    def _refuse_random(self, values: dict[fx.Node, object]) -> None:
        for node in self.nodes:
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                again = _parts(self.compute(node, values))
                pairs = zip(_parts(values[node]), again, strict=True)
                if any(bool(_changed(a, b).any()) for a, b in pairs):
                    raise CallError(f"{self.describe(node)} draws random numbers at each call")

    def outside(self, x: Tensor) -> Tensor:
        """X as the module takes it, of x (B, T, ...)."""
        return x.movedim(1, self.time_axis).contiguous()

    def draw(self, seed: int) -> Tensor:
        """Random x (B, K, ...), each row of another scale; ids are drawn from the example."""
        generator = torch.Generator().manual_seed(seed)
        features = tuple(self._example.shape[2:])
        shape = (self.batch, self.steps, *features)
        if not self._example.is_floating_point():
            ids = self._example.reshape(-1)
            return ids[torch.randint(0, len(ids), shape, generator=generator)]
        scale = torch.logspace(-0.5, 1.5, self.batch)
        scale = scale[torch.randperm(self.batch, generator=generator)]
        return torch.randn(shape, generator=generator) * scale.reshape(-1, *[1] * (len(shape) - 1))

    def take_as_input(self, node: fx.Node, positions: Array) -> None:
        """Take a node for an input of its own: what it holds at step t is of time t.

        Args:
            node: of one value with a batch.
            positions: (n,), for each element of a row, the step that it is for.
        """
        self._inputs[node] = self._steps_of[node] = positions
        for cached in ("times", "_by_value"):
            self.__dict__.pop(cached, None)

    def take_as_sequence(self, node: fx.Node, positions: Array) -> None:
        """Of a node that is made of inputs step by step: a unit that is off in every row would hide
        of which step it is.
        """
        self._steps_of[node] = positions
        if "times" in self.__dict__:
            self._set_known(self.times, node)

    def _set_known(self, times: dict[fx.Node, list[Array]], node: fx.Node) -> None:
        found = times[node][0]
        times[node] = [np.where(found == CONSTANT, CONSTANT, self._steps_of[node])]

    def evaluate(self, x: Tensor, moved: int | None = None) -> dict[fx.Node, object]:
        """The value of every node in float64, for x (B, K, ...).

        Args:
            x: as drawn, or with one step of it changed.
            moved: that step; what else is taken for an input is changed there too.
        """
        outside = self.outside(x)
        values: dict[fx.Node, object] = {}
        for node in self.nodes:
            if node.op == "placeholder":
                values[node] = outside.double() if outside.is_floating_point() else outside
            else:
                values[node] = self._computed(node, values)
            if moved is not None and node in self._inputs:
                values[node] = self.moved_at(node, values[node], self._inputs[node] == moved)
        return values

    def moved_at(self, node: fx.Node, value: object, mask: Array) -> Tensor:
        """A value of `node` with other elements where a row's `mask` (n,) says."""
        if not isinstance(value, Tensor):
            raise CallError(f"{self.describe(node)} gives no tensor")
        rows = self.layouts[node]
        wide = torch.from_numpy(mask).expand(self.batch, -1)
        return _where(rows.full(wide), _other(value, rows), value)

    def compute(self, node: fx.Node, values: dict[fx.Node, object]) -> object:
        """The value of one node, from those of its arguments."""
        return self._trace.compute(node, values)

    def _computed(self, node: fx.Node, values: dict[fx.Node, object]) -> object:
        try:
            return self.compute(node, values)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            line = str(error).splitlines()[0][:200]
            raise CallError(f"{self.describe(node)} cannot be run in float64: {line}") from error

    @cached_property
    def values(self) -> dict[fx.Node, object]:
        """Every node's value for `x`."""
        with torch.no_grad():
            values = self.evaluate(self.x)
            self._refuse_random(values)
        return values

    @cached_property
    def layouts(self) -> dict[fx.Node, Rows]:
        """The rows of every node that has one value and a batch axis."""
        return {
            node: parts[0]
            for node, parts in self._layouts.items()
            if isinstance(self.values[node], Tensor) and parts[0]
        }

    @cached_property
    def _layouts(self) -> dict[fx.Node, list[Rows | None]]:
        """The rows of each part of every node's value."""
        x = self.x.clone()
        x[1] = self.draw(7)[1] if x.is_floating_point() else x.flip(0)[1]
        with torch.no_grad():
            moved = self.evaluate(x)
        return {
            node: [
                self._layout(node, part, _changed(part, other))
                for part, other in zip(_parts(value), _parts(moved[node]), strict=True)
            ]
            for node, value in self.values.items()
        }

    def _layout(self, node: fx.Node, value: Tensor, changed: Tensor) -> Rows | None:
        shape = tuple(value.shape)
        candidates = [
            Rows(shape, axis, self.batch, is_outer)
            for axis, size in enumerate(shape)
            if size and size % self.batch == 0
            for is_outer in ((True, False) if size > self.batch else (True,))
        ]
        candidates.sort(key=lambda r: r.inner)
        if not changed.any():
            return candidates[0] if candidates else None
        for rows in candidates:
            hit = rows.flat(changed).any(dim=1)
            if int(hit.sum()) == 1 and bool(hit[1]):
                return rows
        raise CallError(
            f"rows of the batch meet at {self.describe(node)}: what one sequence gives "
            "would depend on its neighbours"
        )

    def rows(self, node: fx.Node) -> Array | None:
        """(B, n) of a node's value, float64; None if it is not one value with a batch."""
        if node not in self.layouts:
            return None
        value = self.values[node]
        return self.layouts[node].flat(value).numpy() if isinstance(value, Tensor) else None

    @cached_property
    def times(self) -> dict[fx.Node, list[Array]]:
        """For each part of each node's value, the time of every element of a row: (n,) int64."""
        found = {
            node: [np.full(self._width(p, r), CONSTANT) for p, r in self._by_part(node, value)]
            for node, value in self.values.items()
        }
        for seed in (1, 2):
            x, other = (self.x, self.draw(11)) if seed == 1 else (self.draw(2), self.draw(12))
            with torch.no_grad():
                base = self.values if seed == 1 else self.evaluate(x)
                for step in range(self.steps):
                    moved = x.clone()
                    moved[:, step] = other[:, step]
                    self._mark(found, base, self.evaluate(moved, step), step)
        for node in self._steps_of:
            self._set_known(found, node)
        return found

    def _mark(
        self,
        found: dict[fx.Node, list[Array]],
        base: dict[fx.Node, object],
        moved: dict[fx.Node, object],
        step: int,
    ) -> None:
        for node in self.nodes:
            for i, (a, b) in enumerate(zip(_parts(base[node]), _parts(moved[node]), strict=True)):
                found[node][i][_row_mask(self._layouts[node][i], _changed(a, b))] = step

    def changed(self, node: fx.Node, value: object) -> Array:
        """Which elements of a row of `node` differ in `value`; of all parts, one after another."""
        return np.concatenate(self._masks(node, value))

    def _masks(self, node: fx.Node, value: object) -> list[Array]:
        return [
            _row_mask(rows, _changed(part, other))
            for (part, rows), other in zip(
                self._by_part(node, self.values[node]), _parts(value), strict=True
            )
        ]

    def alike(self, rows: Array | None, among: Collection[fx.Node] | None = None) -> list[fx.Node]:
        """The nodes whose value has these rows (B, n), up to the rounding of float64.

        Args:
            rows: None: there are none.
            among: the nodes in question; None: all that depend on x.
        """
        if rows is None:
            return []
        allowed = SAME * max(1.0, float(np.abs(rows).max()))
        found = []
        for node in self.nodes:
            asked = self.classes(node) if among is None else node in among
            mine = self.rows(node) if asked else None
            if mine is None or (mine.shape, mine.dtype) != (rows.shape, rows.dtype):
                continue
            if np.abs(mine - rows).max() <= allowed:
                found.append(node)
        return found

    def describe(self, node: fx.Node) -> str:
        """The operation of a node and where it stands in the module, in words."""
        return describe_operation(self._module, self.outside(self.x), node)

    def _by_part(self, node: fx.Node, value: object) -> list[tuple[Tensor, Rows | None]]:
        return list(zip(_parts(value), self._layouts[node], strict=True))

    def _width(self, part: Tensor, rows: Rows | None) -> int:
        return part.numel() // self.batch if rows else part.numel()

    def classes(self, node: fx.Node) -> set[int]:
        """The times of a node's elements, without those that are constant."""
        return {int(t) for part in self.times[node] for t in np.unique(part)} - {CONSTANT}

    def is_whole(self, node: fx.Node, time: int) -> bool:
        """Whether a node is one value with a batch, all of whose moving elements have this time."""
        return node in self.layouts and self.classes(node) == {time}

    def same(self, node: fx.Node, time: int) -> list[fx.Node]:
        """The nodes with the very value of `node`, a whole one of this time, by computation."""
        return self._by_value[time, self._bytes(node)]

    @cached_property
    def _by_value(self) -> dict[tuple[int, bytes], list[fx.Node]]:
        found: dict[tuple[int, bytes], list[fx.Node]] = {}
        for node in self.nodes:
            times = self.classes(node)
            if node in self.layouts and len(times) == 1:
                found.setdefault((times.pop(), self._bytes(node)), []).append(node)
        return found

    def _bytes(self, node: fx.Node) -> bytes:
        rows = self.rows(node)
        return b"" if rows is None else rows.tobytes()

    def reached(self, source: fx.Node, time: int, user: fx.Node) -> set[int]:
        """The times of what changes in `user` if the elements of this time change in `source`."""
        mine, theirs = self.classes(source), self.classes(user)
        if len(mine) == 1 and len(theirs) == 1:
            return theirs
        changed = self.compute(user, self.values | {source: self._moved(source, time)})
        hit: set[int] = set()
        for times, mask in zip(self.times[user], self._masks(user, changed), strict=True):
            hit |= {int(t) for t in np.unique(times[mask])}
        return hit - {CONSTANT}

    def _moved(self, node: fx.Node, time: int) -> object:
        value = self.values[node]
        moved = []
        for times, (part, rows) in zip(self.times[node], self._by_part(node, value), strict=True):
            mask = torch.from_numpy(times == time)
            wide = mask.expand(self.batch, -1)
            at = rows.full(wide) if rows else mask.reshape(part.shape)
            moved.append(_where(at, _other(part, rows), part))
        if isinstance(value, Tensor):
            return moved[0]
        return type(value)(moved)  # type: ignore[call-arg]


def descendants(graph: Unrolled, node: fx.Node) -> set[fx.Node]:
    """A node and all that is made of it."""
    found = {node}
    for n in graph.nodes[graph.order[node] :]:
        if any(a in found for a in n.all_input_nodes):
            found.add(n)
    return found


def leaves(node: fx.Node) -> list[object]:
    """All arguments of a node, flat."""
    return tree_flatten((node.args, dict(node.kwargs)))[0]


def walk(
    pairs: list[tuple[fx.Node, fx.Node]],
    stop: Callable[[fx.Node, fx.Node, fx.Node, int], bool] = lambda a, b, user, leaf: False,
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs of nodes that correspond: from `pairs` back through arguments, as long as both sides
    are the same operation. `stop(a, b, user of b, its leaf)` ends a path before (a, b).
    """
    seen = set(pairs)
    stack = list(pairs)
    while stack:
        a, b = stack.pop()
        if a.target != b.target or a.op != b.op:
            continue
        yield a, b
        ours, theirs = leaves(a), leaves(b)
        if len(ours) != len(theirs):
            continue
        for i, (c, d) in enumerate(zip(ours, theirs, strict=True)):
            if not isinstance(c, fx.Node) or not isinstance(d, fx.Node):
                continue
            if c is not d and (c, d) not in seen and not stop(c, d, b, i):
                seen.add((c, d))
                stack.append((c, d))


def _one(returned: object) -> Tensor:
    if not isinstance(returned, Tensor):
        raise CallError(f"the module returned {type(returned).__name__}, expected a tensor")
    return returned


def _parts(value: object) -> list[Tensor]:
    """The tensors of a value: itself, or of an operation with several results."""
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, tuple | list) else []


def _row_mask(rows: Rows | None, changed: Tensor) -> Array:
    """Which elements of a row changed in any row."""
    flat = rows.flat(changed).any(dim=0) if rows else changed.reshape(-1)
    found: Array = flat.numpy()
    return found


def _where(mask: Tensor, other: Tensor, value: Tensor) -> Tensor:
    """`other` where the mask says, laid in memory as `value` is: a sigmoid of single elements and
    one of eight together round differently.
    """
    found = torch.where(mask, other, value)
    if value.is_contiguous() or 0 in value.stride() or value.numel() == 0:
        return found
    alike = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    storage = alike.untyped_storage().nbytes() // alike.element_size()
    if storage < value.numel():  # elements share their memory
        return found
    return alike.copy_(found)


def _other(part: Tensor, rows: Rows | None) -> Tensor:
    """A value of the same kind that differs, if not in every row."""
    if part.is_floating_point():
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(part.shape, generator=generator, dtype=part.dtype)
        return part + noise * (part.abs() + 1)
    if part.dtype is torch.bool:
        return ~part
    return part.flip(rows.axis) if rows else part + 1


def _changed(a: Tensor, b: Tensor) -> Tensor:
    same = a == b
    return ~(same | (a.isnan() & b.isnan())) if a.is_floating_point() else ~same


def _choose_batch(module: nn.Module, x: Tensor, steps: int) -> int:
    tensors = (*module.parameters(), *module.buffers())
    sizes = {n for tensor in tensors for n in tensor.shape} | set(x.shape[2:]) | {steps}
    found = next((p for p in PRIMES if all(n % p for n in sizes)), None)
    if found is None:
        raise CallError("its sizes leave no batch size to tell the batch by")
    return found
