"""Many /predict bodies at once: JSON -> the arrays of blocks, and their answers -> JSON.

Rules
- What a body says and what its reply says is to the byte what `service.wire` reads and writes one
  by one. What is out of the ordinary gets no seat here, and goes that way: bodies that are refused,
  text, `want` and `choose`, another model than the session's.
- Bodies are read one by one up to `x`, then the x of all sessions of one model together.
- The y of a block are written together, and cut apart between the brackets of their rows.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
import orjson

from service.blocks import MAX_STEPS, Block, Done
from service.model import Model
from service.protocols.gathering import NO_STEP, Bundle, alike
from service.protocols.seating import NO_SEAT, Seating, is_called
from service.session import SessionKey
from service.wire import MAX_STEP, Envelope, decode_many_rows, encode, stacked_rows

Array = np.ndarray

MAX_NAMES = 1 << 16  # of one connection; then all are numbered anew
UNREADABLE = Envelope("?", msgspec.Raw(b"null"), want=[])  # in the place of what is refused


class Names:
    """The sessions that the bodies of one connection have named."""

    def __init__(self, seating: Seating, tenant: str) -> None:
        self._seating = seating
        self._tenant = tenant
        self._places: dict[str, int] = {}
        self._heads: dict[str, bytes] = {}

    def find(self, names: Sequence[str]) -> tuple[Array, Array]:
        """As `Seating.find`, of sessions by their names."""
        known = self._places
        if len(known) + len(names) > MAX_NAMES:
            known.clear()
            self._heads.clear()
            self._seating.clear()
        places = np.array([known.setdefault(name, len(known)) for name in names], np.int64)
        return self._seating.find(places, lambda row: (SessionKey(self._tenant, names[row]), None))

    @property
    def generation(self) -> int:
        """Of the seats that were found."""
        return self._seating.generation

    def model(self, kind: int) -> Model | None:
        """As `Seating.model`."""
        return self._seating.model(kind)

    def forget(self, name: str) -> None:
        """The session may stand elsewhere now."""
        place = self._places.get(name)
        if place is not None:
            self._seating.forget(place)

    def head(self, name: str) -> bytes:
        """How the session's replies begin."""
        found = self._heads.get(name)
        if found is None:
            found = self._heads[name] = b'{"session_id":%b' % orjson.dumps(name)
        return found


def read_bodies(texts: Sequence[bytes | None], read: Callable[[bytes], Envelope]) -> list[Envelope]:
    """Bodies up to `x`, by a strict decoder; `UNREADABLE` in the place of those it refuses."""
    try:
        return [UNREADABLE if text is None else read(text) for text in texts]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [_read_one(text, read) for text in texts]


def _read_one(text: bytes | None, read: Callable[[bytes], Envelope]) -> Envelope:
    try:
        return UNREADABLE if text is None else read(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UNREADABLE


def seat_bodies(bodies: Sequence[Envelope], names: Names) -> tuple[Array, Array, list[Bundle]]:
    """Which of N bodies may go in blocks.

    Returns:
        (N,) seats, `NO_SEAT` of those that go by themselves; (N,) steps, `NO_STEP` where there is
        none; and the bundles of those with seats.
    """
    seats = np.full(len(bodies), NO_SEAT, np.int64)
    steps = np.full(len(bodies), NO_STEP, np.int64)
    bundles: list[Bundle] = []
    plain = [row for row, body in enumerate(bodies) if _is_plain(body)]
    if plain:
        found, kinds = names.find([bodies[row].session_id for row in plain])
        seated = np.flatnonzero(found != NO_SEAT)
        rows = np.array(plain)
        for group in alike(kinds[seated]):
            at = seated[group]
            model = names.model(int(kinds[at[0]]))
            if model is not None:
                bundles += _bundles(model, bodies, rows[at])
        by_row = np.full(len(bodies), NO_SEAT, np.int64)
        by_row[rows] = found
        for bundle in bundles:
            seats[bundle.rows] = by_row[bundle.rows]
            asked = [bodies[row].step for row in bundle.rows.tolist()]
            steps[bundle.rows] = [NO_STEP if step is None else step for step in asked]
    return seats, steps, bundles


def _is_plain(body: Envelope) -> bool:
    return (
        body.want is None and body.choose is None and (body.step is None or body.step <= MAX_STEP)
    )


def _bundles(model: Model, bodies: Sequence[Envelope], rows: Array) -> Iterator[Bundle]:
    """Of bodies whose sessions live on `model`; none of an x that is not what it takes."""
    known = [row for row in rows.tolist() if is_called(model, bodies[row].model)]
    if not known:
        return
    shape = model.row_shape
    many = decode_many_rows([bodies[row].x for row in known], shape)
    if many is None:
        return
    rows = np.array(known)
    lengths = np.array([len(x) for x in many])
    for at in alike(lengths):
        if 1 <= lengths[at[0]] <= MAX_STEPS:
            x = stacked_rows([many[i] for i in at.tolist()], shape)
            if x is not None:
                yield Bundle(model, rows[at], x)


def write_bodies(bodies: Sequence[Envelope], names: Names, block: Block, done: Done) -> list[bytes]:
    """The replies to `bodies`, which are those of the rows that are done, in order."""
    model, depth = block.model, done.y.ndim - 1
    inside = slice(depth + 1, -depth - 1)
    parts = encode(done.y)[inside].split(b"]" * depth + b"," + b"[" * depth)
    named = b',"model":%b,"version":%b,"step":' % (encode(model.name), encode(model.version))
    opened = b',"created":false,"y":' + b"[" * depth
    closed = b"]" * depth + b"}"
    ends = [closed] * len(parts)
    if model.reader.fields != ("y",):
        ends = [closed[:-1] + end for end in _read(bodies, block, done)]
    heads = [names.head(body.session_id) for body in bodies]
    return [
        b"%b%b%d%b%b%b" % (head, named, step, opened, part, end)
        for head, step, part, end in zip(heads, done.steps.tolist(), parts, ends, strict=True)
    ]


def _read(bodies: Sequence[Envelope], block: Block, done: Done) -> Iterator[bytes]:
    """What the model's reader finds in each y, as a reply goes on and ends."""
    reader = block.model.reader
    wish = reader.wish(None, None)
    for body, y, step in zip(bodies, done.y, done.steps.tolist(), strict=True):
        found = reader.read(y, wish, (block.tenant, body.session_id), step - len(y))
        yield b"," + encode(found)[1:] if found else b"}"
