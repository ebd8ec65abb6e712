"""Values of earlier steps taken by a shift: causal convolutions, token shifts, differences.

Rules
- A sequence is a value with an axis of K elements whose element at step t is made of steps up to t.
- A shift is what lies between sequences and the next sequence made of them whose element at t
  depends on elements t - r .. t of the former, found by changing one step of them at a time: a
  padding, a convolution and the cut of its tail are one, whatever they are spelled with.
- Its state is a register of the last r elements. The step evaluates the operations themselves, as
  the module does over r + 1 steps, on the register and the new element, and takes the last.
- The register starts from the constant that gives what the module gives in its first steps, zeros
  or what it pads with. Where there is none, the steps are counted: while there are fewer than r of
  them, the operations are evaluated on as many as there are.
- From then on, what the shift gives at step t is of time t, as an input is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from export.errors import CausalityError
from export.streaming.copying import Copy
from export.streaming.pooling import KINDS, WINDOWED, Part, Pool
from export.streaming.unrolled import SAME, Array, Rows, Unrolled, leaves

aten = torch.ops.aten
LONGEST = 128  # steps that a shift may reach back; the module is traced over as many
MOST_COUNTED = 8  # steps of a register that starts from no constant: a graph for each
MANY = 64  # nodes: more are a loop, whose steps are told by their times
WINDOWS = {
    aten.constant_pad_nd.default,
    aten.unfold.default,
    aten.avg_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.roll.default,
}


FILLED: dict[object, float] = {  # made of a value's shape alone
    aten.zeros_like.default: 0.0,
    aten.ones_like.default: 1.0,
    aten.new_zeros.default: 0.0,
    aten.new_ones.default: 1.0,
}


@dataclass(frozen=True)
class Shift:
    """In the unrolled graph: `exit` is made of the last `reach` steps of `sources`."""

    exit: fx.Node
    axis: int  # of a row of it: the steps
    sources: Mapping[fx.Node, int]  # -> its axis
    inner: frozenset[fx.Node]  # between them
    reach: int

    @property
    def nodes(self) -> frozenset[fx.Node]:
        """All in which steps meet."""
        return self.inner | {self.exit}


def _made(graph: Unrolled) -> set[fx.Node]:
    """What is made of elements of x."""
    found = {graph.placeholder}
    for n in graph.nodes:
        if n.target not in FILLED and any(a in found for a in n.all_input_nodes):
            found.add(n)
    return found


def steps_needed(unrolled: Unrolled) -> int:
    """How many steps show how far back a window of the graph reaches, by the numbers in it."""
    made = _made(unrolled)
    reaches = [n for node in unrolled.nodes if node in made for n in _numbers(unrolled, node)]
    return max((n + 2 for n in reaches if n <= LONGEST), default=0)


def _numbers(unrolled: Unrolled, node: fx.Node) -> list[int]:
    """Those by which an operation may reach back."""
    numbers = [n for n in leaves(node) if isinstance(n, int)]
    if node.target is aten.convolution.default:
        weight, dilation = leaves(node)[1], node.args[5]
        if not isinstance(weight, fx.Node) or not isinstance(dilation, Sequence):
            return []
        kernel = _tensor(unrolled.values[weight]).shape[2:]
        return [(k - 1) * int(str(d)) for k, d in zip(kernel, dilation, strict=True)]
    if node.target in WINDOWS:
        return [abs(n) for n in numbers]
    if node.target is aten.slice.Tensor:
        before = _tensor(unrolled.values[node.all_input_nodes[0]])
        axis, *ends = numbers or [0]
        return [abs(n) for n in ends if before.shape[axis] == unrolled.steps]
    return []


def find_shifts(unrolled: Unrolled) -> list[Shift] | None:
    """The shifts, in the order of computation; None: more steps must be looked at."""
    search = _Search(unrolled)
    for node in unrolled.nodes:
        search.visit(node)
    return None if search.is_short and 2 * unrolled.steps <= LONGEST + 2 else search.shifts


class _Search:
    def __init__(self, unrolled: Unrolled) -> None:
        self._unrolled = unrolled
        self._made = _made(unrolled)
        self._axes: dict[fx.Node, int] = {unrolled.placeholder: 0}  # of the sequences
        self.shifts: list[Shift] = []
        self.is_short = False

    def visit(self, node: fx.Node) -> None:
        """Find out whether a node is a sequence, and shifted."""
        unrolled = self._unrolled
        rows = unrolled.layouts.get(node) if node in self._made else None
        if rows is None or unrolled.steps not in rows.rest or node in self._axes:
            return
        sources, inner = _region(unrolled, node, self._axes, self._made)
        if len(inner) > MANY:
            axis = self._axis_by_times(node, rows)
            if axis is not None:
                self._axes[node] = axis
            return
        masks = [self._changed(node, sources, inner, step) for step in range(unrolled.steps)]
        for axis, size in enumerate(rows.rest):
            if size != unrolled.steps:
                continue
            reach = _reach(masks, rows.rest, axis)
            if reach is not None:
                self._axes[node] = axis
                self._note(node, axis, sources, inner, reach)
                return

    def _note(
        self,
        node: fx.Node,
        axis: int,
        sources: Sequence[fx.Node],
        inner: Sequence[fx.Node],
        reach: int,
    ) -> None:
        unrolled = self._unrolled
        if reach == unrolled.steps - 1:
            spread = {n.target for n in (*inner, node)}
            self.is_short |= not spread & KINDS.keys() and aten.select.int not in spread
            return
        positions = _positions(unrolled.layouts[node].rest, axis)
        if not reach:
            unrolled.take_as_sequence(node, positions)
        else:
            axes = {source: self._axes[source] for source in sources}
            self.shifts.append(Shift(node, axis, axes, frozenset(inner), reach))
            unrolled.take_as_input(node, positions)

    def _axis_by_times(self, node: fx.Node, rows: Rows) -> int | None:
        times = self._unrolled.times[node][0]
        for axis, size in enumerate(rows.rest):
            if size == self._unrolled.steps:
                positions = _positions(rows.rest, axis)
                if all(times[positions == t].max() == t for t in range(size)):
                    return axis
        return None

    def _changed(
        self, node: fx.Node, sources: Sequence[fx.Node], inner: Sequence[fx.Node], step: int
    ) -> Array:
        """Which elements of a row of `node` depend on this step of its sources."""
        unrolled = self._unrolled
        values = dict(unrolled.values)
        for source in sources:
            at = _positions(unrolled.layouts[source].rest, self._axes[source]) == step
            values[source] = unrolled.moved_at(source, values[source], at)
        for n in (*inner, node):
            values[n] = unrolled.compute(n, values)
        return unrolled.changed(node, values[node])


def _region(
    unrolled: Unrolled, node: fx.Node, sources: Mapping[fx.Node, object], made: set[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node]]:
    """What `node` is made of: which of `sources`, and the nodes between, in order."""
    ends, inner, stack = set[fx.Node](), set[fx.Node](), [node]
    while stack:
        for n in stack.pop().all_input_nodes:
            if n in sources:
                ends.add(n)
            elif n in made and n not in inner:
                inner.add(n)
                stack.append(n)
    order = unrolled.order.__getitem__
    return sorted(ends, key=order), sorted(inner, key=order)


def _positions(rest: Sequence[int], axis: int) -> Array:
    """(n,) for each element of a row, where it lies on `axis`."""
    shape = [-1 if i == axis else 1 for i in range(len(rest))]
    found: Array = np.broadcast_to(np.arange(rest[axis]).reshape(shape), rest).reshape(-1)
    return found


def _reach(masks: Sequence[Array], rest: Sequence[int], axis: int) -> int | None:
    """How far back elements on `axis` depend on a source; None: not in the same way each, or ahead.

    Args:
        masks: for each step of the source, what changes with it.
    """
    steps, positions = len(masks), _positions(rest, axis)
    hit = [{int(p) for p in np.unique(positions[mask])} for mask in masks]
    offsets = {p - 1 for p in hit[1]} if steps > 1 else set()
    if not offsets or any(p < step for step, found in enumerate(hit) for p in found):
        return None
    for step in range(1, steps):
        if not {step + d for d in offsets if step + d < steps} <= hit[step]:
            return None  # memory that is written step by step, of which a part is written
    return max(p - step for step, found in enumerate(hit) for p in found)


def place_shifts(shifts: Sequence[Shift], unrolled: Unrolled, single: Unrolled) -> "list[Register]":
    """The same in the graph of one step, where what they give counts as an input from then on.

    Raises:
        CausalityError: one is not there, or its first steps are made in another way.
    """
    short = {1: single}
    found: list[Register] = []
    for shift in shifts:
        for steps in range(1, shift.reach + 2):
            is_counted = steps <= shift.reach <= MOST_COUNTED
            if steps not in short and (steps == shift.reach + 1 or is_counted):
                short[steps] = unrolled.shortened(steps)
        register = Register(shift, unrolled, short)
        single.take_as_input(register.node, np.zeros(register.size, dtype=int))
        found.append(register)
    return found


class _Region:
    """A shift in the trace over fewer steps, to be evaluated and copied."""

    def __init__(self, shift: Shift, unrolled: Unrolled, short: Unrolled) -> None:
        self.short, self._steps = short, short.steps
        made = _made(short)
        aliases: dict[fx.Node, tuple[int, int]] = {}  # -> which source, its axis of steps
        for i, (source, axis) in enumerate(shift.sources.items()):
            rest = unrolled.layouts[source].rest
            for node in short.alike(_first(unrolled, source, axis, self._steps), made):
                its = _axis_like(short.layouts[node].rest, rest, axis, self._steps)
                if its is not None:
                    aliases.setdefault(node, (i, its))
        given = _first(unrolled, shift.exit, shift.axis, self._steps)
        found = None
        for node in short.alike(given, made):
            if node.target != shift.exit.target:
                continue
            before = {n: alias for n, alias in aliases.items() if n is not node}
            sources, inner = _region(short, node, before, made)
            if sources and short.placeholder not in inner:
                found = node, inner, {s: aliases[s] for s in sources}
                break
        if found is None:
            raise CausalityError(
                f"{unrolled.describe(shift.exit)} takes earlier steps, but is not made in the same "
                f"way over {self._steps} steps{WINDOWED}"
            )
        self.exit, self.inner, self.aliases = found
        rest = short.layouts[self.exit].rest
        self.axis = (
            _axis_like(rest, unrolled.layouts[shift.exit].rest, shift.axis, self._steps) or 0
        )

    def last(self, sources: Sequence[Array]) -> Array:
        """(B, n) float64 of the last step, from (B, steps, size) of each source."""
        short = self.short
        values = dict(short.values)
        for node, (i, axis) in self.aliases.items():
            rows = short.layouts[node]
            size = [n for a, n in enumerate(rows.rest) if a != axis]
            value = np.moveaxis(sources[i].reshape(-1, self._steps, *size), 1, axis + 1)
            whole = torch.from_numpy(np.ascontiguousarray(value))
            flat = whole.reshape(short.batch, -1)
            values[node] = rows.full(flat).to(_tensor(values[node]).dtype)
        for n in (*self.inner, self.exit):
            values[n] = short.compute(n, values)
        rows = short.layouts[self.exit]
        given = rows.flat(_tensor(values[self.exit])).double().numpy()
        found: Array = given[:, _positions(rows.rest, self.axis) == self._steps - 1]
        return found

    def constants(self, size: int) -> list[Array]:
        """(size,) of each: what the operations take beside their sources, and could pad with."""
        found = [np.zeros(size)]
        for node in (*self.inner, self.exit):
            for value in leaves(node):
                if isinstance(value, float) and np.isfinite(value):
                    found.append(np.full(size, value))
                rows = self.short.rows(value) if isinstance(value, fx.Node) else None
                if rows is not None and rows.shape[1] == size and (rows == rows[:1]).all():
                    found.append(rows[0].astype(float))
        return found


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise CausalityError(f"a shift over time gives {type(value).__name__}, expected a tensor")
    return value


def _first(unrolled: Unrolled, node: fx.Node, axis: int, steps: int) -> Array | None:
    """(B, n) of the first `steps` of a sequence."""
    rows = unrolled.rows(node)
    positions = _positions(unrolled.layouts[node].rest, axis)
    return None if rows is None else rows[:, positions < steps]


def _axis_like(rest: Sequence[int], wanted: Sequence[int], axis: int, steps: int) -> int | None:
    """The axis of steps in a row that is flat the same as `wanted`, but for its steps."""
    before = int(np.prod(wanted[:axis]))
    found = [a for a, n in enumerate(rest) if n == steps and int(np.prod(rest[:a])) == before]
    return found[0] if found else None


class _RegionGraph(Copy):
    """Writes `graph(source (B, steps, size), ...) -> (B, n)`, of the last step."""

    def __init__(self, region: _Region) -> None:
        super().__init__(region.short)
        self._region = region

    def write(self, sources: int) -> fx.GraphModule:
        """The graph of so many sources. The weights in it are the module's own."""
        region, steps = self._region, self._source.steps
        given = [self._graph.placeholder(f"v{i}") for i in range(sources)]
        self._size = self._call(aten.sym_size.int, given[0], 0)
        env: dict[fx.Node, fx.Node] = {}
        for node, (i, axis) in region.aliases.items():
            rows = self._source.layouts[node]
            size = [n for a, n in enumerate(rows.rest) if a != axis]
            value = self._call(aten.reshape.default, given[i], [-1, steps, *size])
            value = self._call(aten.movedim.int, value, 1, axis + 1) if axis else value
            value = self._shaped(value, rows)
            dtype = _tensor(self._source.values[node]).dtype
            if not dtype.is_floating_point:
                value = self._graph.call_function(aten._to_copy.default, (value,), {"dtype": dtype})
            env[node] = value
        wanted = {region.exit, *region.inner}
        for node in reversed(self._source.nodes):
            if node in wanted and node not in env and node.target not in FILLED:
                wanted |= {n for n in node.all_input_nodes if n not in env}
        for node in self._source.nodes:
            if node in wanted and node not in env:
                env[node] = self._filled(node) or self.copy(node, env, {})
        rows = self._source.layouts[region.exit]
        value = self._flat(env[region.exit], rows, rows.rest)
        value = self._call(aten.select.int, value, region.axis + 1, steps - 1)
        size = [int(np.prod(rows.rest)) // steps]
        self._graph.output(self._call(aten.reshape.default, value, [-1, *size]))
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._root, self._graph)

    def _filled(self, node: fx.Node) -> fx.Node | None:
        if node.target not in FILLED:
            return None
        value = _tensor(self._source.values[node])
        sizes = [self._sized(n) for n in value.shape]
        filled = self._call(aten.full.default, sizes, FILLED[node.target])
        if not value.is_floating_point():
            filled.kwargs = {"dtype": value.dtype}
        return filled


class Register(Pool):
    """A shift in the graph of one step: `node` is what it gives there."""

    def __init__(self, shift: Shift, unrolled: Unrolled, short: Mapping[int, Unrolled]) -> None:
        """Args:
        short: steps -> the trace over so many; 1 and `reach` + 1, and those between for counting.
        """
        self._reach = shift.reach
        first = _Region(shift, unrolled, short[1])
        super().__init__("shift", short[1], first.exit)
        nodes = {i: node for node, (i, _) in first.aliases.items()}
        self._sources = [nodes[i] for i in range(len(shift.sources))]
        self._source_rows = [short[1].layouts[n] for n in self._sources]
        self._sizes = [int(np.prod(rows.rest)) for rows in self._source_rows]
        regions = [_Region(shift, unrolled, short[shift.reach + 1])]
        self._start = _constant_start(shift, unrolled, regions[0])
        if self._start is None:
            if shift.reach > MOST_COUNTED:
                raise CausalityError(
                    f"{unrolled.describe(shift.exit)} reaches {shift.reach} steps back, and has no "
                    f"constant in the place of what is before the first{WINDOWED}"
                )
            between = [_Region(shift, unrolled, short[m]) for m in range(2, shift.reach + 1)]
            regions = [first, *between, *regions]
        graphs = [_RegionGraph(r).write(len(self._sources)) for r in regions]
        self._graphs = nn.ModuleList(graphs)

    @property
    def size(self) -> int:
        """Of a row of what it gives."""
        return self._size

    @property
    def parts(self) -> Sequence[Part]:
        starts: Sequence[float | Tensor] = self._start or [0.0] * len(self._sizes)
        past = [
            Part("past", self._reach * size, start)
            for size, start in zip(self._sizes, starts, strict=True)
        ]
        return past if self._start else [*past, Part("count", 1, 0.0)]

    @property
    def arguments(self) -> tuple[fx.Node, ...]:
        return tuple(self._sources)

    def forward(
        self, values: Sequence[Tensor], running: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        joined = []
        for value, rows, past, size in zip(
            values, self._source_rows, running, self._sizes, strict=False
        ):
            now = _flat(rows, value).to(past.dtype).unsqueeze(1)
            joined.append(torch.cat([past.reshape(-1, self._reach, size), now], dim=1))
        new = [v[:, 1:].flatten(1) for v in joined]
        given = self._graphs[-1](*joined)
        if self._start is None:
            count = running[-1]
            for m in reversed(range(self._reach)):
                fewer = self._graphs[m](*(v[:, self._reach - m :] for v in joined))
                given = torch.where(count <= m, fewer, given)
            new.append((count + 1).clamp(max=self._reach))
        return _full(self._rows, given), new


def _constant_start(shift: Shift, unrolled: Unrolled, region: _Region) -> list[Tensor] | None:
    """(reach * size,) of each source: in the place of what is before the first step; None: none."""
    sources = [
        _by_step(unrolled, source, axis, shift.reach + 1) for source, axis in shift.sources.items()
    ]
    wanted = _by_step(unrolled, shift.exit, shift.axis, shift.reach + 1)
    allowed = SAME * max(1.0, float(np.abs(wanted).max()))
    for i, constant in enumerate(region.constants(sources[0].shape[2])):
        alike = all(s.shape[2] == len(constant) for s in sources)
        if i and not alike:
            continue
        starts = [
            np.tile(constant if alike else np.zeros(s.shape[2]), shift.reach) for s in sources
        ]
        if all(
            np.abs(region.last(_after(starts, sources, m)) - wanted[:, m]).max() <= allowed
            for m in range(shift.reach + 1)
        ):
            return [torch.from_numpy(start).float() for start in starts]
    return None


def _after(starts: Sequence[Array], sources: Sequence[Array], step: int) -> list[Array]:
    """(B, reach + 1, size) of each source up to `step`, with what it starts from before."""
    found = []
    for start, source in zip(starts, sources, strict=True):
        before = np.broadcast_to(start.reshape(-1, source.shape[2]), source[:, 1:].shape)
        found.append(np.concatenate([before[:, step:], source[:, : step + 1]], axis=1))
    return found


def _by_step(unrolled: Unrolled, node: fx.Node, axis: int, steps: int) -> Array:
    """(B, steps, size) of a sequence."""
    rows, rest = unrolled.rows(node), unrolled.layouts[node].rest
    if rows is None:
        raise CausalityError(f"{unrolled.describe(node)} has no rows")
    moved = np.moveaxis(rows.reshape(-1, *rest), axis + 1, 1)[:, :steps]
    found: Array = moved.reshape(len(rows), steps, -1)
    return found


def _flat(rows: Rows, value: Tensor) -> Tensor:
    """(B, n) of a value in the graph of one step."""
    if rows.inner > 1:
        pair = (-1, rows.inner) if rows.is_outer else (rows.inner, -1)
        value = value.reshape(*value.shape[: rows.axis], *pair, *value.shape[rows.axis + 1 :])
    return value.movedim(rows.batch_axis, 0).reshape(-1, int(np.prod(rows.rest)))


def _full(rows: Rows, flat: Tensor) -> Tensor:
    """The value in the graph of one step whose rows are (B, n)."""
    value = flat.reshape(-1, *rows.rest).movedim(0, rows.batch_axis)
    return value.flatten(rows.axis, rows.axis + 1) if rows.inner > 1 else value
