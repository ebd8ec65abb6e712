"""Which sessions of one connection have seats: their numbers here -> what a `Block` is made of.

Rules
- A connection numbers its sessions (handles; the names of its lines), and a session is asked for
  its seat once. It is asked again where the seats are of another generation, or where a row of it
  left its block: it may live on another model since.
- A session without a seat is asked for it with its next request, and then after one, three, ..
  `MAX_SKIPS` more: where its store or its model takes no blocks, asking is for nothing.
"""

from collections.abc import Callable
from weakref import ref

import numpy as np

from service.engine import Engine
from service.model import Model
from service.session import SessionKey

Array = np.ndarray

NO_SEAT = -1
MAX_SKIPS = 63  # requests between two questions; a question takes as long as a fifth of a request

# Of a row that came: its session, and the model that it must live on, as `name` or `name:version`.
Named = tuple[SessionKey, str | None]


class Seating:
    """The seats of one connection's sessions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._models: list[ref[Model]] = []  # a connection keeps no model in memory
        self._make(64)

    def _make(self, places: int) -> None:
        self.generation = self._engine.seats_generation
        self._seats = np.full(places, NO_SEAT, np.int64)
        self._kinds = np.zeros(places, np.int64)  # places in `_models`
        self._skips = np.zeros((places, 2), np.int64)  # to come, and after the next question

    def clear(self) -> None:
        """Forget all numbers."""
        self._models.clear()
        self._make(64)

    def forget(self, place: int) -> None:
        """The number means another session now, or may stand elsewhere."""
        if place < len(self._seats):
            self._seats[place] = NO_SEAT
            self._skips[place] = 0

    def find(self, places: Array, name_of: Callable[[int], Named | None]) -> tuple[Array, Array]:
        """Where the sessions of rows that came have their seats.

        Args:
            places: (N,) int64, 0 or more, the connection's numbers.
            name_of: asked of rows without a seat; None: it names no session.
        Returns:
            (N,) int64, seats, `NO_SEAT` where there is none; and (N,) int64, which models they
            live on, for `model`.
        """
        if self.generation != self._engine.seats_generation:
            self._make(len(self._seats))
        most = len(self._seats)
        if int(places.max()) < most:
            seats, kinds = self._seats[places], self._kinds[places]
        else:
            inside = places < most
            at = np.where(inside, places, 0)
            seats, kinds = np.where(inside, self._seats[at], NO_SEAT), self._kinds[at]
        for row in np.flatnonzero(seats == NO_SEAT).tolist():
            named, place = name_of(row), int(places[row])
            if named is not None:
                seats[row] = self._seat_of(place, *named)
                kinds[row] = self._kinds[place]
        if self.generation != self._engine.seats_generation:  # the last seats were given out
            seats[:] = NO_SEAT
        return seats, kinds

    def model(self, kind: int) -> Model | None:
        """A model that `find` named; None: it was unloaded, and its sessions are to be asked."""
        found = self._models[kind]()
        if found is None:
            self._seats[self._kinds == kind] = NO_SEAT
        return found

    def _seat_of(self, place: int, key: SessionKey, wanted: str | None) -> int:
        while place >= len(self._seats):
            self._seats = np.append(self._seats, np.full_like(self._seats, NO_SEAT))
            self._kinds = np.append(self._kinds, np.zeros_like(self._kinds))
            self._skips = np.append(self._skips, np.zeros_like(self._skips), axis=0)
        seat = int(self._seats[place])
        if seat != NO_SEAT:  # its second row of those that came
            return seat
        left, then = self._skips[place].tolist()
        if left:
            self._skips[place, 0] = left - 1
            return NO_SEAT
        found = self._engine.seat_of(key)
        if found is None or not is_called(found[1], wanted):
            self._skips[place] = then, min(2 * then + 1, MAX_SKIPS)
            return NO_SEAT
        seat, model = found
        self._seats[place] = seat
        self._kinds[place] = self._kind_of(model)
        return seat

    def _kind_of(self, model: Model) -> int:
        for kind, known in enumerate(self._models):
            if known() is model:
                return kind
        self._models.append(ref(model))
        return len(self._models) - 1


def is_called(model: Model, wanted: str | None) -> bool:
    """Whether a request that names this model, `name` or `name:version`, may run on it."""
    return wanted is None or wanted in (model.name, model.reference)
