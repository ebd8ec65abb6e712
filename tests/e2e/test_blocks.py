"""The laws of a session over a real server with the disk store, for what comes together: many
requests in one read of /stream or one frame of /ws, which run as blocks."""

import json
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import pytest
from websockets.sync.client import ClientConnection

from service.model import Model
from service.protocols.frames import Binding, Dtype, Send, encode_requests
from tests.e2e.conftest import Server, serving
from tests.e2e.test_stream import Duplex
from tests.e2e.test_websocket import raw_y
from tests.e2e.ws_client import connected, read_records

Array = np.ndarray

# Of requests that their session does not survive as it was, were they run: their statuses.
SPOILT = {"huge": 400, "wide": 400, "late": 409, "wild": 422}


@dataclass(frozen=True)
class Asked:
    """One request."""

    session: str
    x: Array  # (T, I), raw units
    step: int | None = None


@dataclass(frozen=True)
class Told:
    """Its answer."""

    status: int
    step: int = -1  # of a 200
    y: Array | None = None


Scripted = tuple[Asked, Told]


class Way(Protocol):
    """One connection: requests that go together, and their answers in the same order."""

    socket: Any

    def ask(self, asked: Sequence[Asked], cuts: Sequence[int] = ()) -> list[Told]: ...


class Lines:
    """/stream."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.socket = stack.enter_context(server.connect())
        self._stream = Duplex(self.socket)
        stack.callback(self._stream.close)
        self._lines = 0
        self._is_new = True

    def ask(self, asked: Sequence[Asked], cuts: Sequence[int] = ()) -> list[Told]:
        """All in one read, or cut at these bytes, wherever they are in a line."""
        body = b"".join(json.dumps(_body(one)).encode() + b"\n" for one in asked)
        ends = [0, *sorted(cut % len(body) for cut in cuts), len(body)]
        for start, end in pairwise(ends):
            if start < end:
                self._stream.send(body[start:end], end=b"")
        if self._is_new:
            assert self._stream.head()[0] == 200
            self._is_new = False
        replies = [self._stream.read() for _ in asked]
        refused = {one["line"] - 1 - self._lines: one["error"] for one in replies if "error" in one}
        answers = defaultdict(list)
        for one in replies:
            if "error" not in one:
                answers[one["session_id"]].append(one)
        self._lines += len(asked)
        told = []
        for place, one in enumerate(asked):
            if place in refused:
                told.append(Told(_STATUS[refused[place]["code"]]))
            else:  # the answers of a session come in the order of its lines
                found = answers[one.session].pop(0)
                told.append(Told(200, found["step"], np.array(found["y"])))
        return told


class Frames:
    """Binary frames of /ws."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self._ws: ClientConnection = stack.enter_context(connected(server))
        self.socket = self._ws.socket
        self._handles: dict[str, int] = {}

    def ask(self, asked: Sequence[Asked], cuts: Sequence[int] = ()) -> list[Told]:
        """All in one frame; or cut at so many places, in that many more."""
        ends = [0, *sorted(cut % len(asked) for cut in cuts), len(asked)]
        frames = [asked[start:end] for start, end in pairwise(ends) if start < end]
        for frame in frames:
            self._send(frame)
        told: dict[tuple[int, int], Told] = {}
        for one in read_records(self._ws, len(asked)):
            assert (one.frame, one.item) not in told
            told[one.frame, one.item] = Told(one.status or 200, one.step, one.y)
        return [told[place] for place in sorted(told)]

    def _send(self, frame: Sequence[Asked]) -> None:
        new = dict.fromkeys(one.session for one in frame if one.session not in self._handles)
        bindings = []
        for name in new:
            self._handles[name] = len(self._handles)
            bindings.append(Binding(self._handles[name], name, model_of(name)))
        sends = [Send(self._handles[one.session], one.x, one.step) for one in frame]
        self._ws.send(encode_requests(sends, bindings, Dtype.FLOAT64))


WAYS: dict[str, Callable[[Server, ExitStack], Way]] = {"stream": Lines, "ws": Frames}
_STATUS = {"bad_shape": 400, "not_finite": 400, "step_conflict": 409, "result_not_finite": 422}


def model_of(session: str) -> str:
    """`sine-cell/..`: a session's name begins with its model's."""
    return session.split("/")[0]


def _body(one: Asked) -> dict[str, Any]:
    at = {} if one.step is None else {"step": one.step}
    return {"session_id": one.session, "model": model_of(one.session), "x": one.x.tolist(), **at}


@contextmanager
def opened(server: Server, way: str) -> Iterator[Way]:
    with ExitStack() as stack:
        yield WAYS[way](server, stack)


@dataclass
class Twin:
    """What every session was sent and took, and so what its answers must be: its own y, alone."""

    rng: np.random.Generator
    took: dict[str, list[Array]] = field(default_factory=lambda: defaultdict(list))

    def stand(self, session: str) -> int:
        return sum(map(len, self.took[session]))

    def rows(self, session: str, steps: int) -> Array:
        if model_of(session) == "series-lstm":
            return self.rng.normal(20, 3, (steps, 8))
        return np.clip(self.rng.normal(size=(steps, 1)), -4, 4)

    def good(self, session: str, steps: int, with_step: bool, big: bool = False) -> Scripted:
        """A request that is taken, and where its answer is told to end; y is looked up later."""
        x, at = self.rows(session, steps) * (1e30 if big else 1), self.stand(session)
        self.took[session].append(x)
        return Asked(session, x, at if with_step else None), Told(200, at + steps)

    def again(self, session: str) -> Scripted:
        """The last one that was taken, once more."""
        x, at = self.took[session][-1], self.stand(session)
        return Asked(session, x, at - len(x)), Told(200, at)

    def spoilt(self, session: str, how: str) -> Scripted:
        x, step = self.rows(session, 1), None
        if how == "huge":
            x[:] = 1e300  # beyond float32
        if how == "wide":
            x = np.zeros((1, 3))
        if how == "wild":
            x[:] = 9.0  # drives `fragile` to infinity
        if how == "late":
            step = self.stand(session) + 7
        return Asked(session, x, step), Told(SPOILT[how])

    def check(
        self, models: Mapping[str, Model], asked: Sequence[Asked], told: Sequence[Told]
    ) -> None:
        """Every y is that of its session's rows, run whole and alone in this process."""
        expected = {
            name: raw_y(models[model_of(name)], np.concatenate(took))
            for name, took in self.took.items()
        }
        for one, answer in zip(asked, told, strict=True):
            if answer.status == 200:
                assert answer.y is not None
                alone = expected[one.session][answer.step - len(one.x) : answer.step]
                assert same(answer.y, alone), one.session


def same(y: Array, alone: Array) -> bool:
    """Digit for digit, at the precision that the model's y has."""
    return y.astype(alone.dtype).tobytes() == alone.tobytes()


@pytest.fixture(scope="module")
def blocks_server(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers on one disk store."""
    settings = {"CAROUSEL_ARTIFACTS": str(artifacts), "CAROUSEL_WORKERS": "2"}
    with serving(tmp_path_factory.mktemp("blocks"), **settings) as server:
        yield server
        assert "Traceback" not in server.text()


def names(test: str, each: int) -> list[str]:
    return [
        f"{model}/{test}-{number}"
        for number in range(each)
        for model in ("sine-cell", "series-lstm", "fragile")
    ]


def stands_of(server: Server, sessions: Sequence[str]) -> dict[str, int]:
    with server.client() as client:
        return {
            name: client.get(f"/sessions/{name.replace('/', '%2F')}").json()["step"]
            for name in sessions
        }


@pytest.mark.parametrize("way", WAYS)
def test_no_neighbour_changes_a_digit(
    blocks_server: Server, models: dict[str, Model], way: str
) -> None:
    """Beside huge values, refusals, retries, conflicts, and chunks of any length; several of one
    session in one read too. Each is taken once, in its order, as /predict says afterwards."""
    order = random.Random(7)
    twin = Twin(np.random.default_rng(7))
    sessions = names(f"mixed-{way}", 40)
    asked, told = [], []
    with opened(blocks_server, way) as connection:
        for turn in range(20):
            kinds = order.sample(["again", "long", "big", *SPOILT], 3) if turn > 1 else []
            script = [twin.good(name, 1, turn % 2 == 0) for name in order.sample(sessions, 120)]
            for kind in kinds * 4:
                # Only `fragile` can be driven to infinity; and what is big drives it there.
                wanted = {"wild": [2], "big": [0, 1]}.get(kind, [0, 1, 2])
                name = sessions[3 * order.randrange(40) + order.choice(wanted)]
                if kind == "again":
                    more = twin.again(name)
                elif kind in SPOILT:
                    more = twin.spoilt(name, kind)
                else:
                    steps = order.choice([2, 140]) if kind == "long" else 1
                    more = twin.good(name, steps, order.random() < 0.5, kind == "big")
                # Its session's last: later ones of the script would stand elsewhere.
                last = max(place for place, (one, _) in enumerate(script) if one.session == name)
                script.insert(order.randint(last + 1, len(script)), more)
            said = connection.ask([one for one, _ in script])
            for answer, (one, right) in zip(said, script, strict=True):
                assert (answer.status, answer.step if answer.y is not None else -1) == (
                    right.status,
                    right.step,
                ), one
            asked += [one for one, _ in script]
            told += said
    assert {answer.status for answer in told} == {200, *SPOILT.values()}
    assert stands_of(blocks_server, sessions) == {name: twin.stand(name) for name in sessions}
    with blocks_server.client() as client:
        for name in sessions:
            one, _ = twin.good(name, 2, True)
            reply = client.post("/predict", json=_body(one)).json()
            asked.append(one)
            told.append(Told(200, reply["step"], np.array(reply["y"])))
    twin.check(models, asked, told)


@pytest.mark.parametrize("way", WAYS)
def test_any_cut_gives_the_same_numbers(
    blocks_server: Server, models: dict[str, Model], way: str
) -> None:
    """Into chunks, and into reads in the middle of lines, or frames of any number of records."""
    order = random.Random(8)
    rows = {name: Twin(np.random.default_rng(8)).rows(name, 24) for name in names("cut", 12)}
    alone = {name: raw_y(models[model_of(name)], x) for name, x in rows.items()}
    for cut, ends in {"steps": range(1, 24), "whole": [1], "mixed": [1, 2, 5, 21]}.items():
        parts = [
            (place, Asked(f"{name}-{way}-{cut}", x), name)
            for name, whole in rows.items()
            for place, x in enumerate(np.split(whole, list(ends)))
        ]
        parts.sort(key=lambda part: part[0])  # a session's chunks stay in their order
        y: dict[str, list[Array]] = defaultdict(list)
        with opened(blocks_server, way) as connection:
            cuts = [order.randrange(1 << 30) for _ in range(len(parts) // 60)]
            said = connection.ask([one for _, one, _ in parts], cuts)
        for (_, _, name), answer in zip(parts, said, strict=True):
            assert answer.y is not None
            y[name].append(answer.y)
        for name in rows:
            assert same(np.concatenate(y[name]), alone[name]), (cut, name)


@pytest.mark.parametrize("way", WAYS)
def test_sessions_that_are_dropped_meanwhile_begin_anew(
    blocks_server: Server, models: dict[str, Model], way: str
) -> None:
    """At one place in their order, wherever that falls; and the others never hear of it."""
    twin = Twin(np.random.default_rng(9))
    sessions = [name for name in names(f"dropped-{way}", 8) if model_of(name) != "fragile"]
    gone = sessions[::2]
    x: dict[str, list[Array]] = defaultdict(list)
    steps: dict[str, list[int]] = defaultdict(list)
    y: dict[str, list[Array]] = defaultdict(list)

    def drop() -> None:
        with blocks_server.client() as client:
            for name in gone:
                client.delete(f"/sessions/{name.replace('/', '%2F')}").raise_for_status()

    with opened(blocks_server, way) as connection:
        for turn in range(10):
            asked = [Asked(name, twin.rows(name, 1)) for _ in range(4) for name in sessions]
            dropping = threading.Thread(target=drop)
            if turn == 5:
                dropping.start()
            for one, answer in zip(asked, connection.ask(asked), strict=True):
                assert answer.status == 200 and answer.y is not None
                x[one.session].append(one.x)
                steps[one.session].append(answer.step)
                y[one.session].append(answer.y)
            if turn == 5:
                dropping.join()
    with blocks_server.client() as client:
        for name in sessions:
            one = Asked(name, twin.rows(name, 1), steps[name][-1])
            reply = client.post("/predict", json=_body(one)).json()
            x[name].append(one.x)
            steps[name].append(reply["step"])
            y[name].append(np.array(reply["y"]))
    for name in sessions:
        begun = [place for place, step in enumerate(steps[name]) if step == 1]
        assert len(begun) == (2 if name in gone else 1)
        for start, end in zip(begun, [*begun[1:], len(x[name])], strict=True):
            assert steps[name][start:end] == list(range(1, end - start + 1))
            alone = raw_y(models[model_of(name)], np.concatenate(x[name][start:end]))
            assert same(np.concatenate(y[name][start:end]), alone)


def worker_of(server: Server, connection: Way) -> int:
    """The process that holds the other end of a connection."""
    port = connection.socket.getsockname()[1]
    for process in psutil.Process(server.process.pid).children(recursive=True):
        if any(held.raddr and held.raddr.port == port for held in process.net_connections("tcp")):
            return int(process.pid)
    raise AssertionError(f"nobody holds the connection from port {port}")


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_carry_on_each_others_sessions(
    blocks_server: Server, models: dict[str, Model], way: str
) -> None:
    """Driven by turns through a connection to each: one loop, and each retry is answered again."""
    twin = Twin(np.random.default_rng(10))
    sessions = names(f"shared-{way}", 15)
    asked, told = [], []
    with ExitStack() as stack:
        found: dict[int, Way] = {}
        opening = [twin.good(name, 1, True)[0] for name in sessions]
        for _ in range(64):
            connection = WAYS[way](blocks_server, stack)
            told += connection.ask(opening)  # it is answered again, whoever is asked
            asked += opening
            found.setdefault(worker_of(blocks_server, connection), connection)
            if len(found) == 2:
                break
        assert len(found) == 2, "all connections went to one worker"
        both = list(found.values())
        for turn in range(14):
            first, second = both[turn % 2], both[(turn + 1) % 2]
            script = [twin.good(name, 1 + turn % 3, turn % 2 == 0) for name in sessions]
            again = [twin.again(name) for name in sessions]
            for connection, part in ((first, script), (second, again)):
                said = connection.ask([one for one, _ in part])
                assert [(one.status, one.step) for one in said] == [
                    (right.status, right.step) for _, right in part
                ]
                asked += [one for one, _ in part]
                told += said
    twin.check(models, asked, told)
    assert stands_of(blocks_server, sessions) == {name: twin.stand(name) for name in sessions}
