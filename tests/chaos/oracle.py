"""What must be true after any chaos, told from what clients were told.

Rules
- Every reply 200 is noted, as the chunk that it answers: first step, rows sent, y received.
- A chunk whose reply never came, and for which a 409 later said that the session had moved past
  it, is in doubt: it was run once, or never. Only clients that share a session have such chunks;
  one alone sends its chunk again until it is answered.
- The history of a session is then a chain of chunks from step 0 to where the server says it
  stands, each beginning where the last one ended. Every acknowledged chunk is in it exactly once,
  chunks in doubt fill the gaps. What a plain loop of the model over the chain gives is, digit for
  digit, every y that was acknowledged.

So a lost step breaks the chain, one run twice or mixed with another session's changes every y that
comes after it, and a reply given for two different advances is two chunks at one place.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from service.model import Model

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows for steps `start` to `end` of one session, as one client cut them."""

    session_id: str
    start: int
    x: Rows  # raw units

    @property
    def end(self) -> int:
        return self.start + len(self.x)


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken promise."""

    session_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.session_id}: {self.what}"


@dataclass
class Ledger:
    """What clients were told of every session."""

    acknowledged: dict[Chunk, Rows] = field(default_factory=dict)  # -> its y
    in_doubt: set[Chunk] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    steps: int = 0  # acknowledged

    def acknowledge(self, chunk: Chunk, y: Rows) -> None:
        """Note a reply 200; the same chunk may be answered again, by the same y."""
        if chunk not in self.acknowledged:
            self.acknowledged[chunk] = y
            self.steps += len(y)
        elif self.acknowledged[chunk] != y:
            self.fault(chunk.session_id, f"step {chunk.start} was answered twice, by other y")

    def doubt(self, chunk: Chunk) -> None:
        self.in_doubt.add(chunk)

    def fault(self, session_id: str, what: str) -> None:
        self.faults.append(Fault(session_id, what))

    def judge(self, model: Model, stands_at: dict[str, int]) -> list[Fault]:
        """Every broken promise.

        Args:
            stands_at: session id -> its step, as the server says now; of every session.
        """
        told: dict[str, list[Chunk]] = defaultdict(list)
        for chunk in self.acknowledged:
            told[chunk.session_id].append(chunk)
        doubts: dict[str, list[Chunk]] = defaultdict(list)
        for chunk in self.in_doubt - set(self.acknowledged):
            doubts[chunk.session_id].append(chunk)
        found = list(self.faults)
        for session_id in sorted(stands_at.keys() | told.keys()):
            stand = stands_at.get(session_id, 0)
            what = self._judge_one(model, told[session_id], doubts[session_id], stand)
            if what is not None:
                found.append(Fault(session_id, what))
        return found

    def _judge_one(
        self, model: Model, told: list[Chunk], doubts: list[Chunk], stand: int
    ) -> str | None:
        by_start: dict[int, Chunk] = {}
        for chunk in told:
            if (other := by_start.setdefault(chunk.start, chunk)) is not chunk:
                return f"doubled: two chunks begin at step {other.start}, and both were answered"
        answered = sum(len(chunk.x) for chunk in told)
        why = f"lost: the server holds {stand} steps, {answered} were answered"
        for chain in _chains(by_start, doubts, stand):
            if left_out := by_start.keys() - {chunk.start for chunk in chain}:
                if min(left_out) < stand:
                    why = f"doubled: the chunk of step {min(left_out)} overlaps another"
                continue
            wrong_at = self._first_wrong(model, chain)
            if wrong_at is None:
                return None
            why = f"mixed or moved: y of step {wrong_at} of {stand} is not what a plain loop gives"
        return why

    def _first_wrong(self, model: Model, chain: list[Chunk]) -> int | None:
        """The first step whose acknowledged y is not the plain loop's."""
        state = model.initial_state
        for chunk in chain:
            (y,), (state,), _ = model.run([model.encode(np.array(chunk.x))], [state])
            told = self.acknowledged.get(chunk)
            if told is None:
                continue
            for n, row in enumerate(model.decode(y)):
                if told[n] != tuple(float(str(value)) for value in row):
                    return chunk.start + n
        return None


def _chains(by_start: dict[int, Chunk], doubts: list[Chunk], stand: int) -> Iterator[list[Chunk]]:
    """Every way to get from step 0 to `stand`."""
    open_chains: list[list[Chunk]] = [[]]
    while open_chains:
        chain = open_chains.pop()
        at = chain[-1].end if chain else 0
        while at != stand and at in by_start:
            chain.append(by_start[at])
            at = chain[-1].end
        if at == stand:
            yield chain
        else:
            open_chains += [[*chain, chunk] for chunk in doubts if chunk.start == at]
