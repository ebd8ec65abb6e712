"""The smallest set of values that carries everything over the boundary of two steps.

Rules
- A vertex is (node, time): the elements of a node's value with this time. An edge says that they
  are used for elements of another node, tested on this one operation.
- What crosses the boundary of step t and the next is every edge from time t to time t + 1. An edge
  over more than one step remembers what a fixed number of values cannot, unless it is pooled.
- The state is a vertex cut of least size within time t, between where the past and x enter and
  what crosses: h of an LSTM, not the four products in which the next step uses it. It is cut only
  where the first step takes its start (h, not the output gate), and there as early as it can be.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from torch import fx

from export.errors import CallError
from export.streaming.unrolled import CONSTANT, Unrolled

END = "end"  # the sink of a flow
UNBOUNDED = 1 << 40


@dataclass(frozen=True)
class Edge:
    """The elements of `source` of time `start` are used for elements of `user` of time `stop`."""

    source: fx.Node
    start: int
    user: fx.Node
    stop: int


def find_edges(unrolled: Unrolled) -> list[Edge]:
    """All edges between values that depend on x, in the order of computation."""
    found = []
    for user in unrolled.nodes:
        if not unrolled.classes(user):
            continue
        for source in dict.fromkeys(user.all_input_nodes):
            for start in sorted(unrolled.classes(source)):
                stops = unrolled.reached(source, start, user)
                found += [Edge(source, start, user, stop) for stop in sorted(stops)]
    return found


class Boundary:
    """What crosses from step `time` to the next, and the least state that it can be made of."""

    def __init__(
        self,
        unrolled: Unrolled,
        edges: Collection[Edge],
        time: int,
        pooled: Collection[fx.Node],
        shifted: Collection[fx.Node] = (),
    ) -> None:
        """Args:
        pooled: the nodes of poolings and shifts over time, whose memory is found otherwise.
        shifted: those that give what is shifted, and count as inputs.
        """
        self._unrolled, self._time = unrolled, time
        edges = [e for e in edges if e.user not in pooled]
        self.crossing = [e for e in edges if e.start == time and e.stop > time]
        self._inner = [e for e in edges if e.start == e.stop == time]
        self._entries = {e.user for e in edges if e.start < time == e.stop}
        inputs = (unrolled.placeholder, *shifted)
        self._entries |= {n for n in inputs if time in unrolled.classes(n)}

    def state(self, allowed: Collection[fx.Node], is_late: bool = False) -> list[fx.Node]:
        """The nodes whose values are the state after this step, in the order of computation.

        Args:
            allowed: where it may be cut.
            is_late: of several least cuts, take the last instead of the first.
        Raises:
            CallError: no whole values separate the past from what crosses.
        """
        ends = {e.source for e in self.crossing}
        if not ends:
            return []
        cut = self._least_cut(ends, allowed, is_late)
        order = self._unrolled.order
        found = dict.fromkeys(self._unrolled.same(node, self._time)[0] for node in cut)
        return sorted(found, key=order.__getitem__)

    def _least_cut(
        self, ends: Collection[fx.Node], allowed: Collection[fx.Node], is_late: bool
    ) -> list[fx.Node]:
        flow = _Flow()
        vertices = {n for e in self._inner for n in (e.source, e.user)} | set(ends) | self._entries
        for node in vertices:
            flow.add((node, 0), (node, 1), self._size(node) if node in allowed else UNBOUNDED)
        for edge in self._inner:
            flow.add((edge.source, 1), (edge.user, 0), UNBOUNDED)
        for node in self._entries:
            flow.add("begin", (node, 0), UNBOUNDED)
        for node in ends:
            flow.add((node, 1), END, UNBOUNDED)
        if flow.push("begin", END) >= UNBOUNDED:
            users = dict.fromkeys(self._unrolled.describe(e.user) for e in self.crossing)
            raise CallError(
                f"what {' and '.join(users)} takes of the step before has no start that is the "
                "same for every sequence, or is no value of its own; export the step alone "
                "(`x, state -> y, state`)"
            )
        if is_late:
            late = flow.reaching(END)
            return [n for n in vertices if (n, 1) in late and (n, 0) not in late]
        early = flow.reached("begin")
        return [n for n in vertices if (n, 0) in early and (n, 1) not in early]

    def _size(self, node: fx.Node) -> int:
        if not self._unrolled.is_whole(node, self._time):
            return UNBOUNDED
        return int((self._unrolled.times[node][0] != CONSTANT).sum())


class _Flow:
    """The greatest flow (Edmonds & Karp 1972) through edges with capacities."""

    def __init__(self) -> None:
        self._left: dict[object, dict[object, int]] = {}

    def add(self, a: object, b: object, capacity: int) -> None:
        forward = self._left.setdefault(a, {})
        forward[b] = forward.get(b, 0) + capacity
        self._left.setdefault(b, {}).setdefault(a, 0)

    def push(self, begin: object, end: object) -> int:
        """Send as much as can be, and say how much it was."""
        total = 0
        while total < UNBOUNDED:
            path = self._path(begin, end)
            if not path:
                break
            amount = min(self._left[a][b] for a, b in path)
            for a, b in path:
                self._left[a][b] -= amount
                self._left[b][a] += amount
            total += amount
        return total

    def _path(self, begin: object, end: object) -> list[tuple[object, object]]:
        came: dict[object, object] = {begin: begin}
        queue = deque([begin])
        while queue and end not in came:
            a = queue.popleft()
            for b, left in self._left.get(a, {}).items():
                if left > 0 and b not in came:
                    came[b] = a
                    queue.append(b)
        if end not in came:
            return []
        path = [(came[end], end)]
        while path[-1][0] != begin:
            path.append((came[path[-1][0]], path[-1][0]))
        return path

    def reached(self, begin: object) -> set[object]:
        """All to which more could still flow from `begin`."""
        found, queue = {begin}, deque([begin])
        while queue:
            a = queue.popleft()
            for b, left in self._left.get(a, {}).items():
                if left > 0 and b not in found:
                    found.add(b)
                    queue.append(b)
        return found

    def reaching(self, end: object) -> set[object]:
        """All from which more could still flow to `end`."""
        found, queue = {end}, deque([end])
        while queue:
            b = queue.popleft()
            for a in self._left.get(b, {}):
                if self._left[a][b] > 0 and a not in found:
                    found.add(a)
                    queue.append(a)
        return found
