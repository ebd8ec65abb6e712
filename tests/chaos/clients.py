"""Clients that behave as badly as clients do, and never give up.

Rules
- A client keeps one chunk of a session in flight, sends `step` with it, and sends it again,
  byte for byte, until it is answered: by 200, or by 409, which tells a client that shares its
  session where that stands now.
- Connections refused, reset or timed out, 429 and 503: it tries again, after Retry-After (capped,
  so that a test ends). Any other status breaks a promise.
- Some requests are sent twice at once, some again after their answer; some are abandoned in the
  middle of their body, or before their reply; some streams are cut.
- Rows are drawn at random for each client and session: no other session's, no other client's, and
  no other step's would give the same y.
"""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.chaos.http_client import (
    END_OF_STREAM,
    STREAM_HEAD,
    Broken,
    Connection,
    Reply,
    ask,
    connect,
    request,
)
from tests.chaos.oracle import Chunk, Ledger, Rows

REPLY_TIMEOUT_S = 12.0  # a killed worker comes back within ten seconds
MAX_WAIT_S = 0.25  # of what Retry-After asks for
CHUNK_STEPS = (1, 1, 2, 5, 16, 40)
TRY_AGAIN = (429, 503)


@dataclass(frozen=True)
class Mischief:
    """How often, as shares of all requests."""

    twice: float = 0.04
    again: float = 0.03
    abandoned: float = 0.03
    half: float = 0.02
    cut: float = 0.01  # of the lines of a stream


@dataclass
class Load:
    """What all clients of a run share."""

    ports: Sequence[int]  # of the servers, asked in turn
    model: str
    ledger: Ledger = field(default_factory=Ledger)
    mischief: Mischief = field(default_factory=Mischief)
    done: asyncio.Event = field(default_factory=asyncio.Event)  # finish your chunk, and stop
    counts: Counter[str] = field(default_factory=Counter)
    sessions: set[str] = field(default_factory=set)
    _turn: Iterator[int] = field(default_factory=itertools.count)

    @property
    def port(self) -> int:
        """The next server in turn."""
        return self.ports[next(self._turn) % len(self.ports)]

    async def stands_at(self) -> dict[str, int]:
        """Session id -> where the server says that it stands; all servers must be well."""
        stands: dict[str, int] = {}
        for session_id in sorted(self.sessions):
            reply = await ask(self.port, "GET", f"/sessions/{session_id}")
            if reply.status == 200:
                stands[session_id] = reply.json()["step"]
            elif reply.status == 404:
                stands[session_id] = 0
            else:
                raise AssertionError(f"GET /sessions/{session_id}: {reply}")
        return stands


class Hand:
    """One client's part in one session: which chunk it is at."""

    def __init__(self, load: Load, session_id: str, seed: str, shared: bool) -> None:
        self._load = load
        self._rng = random.Random(seed)
        self._session_id = session_id
        self._shared = shared
        self._at = 0
        self._sent = 0  # copies of the chunk
        load.sessions.add(session_id)
        self.chunk = self._next()

    @property
    def is_under_way(self) -> bool:
        """Whether the chunk was sent, and its fate is not known."""
        return self._sent > 0

    def send(self) -> bytes:
        """The chunk as a /predict body, to be sent now: it may be run from here on."""
        self._sent += 1
        chunk = self.chunk
        body = {"session_id": chunk.session_id, "x": chunk.x, "step": chunk.start}
        return json.dumps({**body, "model": self._load.model}).encode()

    def answered(self, status: int, body: bytes) -> bool:
        """Note a reply; whether it is the chunk's last, so that the next one is at hand."""
        load, chunk = self._load, self.chunk
        load.counts[f"status {status}"] += 1
        if status in TRY_AGAIN:
            return False
        reply = json.loads(body)
        if status == 200:
            self._acknowledge(reply)
            self._at = chunk.end
        elif status == 409 and self._shared:
            if self._sent > 1:  # one of the copies may have been run before others moved on
                load.ledger.doubt(chunk)
            self._at = int(reply["error"]["expected"])
        else:
            load.ledger.fault(chunk.session_id, f"step {chunk.start} got {status}: {body[:300]!r}")
            load.done.set()
        self._sent = 0
        self.chunk = self._next()
        return True

    def _acknowledge(self, reply: dict[str, object]) -> None:
        load, chunk = self._load, self.chunk
        said = (reply["session_id"], reply["step"], reply["created"])
        if said != (chunk.session_id, chunk.end, chunk.start == 0):
            load.ledger.fault(chunk.session_id, f"step {chunk.start} was answered by {said}")
        load.ledger.acknowledge(chunk, _rows(reply["y"]))

    def _next(self) -> Chunk:
        steps = self._rng.choice(CHUNK_STEPS)
        x = tuple((self._rng.gauss(0, 1),) for _ in range(steps))
        return Chunk(self._session_id, self._at, x)


def _rows(y: object) -> Rows:
    if not isinstance(y, list):
        raise AssertionError(f"y is {y!r}")
    return tuple(tuple(row) for row in y)


class UnaryClient:
    """POST /predict, one session after another, over a connection that it keeps."""

    def __init__(self, load: Load, hands: Sequence[Hand], seed: int) -> None:
        self._load = load
        self._hands = hands
        self._rng = random.Random(seed)
        self._connection: Connection | None = None

    async def run(self) -> None:
        try:
            for hand in itertools.cycle(self._hands):
                if self._load.done.is_set():
                    return
                await self._finish(hand)
        finally:
            self._drop()

    async def _finish(self, hand: Hand) -> None:
        """Send the hand's chunk until it is answered."""
        while True:
            await self._misbehave(hand)
            message = request("POST", "/predict", hand.send())
            reply = await self._try(hand, message)
            if reply is None:
                await asyncio.sleep(self._rng.uniform(0.01, 0.1))
            elif hand.answered(reply.status, reply.body):
                if reply.status == 200 and self._draw(self._load.mischief.again):
                    await self._ask_again(message, reply)
                return
            else:
                await asyncio.sleep(min(float(reply.headers["retry-after"]), MAX_WAIT_S))

    async def _try(self, hand: Hand, message: bytes) -> Reply | None:
        if self._draw(self._load.mischief.twice):
            self._load.counts["twice"] += 1
            hand.send()
            replies = await asyncio.gather(self._apart(message), self._apart(message))
            whole = [reply for reply in replies if reply is not None]
            done = [reply for reply in whole if reply.status == 200]
            self._compare(*done)
            return next(iter(done or whole), None)
        try:
            if self._connection is None:
                self._connection = await Connection.open(self._load.port)
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                await self._connection.send(message)
                reply = await self._connection.read_reply()
        except (Broken, TimeoutError) as error:
            self._note(error)
            self._drop()
            return None
        if len(self._load.ports) > 1 or reply.headers.get("connection") == "close":
            self._drop()  # and ask the next server
        return reply

    async def _misbehave(self, hand: Hand) -> None:
        """Send the request on another connection, whole or in part, and vanish."""
        if self._draw(self._load.mischief.abandoned):
            self._load.counts["abandoned"] += 1
            await self._vanish(request("POST", "/predict", hand.send()))
        if self._draw(self._load.mischief.half):
            self._load.counts["half a body"] += 1
            message = request("POST", "/predict", hand.send())
            await self._vanish(message[: self._rng.randrange(1, len(message))])

    async def _vanish(self, data: bytes) -> None:
        try:
            async with connect(self._load.port) as connection:
                await connection.send(data)
                await asyncio.sleep(self._rng.choice([0, 0.001, 0.01]))
        except Broken as error:
            self._note(error)

    async def _apart(self, message: bytes) -> Reply | None:
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S), connect(self._load.port) as connection:
                await connection.send(message)
                return await connection.read_reply()
        except (Broken, TimeoutError) as error:
            self._note(error)
            return None

    async def _ask_again(self, message: bytes, reply: Reply) -> None:
        """Send what was answered once more: the same bytes, or, if others moved on, 409."""
        self._load.counts["again"] += 1
        again = await self._apart(message)
        if again is not None and again.status == 200:
            self._compare(reply, again)

    def _compare(self, *replies: Reply) -> None:
        """All replies to one request are the same bytes."""
        if len({reply.body for reply in replies}) > 1:
            bodies = [reply.body for reply in replies]
            self._load.ledger.fault("", f"one request was answered by several replies: {bodies}")

    def _draw(self, share: float) -> bool:
        return self._rng.random() < share

    def _note(self, error: Exception) -> None:
        self._load.counts[_word(error)] += 1

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.cut()
            self._connection = None


class StreamClient:
    """POST /stream: the chunks of several sessions in flight at once, one of each."""

    def __init__(self, load: Load, hands: Sequence[Hand], seed: int) -> None:
        self._load = load
        self._hands = {hand.chunk.session_id: hand for hand in hands}
        self._rng = random.Random(seed)

    async def run(self) -> None:
        while not self._load.done.is_set() or self._open:
            try:
                async with connect(self._load.port) as connection:
                    await self._drive(connection)
            except (Broken, TimeoutError) as error:
                self._load.counts[_word(error)] += 1
                await asyncio.sleep(self._rng.uniform(0.01, 0.1))

    @property
    def _open(self) -> bool:
        return any(hand.is_under_way for hand in self._hands.values())

    async def _drive(self, connection: Connection) -> None:
        """Until the server ends the stream, or the client cuts it."""
        await connection.send(STREAM_HEAD)
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            status, _ = await connection.read_head()
        if status != 200:
            self._load.counts[f"status {status}"] += 1
            await asyncio.sleep(MAX_WAIT_S)
            return
        waiting = 0
        for hand in self._hands.values():
            waiting += await self._send(connection, hand)
        while waiting:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                line = await connection.read_line()
            if line is None:
                return
            waiting -= 1
            waiting += await self._answered(connection, line)
            if self._rng.random() < self._load.mischief.cut:
                self._load.counts["streams cut"] += 1
                return
        await connection.send(END_OF_STREAM)

    async def _send(self, connection: Connection, hand: Hand) -> int:
        """Send the hand's chunk, unless all is done; how many lines were sent."""
        if self._load.done.is_set() and not hand.is_under_way:
            return 0
        await connection.send_line(hand.send())
        return 1

    async def _answered(self, connection: Connection, line: bytes) -> int:
        reply = json.loads(line)
        status = _status_of(reply)
        if "session_id" not in reply:  # the server ends the stream, as it must be draining
            if reply["error"]["code"] != "draining":
                self._load.ledger.fault("", f"a stream got {line!r}")
            self._load.counts["streams drained"] += 1
            raise Broken("the server drains")
        hand = self._hands[reply["session_id"]]
        if not hand.answered(status, line):
            await asyncio.sleep(MAX_WAIT_S)
        return await self._send(connection, hand)


_STATUS = {  # of the error lines that a client can expect
    "step_conflict": 409,
    "overloaded": 429,
    "draining": 503,
    "store_unavailable": 503,
    "store_full": 503,
}


def _status_of(reply: dict[str, dict[str, str]]) -> int:
    return _STATUS.get(reply["error"]["code"], 500) if "error" in reply else 200


def _word(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    began = isinstance(error, Broken) and error.reply_began
    return "broken in a reply" if began else str(error).partition(":")[0]
