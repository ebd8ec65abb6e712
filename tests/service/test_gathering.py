"""What comes together goes as blocks, and nobody can tell: by no byte, and by no session."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service.catalog import Catalog
from service.engine import Engine
from service.model import Model
from service.origin import NOWHERE
from service.protocols import conversation, gathering
from service.protocols.access import Access
from service.protocols.asgi import Message
from service.protocols.conversation import Conversation
from service.protocols.frames import (
    Binding,
    Dtype,
    Send,
    decode_replies,
    decode_requests,
    encode_requests,
)
from service.protocols.native import NativeApp
from service.session import SessionKey
from tests.service.test_engine import run, running

Array = np.ndarray

SESSIONS = 7
LIMIT = 2000  # bytes of a line; a read may have more
WIDTH = {"sine-cell": 1, "series-lstm": 8}
EXAMPLES = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),  # an example is small, and shrinking it takes minutes
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Asked:
    """One request, as both protocols can say it."""

    session: int
    steps: int = 1
    at: str = "none"  # its `step`: none, next, last, wrong
    extra: str = ""  # what is out of the ordinary

    @property
    def model(self) -> str:
        return "series-lstm" if self.session % 3 == 2 else "sine-cell"


asked = st.builds(
    Asked,
    st.integers(0, SESSIONS - 1),
    st.sampled_from([1, 1, 1, 1, 2, 3, 130]),
    st.sampled_from(["none", "none", "none", "next", "next", "last", "wrong"]),
    st.sampled_from([""] * 12 + ["name", "version", "other", "shape", "huge", "flags", "want"]),
)
reads = st.lists(st.lists(asked, min_size=1, max_size=24), min_size=1, max_size=4)


@dataclass
class Writer:
    """Writes requests down, and keeps account of where their sessions should stand."""

    versions: dict[str, str]
    begun: set[int] = field(default_factory=set)
    stand: dict[int, int] = field(default_factory=dict)
    last: dict[int, tuple[int, Array]] = field(default_factory=dict)
    drawn: int = 0

    def place(self, one: Asked) -> tuple[int | None, Array]:
        """The step that it says, and its rows."""
        self.drawn += 1
        x = np.random.default_rng(self.drawn).normal(size=(one.steps, WIDTH[one.model]))
        x = x.astype(np.float32).astype(float)
        stands = self.stand.get(one.session, 0)
        if one.at == "last" and one.session in self.last:
            return self.last[one.session]
        step = {"none": None, "next": stands, "last": stands, "wrong": stands + 7}[one.at]
        if one.at != "wrong" and one.extra in ("", "name", "version", "want"):
            self.last[one.session] = stands, x
            self.stand[one.session] = stands + len(x)
        return step, x

    def line(self, one: Asked) -> dict[str, Any]:
        step, x = self.place(one)
        body: dict[str, Any] = {"session_id": f"s-{one.session}", "x": x.tolist()}
        if step is not None:
            body["step"] = step
        if one.session not in self.begun or one.extra == "name":
            body["model"] = one.model
        if one.extra == "version":
            body["model"] = f"{one.model}:{self.versions[one.model]}"
        if one.extra == "other":
            body["model"] = "series-lstm" if one.model == "sine-cell" else "sine-cell"
        if one.extra == "shape":
            body["x"] = [[0.0, 1.0, 2.0]]
        if one.extra == "huge":
            body["x"] = [[1e39] * WIDTH[one.model]]  # beyond float32
        if one.extra == "flags":
            body["flags"] = 1  # an unknown field
        if one.extra == "want":
            body["want"] = ["y"]
        self.begun.add(one.session)
        return body

    def lines(self, read: Sequence[Asked]) -> bytes:
        return b"".join(json.dumps(self.line(one)).encode() + b"\n" for one in read)

    def frame(self, read: Sequence[Asked], dtype: Dtype) -> bytes:
        bindings, sends = [], []
        for one in read:
            step, x = self.place(one)
            if one.session not in self.begun:
                self.begun.add(one.session)
                bindings.append(Binding(one.session, f"s-{one.session}", one.model))
            if one.extra == "shape":
                x = np.zeros((1, 3))
            if one.extra == "huge":
                x = np.full((1, WIDTH[one.model]), np.inf)
            handle = 99 if one.extra == "other" else one.session
            sends.append(Send(handle, x, -9 if one.extra == "version" else step))
        made = bytearray(encode_requests(sends, bindings, dtype))
        for place, one in enumerate(read):
            if one.extra == "flags":
                made[16 + 24 * place + 20] = 1
        return bytes(made)


class Pipe:
    """A connection's two ends: what is said, and what is heard."""

    def __init__(self, count: Callable[[Message], int]) -> None:
        self.sent: list[Message] = []
        self._count = count
        self._heard = 0
        self._news = asyncio.Event()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.receive = self._inbox.get

    def say(self, message: Message) -> None:
        self._inbox.put_nowait(message)

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self._heard += self._count(message)
        self._news.set()

    async def heard(self, count: int) -> None:
        """Return once so many answers have come."""
        while self._heard < count:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 20)


async def over_stream(engine: Engine, parts: Sequence[tuple[bytes, int]]) -> list[bytes]:
    """The reply lines to a body sent so; each part with the lines that it ends, all answered."""
    pipe = Pipe(lambda message: message.get("body", b"").count(b"\n"))
    scope = {"type": "http", "method": "POST", "path": "/stream", "headers": []}
    app = asyncio.create_task(NativeApp(engine, LIMIT)(scope, pipe.receive, pipe.send))
    lines = 0
    for body, ended in parts:
        pipe.say({"type": "http.request", "body": body, "more_body": True})
        lines += ended
        if ended:
            await pipe.heard(lines)
    pipe.say({"type": "http.request", "body": b"", "more_body": False})
    await app
    return b"".join(message.get("body", b"") for message in pipe.sent).splitlines()


async def over_ws(engine: Engine, frames: Sequence[tuple[bytes | str, int]]) -> list[Message]:
    """The reply frames; each frame with the answers that it gets."""

    def count(message: Message) -> int:
        return 1 if "text" in message else len(decode_replies(message["bytes"]))

    pipe = Pipe(count)
    talk = Conversation(engine, "", lambda: Access().admit({"headers": []}), NOWHERE, 1 << 20)
    holding = asyncio.create_task(talk.hold(pipe.receive, pipe.send))
    answers = 0
    for frame, wanted in frames:
        kind = "text" if isinstance(frame, str) else "bytes"
        pipe.say({"type": "websocket.receive", kind: frame})
        answers += wanted
        await pipe.heard(answers)
    holding.cancel()
    return pipe.sent


def by_session(lines: Sequence[bytes]) -> dict[str, list[bytes]]:
    """The answers of each session, in their order, then its errors: they may come before."""
    found: dict[str, list[bytes]] = {}
    for line in sorted(lines, key=lambda line: line if b'"error":' in line else b""):
        body = json.loads(line)
        place = body.get("line"), body.get("frame"), body.get("item")
        found.setdefault(str(body.get("session_id", place)), []).append(line)
    return found


async def stands(engine: Engine) -> list[Any]:
    """All that the store holds of the sessions, but for their births."""
    found = []
    for session in range(SESSIONS):
        (record,) = await engine._store.get([SessionKey("", f"s-{session}")])
        found.append(record and (record.model, record.step, record.state, record.last))
    return found


Scenario = Callable[[Engine], Awaitable[Any]]


def both_ways(models: Sequence[Model], scenario: Scenario) -> tuple[Any, Any]:
    """What a scenario gives by blocks, and one by one."""

    async def play() -> tuple[Any, Any]:
        async with running(Catalog(list(models))) as engine:
            return await scenario(engine), await stands(engine)

    usual = gathering.LEAST_ROWS
    try:
        gathering.LEAST_ROWS = 1  # where the few rows of a test would not be worth a block
        blocks = run(play())
        gathering.LEAST_ROWS = 1 << 30
        return blocks, run(play())
    finally:
        gathering.LEAST_ROWS = usual


def opening() -> list[Asked]:
    return [Asked(session) for session in range(SESSIONS)]


def versions(*models: Model) -> dict[str, str]:
    return {model.name: model.version for model in models}


def test_lines_get_the_bytes_that_they_get_one_by_one(
    sine: Model, series: Model, in_blocks: list[int]
) -> None:
    """Whatever stands beside them: other models, other lengths, retries, lines that are refused."""

    @EXAMPLES
    @given(reads=reads, cut=st.integers(1, 300), blank=st.booleans())
    def mixed(reads: list[list[Asked]], cut: int, blank: bool) -> None:
        async def scenario(engine: Engine) -> dict[str, list[bytes]]:
            writer = Writer(versions(sine, series))
            parts = []
            for read in [opening(), *reads, opening()]:
                lines = writer.lines(read)
                lines = lines.replace(b"\n", b"\r\n  \n") if blank else lines
                parts += [(lines[:-cut], 0), (lines[-cut:], len(read))]  # a line in two pieces
            return by_session(await over_stream(engine, parts))

        blocks, alone = both_ways([series, sine], scenario)
        assert blocks == alone

    mixed()
    assert sum(in_blocks) > 300


def test_lines_that_come_before_their_sessions_have_begun(
    sine: Model, series: Model, in_blocks: list[int]
) -> None:
    """The requests of one session keep their order, whichever way each goes."""

    @EXAMPLES
    @given(reads=reads)
    def mixed(reads: list[list[Asked]]) -> None:
        async def scenario(engine: Engine) -> dict[str, list[bytes]]:
            writer = Writer(versions(sine, series))
            every = [opening(), *reads, opening()]
            parts = [(writer.lines(read), 0) for read in every[:-1]]
            total = sum(map(len, every))
            return by_session(await over_stream(engine, [*parts, (writer.lines(every[-1]), total)]))

        blocks, alone = both_ways([series, sine], scenario)
        assert blocks == alone

    mixed()


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT64])
def test_records_get_the_bits_that_they_get_one_by_one(
    sine: Model, series: Model, in_blocks: list[int], dtype: Dtype
) -> None:
    """And the numbers of their frames and items, their flags, statuses and errors."""

    @EXAMPLES
    @given(reads=reads)
    def mixed(reads: list[list[Asked]]) -> None:
        async def scenario(engine: Engine) -> dict[tuple[int, int], Any]:
            writer = Writer(versions(sine, series))
            frames = [
                (writer.frame(read, dtype), len(read)) for read in [opening(), *reads, opening()]
            ]
            found: dict[tuple[int, int], Any] = {}
            for message in await over_ws(engine, frames):
                for one in decode_replies(message["bytes"]):
                    y = None if one.y is None else (one.y.dtype, one.y.shape, one.y.tobytes())
                    told = one.handle, one.step, one.flags, one.status, one.error, y
                    assert found.setdefault((one.frame, one.item), told) is told
            return found

        blocks, alone = both_ways([series, sine], scenario)
        assert blocks == alone

    mixed()
    assert sum(in_blocks) > 300


def test_arrays_of_bodies_get_the_bytes_that_they_get_one_by_one(
    sine: Model, series: Model, in_blocks: list[int]
) -> None:
    """With the client's own names for them."""

    @EXAMPLES
    @given(reads=reads, named=st.sampled_from([None, 7, "a\u00e9", 0.5]))
    def mixed(reads: list[list[Asked]], named: object) -> None:
        async def scenario(engine: Engine) -> dict[str, list[bytes]]:
            writer = Writer(versions(sine, series))
            frames: list[tuple[bytes | str, int]] = []
            for read in [opening(), *reads, opening()]:
                bodies = [writer.line(one) for one in read]
                if named is not None:
                    bodies = [{**body, "id": named} for body in bodies]
                frames.append((json.dumps(bodies), len(read)))
            texts = [message["text"].encode() for message in await over_ws(engine, frames)]
            return by_session(texts)

        blocks, alone = both_ways([series, sine], scenario)
        assert blocks == alone

    mixed()
    assert sum(in_blocks) > 200


def test_the_second_request_of_a_session_goes_into_the_second_block(
    sine: Model, in_blocks: list[int]
) -> None:
    """So that a read of several requests of each session is as few blocks."""

    async def scenario(engine: Engine) -> list[bytes]:
        begin = [Asked(session) for session in (0, 1, 3, 4, 6)]
        writer = Writer(versions(sine))
        many = [one for one in begin for _ in range(3)]
        parts = [(writer.lines(begin), 5), (writer.lines(begin), 5), (writer.lines(many), 15)]
        return await over_stream(engine, parts)

    blocks, alone = both_ways([sine], scenario)
    assert by_session(blocks[0]) == by_session(alone[0])
    assert in_blocks == [5, 5, 5, 5]
    assert [json.loads(line)["step"] for line in by_session(blocks[0])["s-4"]] == [1, 2, 3, 4, 5]


def test_replies_of_a_block_leave_in_frames_of_the_usual_size(
    sine: Model, monkeypatch: pytest.MonkeyPatch, in_blocks: list[int]
) -> None:
    """A block of many rows is cut, and one of a few joins what is ready."""
    monkeypatch.setattr(conversation, "REPLY_FRAME_BYTES", 100)  # two records of 36 bytes

    async def scenario(engine: Engine) -> list[int]:
        begin = [Asked(session) for session in (0, 1, 3, 4, 6)]
        writer = Writer(versions(sine))
        frames = [(writer.frame(begin, Dtype.FLOAT32), 5) for _ in range(3)]
        found = await over_ws(engine, frames)
        return [len(decode_replies(message["bytes"])) for message in found[-3:]]

    blocks, alone = both_ways([sine], scenario)
    assert blocks == alone
    assert blocks[0] == [2, 2, 1]
    assert in_blocks == [5, 5]


def test_a_handle_that_is_bound_anew_leaves_what_came_before_alone(
    sine: Model, in_blocks: list[int]
) -> None:
    """A record that left its block is still of the session that its frame meant."""
    x = np.array([[0.5]])

    async def scenario(engine: Engine) -> dict[str, list[bytes]]:
        first = [Binding(handle, f"s-{handle}") for handle in range(5)]
        anew = [Binding(handle, f"s-{(handle + 1) % 5}") for handle in range(5)]
        frames: list[tuple[bytes | str, int]] = [
            (encode_requests([Send(handle, x) for handle in range(5)], first), 5),
            (encode_requests([Send(handle, x) for handle in range(5)]), 5),
            # All are told 409 by the ordinary way, behind a frame that binds their handles anew.
            (encode_requests([Send(handle, x, step=9) for handle in range(5)]), 0),
            (encode_requests([Send(handle, x) for handle in range(5)], anew), 10),
        ]
        found: dict[str, list[bytes]] = {}
        for message in await over_ws(engine, frames):
            for one in decode_replies(message["bytes"]):
                said = one.error["session_id"] if one.error else one.step
                found.setdefault(f"{one.frame} {one.item}", []).append(str(said).encode())
        return found

    blocks, alone = both_ways([sine], scenario)
    assert blocks == alone
    assert [blocks[0][f"3 {item}"] for item in range(5)] == [[b"s-%d" % item] for item in range(5)]
    assert sum(in_blocks) >= 10


def test_a_session_that_began_anew_is_not_taken_for_the_old_one(
    sine: Model, in_blocks: list[int]
) -> None:
    """Dropped by another connection, begun again, moved to another name: seats are the store's."""

    async def scenario(engine: Engine) -> list[Any]:
        begin = [Asked(session) for session in (0, 1, 3, 4, 6)]
        writer = Writer(versions(sine))
        pipe = Pipe(lambda message: message.get("body", b"").count(b"\n"))
        scope = {"type": "http", "method": "POST", "path": "/stream", "headers": []}
        app = asyncio.create_task(NativeApp(engine, LIMIT)(scope, pipe.receive, pipe.send))
        for turn in range(5):
            if turn == 3:
                for session in (0, 3):
                    await engine.drop(SessionKey("", f"s-{session}"))
            body = writer.lines(begin)
            pipe.say({"type": "http.request", "body": body, "more_body": True})
            await pipe.heard(5 * (turn + 1))
        pipe.say({"type": "http.request", "body": b"", "more_body": False})
        await app
        lines = b"".join(message.get("body", b"") for message in pipe.sent).splitlines()
        told = by_session(lines)
        return [
            [(said["step"], said["created"]) for said in map(json.loads, told[f"s-{session}"])]
            for session in (0, 1)
        ]

    blocks, alone = both_ways([sine], scenario)
    assert blocks == alone
    began = [(1, True), (2, False), (3, False)]
    assert blocks[0] == [[*began, (1, True), (2, False)], [*began, (4, False), (5, False)]]
    assert sum(in_blocks) > 15


def test_a_drain_ends_a_read_in_one_place(sine: Model, in_blocks: list[int]) -> None:
    """What was handed over is answered, and the last line says from where on nothing was run."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_batch=8, max_queue=8) as engine:
            writer = Writer(versions(sine))
            names = [Asked(session) for session in (0, 1, 3, 4, 6)]
            pipe = Pipe(lambda message: message.get("body", b"").count(b"\n"))
            scope = {"type": "http", "method": "POST", "path": "/stream", "headers": []}
            app = asyncio.create_task(NativeApp(engine, LIMIT)(scope, pipe.receive, pipe.send))
            for turn in range(2):
                body = writer.lines(names)
                pipe.say({"type": "http.request", "body": body, "more_body": True})
                await pipe.heard(5 * (turn + 1))
            many = b"".join(writer.lines(names) for _ in range(30))
            pipe.say({"type": "http.request", "body": many, "more_body": True})
            await pipe.heard(25)
            engine.drain()
            await app
            lines = b"".join(message.get("body", b"") for message in pipe.sent).splitlines()
            *told, last = map(json.loads, lines)
            assert last["error"]["code"] == "draining"
            done = [said for said in told if "y" in said]
            assert len(done) == len(told) == last["line"] - 1 < 160
            for session in (0, 1, 3, 4, 6):
                record = await engine.look_up(SessionKey("", f"s-{session}"))
                mine = [said["step"] for said in done if said["session_id"] == f"s-{session}"]
                assert mine == list(range(1, record.step + 1))

    run(scenario())
    assert max(in_blocks) >= 4


def test_a_frame_is_read_once(sine: Model) -> None:
    """Values are gathered where only some of its records go as a block."""
    x = np.arange(6, dtype=float).reshape(6, 1)
    frame = decode_requests(
        encode_requests([Send(0, x[:2]), Send(1, x[2:3]), Send(2, x[3:5]), Send(3, x[5:])])
    )
    assert frame.starts.tolist() == [0, 2, 3, 5, 6]
    assert [frame.rows(record).tolist() for record in range(4)] == [
        [[0], [1]],
        [[2]],
        [[3], [4]],
        [[5]],
    ]
