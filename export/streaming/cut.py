"""States of loops written by hand, lifted out of `forward(X) -> Y`: the graph cut between steps.

The module is traced over a few steps (`unrolled`), and what goes on from one step to the next is
found there (`boundary`, `pooling`). The step itself is the trace over one step alone: in it, what
the first step starts from (zeros or parameters, made inside forward) becomes an input, and what
goes on becomes an output. Where the first step takes its start is found by following the operations
of the second step and of the first side by side: where the second takes the state.

Nothing of this is believed: the step is held against the module by itself before it counts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from export.errors import CallError, CausalityError
from export.reference import StateSpec
from export.streaming.boundary import Boundary, find_edges
from export.streaming.counting import find_counts, find_position
from export.streaming.first_step import FirstApart, find_states
from export.streaming.pooling import WINDOWED, Pool, Pooling, find_poolings
from export.streaming.shifting import Shift, find_shifts, place_shifts, steps_needed
from export.streaming.single_step import Carried, SingleStep
from export.streaming.unrolled import Unrolled, descendants, walk

STEPS = 4  # two boundaries whose steps on both sides are neither the first nor the last
Place = tuple[fx.Node, int]  # a user, and which of its leaves


class Cut:
    """`graph(x (B, 1, ...), *states) -> (y, *states')` of a module that hides its states."""

    def __init__(self, module: nn.Module, x: Tensor, time_axis: int, gives_all: bool) -> None:
        """Cut it.

        Args:
            module: in eval mode; X is its only argument. Not changed.
            x: (N, T, ...), an example.
            time_axis: of X as the module takes it.
            gives_all: it gives an output for every step, not for the last alone.
        Raises:
            CallError: it has no state of a fixed size, or its start was not found.
            CausalityError: it looks ahead, or over the sequence as a whole.
        """
        with torch.no_grad():
            unrolled, shifts = _unroll(module, x, time_axis)
            edges = find_edges(unrolled)
            shifted = {node for shift in shifts for node in shift.nodes}
            poolings = find_poolings(unrolled, edges, shifted)
            if gives_all:
                _refuse_looking_ahead(unrolled, poolings)
            pooled = {node for pooling in poolings for node in pooling.nodes}
            exits = [shift.exit for shift in shifts]
            boundaries = [Boundary(unrolled, edges, t, pooled | shifted, exits) for t in range(2)]
            single = unrolled.shortened(1)
            position = find_position(unrolled, single)
            self.position = unrolled.describe(position) if position else ""
            pools: list[Pool] = [*place_shifts(shifts, unrolled, single)]
            registers = len(pools)
            try:
                carried = _Match(unrolled, single, boundaries).carried()
            except CallError as error:
                if poolings or shifts:
                    raise
                third = Boundary(unrolled, edges, 2, pooled)
                self._take_first_apart(unrolled, single, [*boundaries, third], gives_all, error)
                return
            for pooling in poolings:
                taken = [p.node for p in pools[registers:]]
                pools.append(pooling.place(unrolled, single, taken))
        if not carried and not pools:
            raise CallError("nothing goes on from one step to the next: it has no state")
        named = _named(carried)
        self.specs = [StateSpec(name, state.shape) for name, state in named.items()]
        self.starts = {name: s.start.reshape(s.shape) for name, s in named.items()}
        parts = [(pool, self._add_parts(pool)) for pool in pools]
        counts = find_counts(unrolled, single)
        count = self._add("count", 1, 0.0) if counts else ""
        self.graph: nn.Module = SingleStep(single, named, parts, counts, count).write()

    def _take_first_apart(
        self,
        unrolled: Unrolled,
        single: Unrolled,
        boundaries: Sequence[Boundary],
        gives_all: bool,
        reason: CallError,
    ) -> None:
        """Its first step has no place for a state: it is another one than the next."""
        try:
            states = find_states(unrolled, single, boundaries)
        except CallError as error:
            raise reason from error
        twins = [single.alike(unrolled.rows(first)) for first, *_ in states]
        if not states or not all(twins):
            raise reason
        carried = []
        for first, *_ in twins:
            rows = single.layouts[first]
            carried.append(Carried(first, rows, torch.zeros(int(np.prod(rows.rest))), {}))
        named = _named(carried)
        # By identity: two states may be one value after the first step.
        by_carried = {id(c): state for c, state in zip(carried, states, strict=True)}
        ordered = {name: by_carried[id(c)] for name, c in named.items()}
        self.specs = [StateSpec(name, state.shape) for name, state in named.items()]
        self.starts = {name: s.start.reshape(s.shape) for name, s in named.items()}
        graph = FirstApart(unrolled, single, named, ordered, gives_all)
        self._add("count" if graph.is_counted else "begun", 1, 0.0)
        self.graph = graph

    def _add_parts(self, pool: Pool) -> list[str]:
        return [self._add(part.name, part.size, part.start) for part in pool.parts]

    def _add(self, wanted: str, size: int, start: float | Tensor) -> str:
        """Another state, under a name that is free."""
        candidates = (wanted, *(f"{wanted}{i}" for i in range(2, 1 << 20)))
        name = next(n for n in candidates if n not in self.starts)
        self.specs.append(StateSpec(name, (size,)))
        self.starts[name] = torch.as_tensor(start).float().expand(size).clone()
        return name


def _unroll(module: nn.Module, x: Tensor, time_axis: int) -> tuple[Unrolled, list[Shift]]:
    """The module over as many steps as show how far back its shifts reach, and these."""
    unrolled = Unrolled(module, x, STEPS, time_axis)
    while True:
        needed = steps_needed(unrolled)
        if needed > unrolled.steps:
            unrolled = Unrolled(module, x, needed, time_axis)
        shifts = find_shifts(unrolled)
        if shifts is not None:
            return unrolled, shifts
        unrolled = Unrolled(module, x, 2 * unrolled.steps, time_axis)


def _refuse_looking_ahead(unrolled: Unrolled, poolings: Sequence[Pooling]) -> None:
    rows = unrolled.layouts.get(unrolled.output)
    if rows is None or rows.rest[0] != unrolled.steps:
        raise CallError("its output has no axis of steps where X has it")
    times = unrolled.times[unrolled.output][0].reshape(unrolled.steps, -1)
    ahead = [t for t in range(unrolled.steps) if times[t].max() > t]
    if not ahead:
        return
    culprit = f"{unrolled.describe(poolings[0].operation)}" if poolings else "it"
    raise CausalityError(
        f"y of step {ahead[0]} depends on x of step {int(times[ahead[0]].max())}: "
        f"{culprit} looks ahead{WINDOWED}"
    )


class _Match:
    """The states at the first boundary, their starts, and both in the graph of one step."""

    def __init__(
        self, unrolled: Unrolled, single: Unrolled, boundaries: Sequence[Boundary]
    ) -> None:
        self._unrolled, self._single = unrolled, single
        self._states = self._first_states(*boundaries)
        self._aliases: dict[fx.Node, fx.Node] = {}
        for state in sorted(self._states, key=unrolled.order.__getitem__):
            made = descendants(unrolled, state)  # 0 + h is h: a sum of all h begins with that value
            for alias in unrolled.same(state, 0):
                if alias in made or alias not in self._aliases:
                    self._aliases[alias] = state
        self._starts = self._find_starts(boundaries[1])

    def _first_states(self, first: Boundary, second: Boundary) -> dict[fx.Node, fx.Node]:
        """The state after the first step -> the same after the second."""
        if len(first.crossing) != len(second.crossing):
            raise CallError(
                f"{len(first.crossing)} values go on from its first step and "
                f"{len(second.crossing)} from its second: it is no recurrence of one form"
            )
        pairs = [
            (b.source, a.source)
            for a, b in zip(first.crossing, second.crossing, strict=True)
            if a.user.target == b.user.target
        ]
        started: set[fx.Node] = set()  # what the second step takes where the first has a constant

        def note(a: fx.Node, b: fx.Node, user: fx.Node, leaf: int) -> bool:
            if self._unrolled.classes(a) == {0} and not self._unrolled.classes(b):
                started.add(a)
            return False

        earlier = dict(walk(pairs, note))
        later = second.state([a for a, b in earlier.items() if b in started])
        if not set(later) <= earlier.keys():
            raise CallError("its first step and its second are made of different operations")
        return {earlier[node]: node for node in later}

    def _find_starts(self, second: Boundary) -> dict[Place, tuple[fx.Node, fx.Node]]:
        """Where the first step takes a start -> what it is, and the state of the second there."""
        found: dict[Place, tuple[fx.Node, fx.Node]] = {}

        def stop(a: fx.Node, b: fx.Node, user: fx.Node, leaf: int) -> bool:
            if a in self._aliases:
                found[user, leaf] = b, a
            return a in self._aliases

        for _ in walk([(b, a) for a, b in self._states.items()], stop):
            continue
        return found

    def carried(self) -> list[Carried]:
        """The states in the graph of one step, in the order of computation."""
        nodes: dict[fx.Node, fx.Node] = {}
        for state in self._states:
            alike = self._single.alike(self._unrolled.rows(state))
            if not alike:
                raise CallError(
                    "a state is made only after the step's output, so that one step alone does "
                    "not show it; export the step alone (`x, state -> y, state`)"
                )
            # f * c + i * g is i * g where c starts from zero: the way to the value tells which.
            nodes[state] = max(alike, key=lambda n: sum(1 for _ in walk([(state, n)])))
        places = self._places(nodes)
        return [self._carried(state, nodes[state], places[state]) for state in self._states]

    def _places(self, nodes: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, dict[Place, fx.Node]]:
        """For each state, where the graph of one step takes its start -> the state used so."""
        places: dict[fx.Node, dict[Place, fx.Node]] = {state: {} for state in nodes}
        twins = {node: state for state, node in nodes.items()}

        def stop(a: fx.Node, b: fx.Node, user: fx.Node, leaf: int) -> bool:
            start = self._starts.get((twins[user], leaf))
            if start and start[0] is a:
                places[self._aliases[start[1]]][user, leaf] = start[1]
            return bool(start and start[0] is a)

        for a, b in walk(list(nodes.items()), stop):
            twins[b] = a
        return places

    def _carried(self, state: fx.Node, node: fx.Node, places: Mapping[Place, fx.Node]) -> Carried:
        starts = [start for start, alias in self._starts.values() if self._aliases[alias] is state]
        if not starts or not places:
            raise CallError("what a state starts from was not found in the first step")
        rows = self._single.layouts[node]
        values = [self._start(start, int(np.prod(rows.rest))) for start in starts]
        if any(not torch.equal(values[0], value) for value in values):
            raise CallError("a state starts from several values in the first step")
        injections = {place: self._unrolled.layouts[alias] for place, alias in places.items()}
        return Carried(node, rows, values[0].float(), injections)

    def _start(self, node: fx.Node, size: int) -> Tensor:
        """A row of what a state starts from."""
        if self._unrolled.classes(node):
            raise CallError("a state starts from a value that is made of the first input")
        rows, value = self._unrolled.rows(node), self._unrolled.values[node]
        if rows is not None and rows.shape[1] == size:
            if (rows != rows[:1]).any():
                raise CallError("a state starts from another value in each row, a random one")
            return torch.from_numpy(rows[0])
        if not isinstance(value, Tensor) or size % value.numel():
            raise CallError("a state starts from a value of another size")
        return value.reshape(-1).repeat(size // value.numel())


def _named(carried: Sequence[Carried]) -> dict[str, Carried]:
    """h and its c where h is made of c in the same step, else h; several are numbered."""
    groups: list[list[Carried]] = []  # (h, c) or (h,), in the order of h
    left = list(carried)
    while left:
        h = left.pop()
        made_of = _made_of(h.node)
        c = [s for s in left if s.node in made_of and s.shape == h.shape]
        if len(c) == 1:
            left.remove(c[0])
        groups.insert(0, [h, *c] if len(c) == 1 else [h])
    numbers = [""] if len(groups) == 1 else [str(i + 1) for i in range(len(groups))]
    return {
        letter + number: state
        for number, group in zip(numbers, groups, strict=True)
        for letter, state in zip("hc", group, strict=False)
    }


def _made_of(node: fx.Node) -> set[fx.Node]:
    """What a value is made of, a few operations before."""
    found, front = set[fx.Node](), {node}
    for _ in range(3):
        front = {n for user in front for n in user.all_input_nodes}
        found |= front
    return found
