"""/ws of a real `bentoml serve`, by the `websockets` package, a bare socket, and a browser."""

import html
import json
import random
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from service.model import Model
from service.protocols.frames import (
    NO_HANDLE,
    Binding,
    Dtype,
    Flag,
    Send,
    encode_requests,
)
from tests.e2e.browser import dom_of
from tests.e2e.conftest import Server
from tests.e2e.test_http import sequence, whole
from tests.e2e.ws_client import (
    BareClient,
    ask,
    body,
    connected,
    read,
    read_records,
    records_in,
)

Array = np.ndarray


def raw_y(model: Model, x: Array) -> Array:
    """y of one sequence, run whole and alone in this process, in raw units."""
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    return np.asarray(model.decode(y))


# Text frames ----------------------------------------------------------------------------------


def test_replies_are_those_of_predict_and_carry_the_clients_id(
    server: Server, client: httpx.Client
) -> None:
    """Byte for byte, but for the `id` in front, which may be a string or a number."""
    with connected(server) as ws:
        for step, name in enumerate(["first", 7, 2.5, "", None]):
            sent = body("ws-id", [[0.5]], step=step)
            ws.send(json.dumps({**sent, "id": name}))
            got = ws.recv()
            retried = client.post("/predict", json=sent).text
            front = "" if name is None else f'"id":{json.dumps(name)},'
            assert got == "{" + front + retried[1:]


def test_a_session_goes_on_frame_by_frame(server: Server, models: dict[str, Model]) -> None:
    """Each answer is read before the next frame is written."""
    x = sequence("series-lstm", 30, 1)
    y = []
    with connected(server) as ws:
        for step, row in enumerate(x.tolist()):
            (reply,) = ask(ws, body("ws-steps", [row], step=step, model="series-lstm"))
            assert (reply["step"], reply["created"]) == (step + 1, step == 0)
            y += reply["y"]
    assert y == whole(models["series-lstm"], x)


def test_many_sessions_in_arrays_of_bodies(server: Server, models: dict[str, Model]) -> None:
    """Two hundred sessions, ten frames: more than may be in flight at once."""
    x = {n: sequence("sine-cell", 10, n) for n in range(200)}
    y: dict[int, list[Any]] = {n: [] for n in x}
    with connected(server) as ws:
        for t in range(10):
            frame = [body(f"ws-many-{n}", x[n][t : t + 1].tolist(), id=n) for n in x]
            ws.send(json.dumps(frame))
        for _ in range(2000):
            reply = read(ws)
            y[reply["id"]] += reply["y"]
    assert y == {n: whole(models["sine-cell"], x[n]) for n in x}


def test_bad_frames_between_good_ones_do_not_end_the_connection(
    server: Server, models: dict[str, Model]
) -> None:
    """Each gets an error with its number, its item in an array, and its id if it can be read."""
    x = sequence("sine-cell", 2, 4).tolist()
    frames: list[str] = [
        json.dumps(body("ws-mixed", x[:1])),  # 1
        "not json",
        "",  # 3
        json.dumps(body("ws-mixed", [[1, 2]], id="wide")),
        '{"session_id":"ws-mixed","x":[[NaN]],"id":5}',  # 5
        json.dumps(body("ws-mixed", x[:1], step=7, id="step")),
        json.dumps({"id": "who", "session": "ws-mixed"}),  # 7
        json.dumps({"id": [1], "session_id": "ws-mixed", "x": x}),
        "[]",  # 9
        "[[]]",
        json.dumps([body("ws-mixed", [["a"]], id="item"), 3]),  # 11
        '{"api_key": "too late"}',
        '[{"session_id": "ws-mixed"',  # 13
    ]
    with connected(server) as ws:
        for frame in frames:
            ws.send(frame)
        replies = [read(ws) for _ in range(14)]
        good = [replies.pop(n) for n, reply in enumerate(replies) if "y" in reply]
        good += ask(ws, body("ws-mixed", x[1:], step=1))
    where = sorted(
        (reply["frame"], reply.get("item", -1), reply["error"]["code"], reply.get("id"))
        for reply in replies
    )
    assert where == [
        (2, -1, "invalid_json", None),
        (3, -1, "invalid_json", None),
        (4, -1, "bad_shape", "wide"),
        (5, -1, "not_finite", None),
        (6, -1, "step_conflict", "step"),
        (7, -1, "invalid_request", "who"),
        (8, -1, "invalid_request", None),
        (9, -1, "invalid_request", None),
        (10, 0, "invalid_request", None),
        (11, 0, "bad_shape", "item"),
        (11, 1, "invalid_request", None),
        (12, -1, "invalid_request", None),
        (13, -1, "invalid_json", None),
    ]
    (conflict,) = [reply for reply in replies if reply["error"]["code"] == "step_conflict"]
    assert (conflict["session_id"], conflict["step"]) == ("ws-mixed", 7)
    assert conflict["error"]["expected"] == 1
    assert [reply["step"] for reply in good] == [1, 2]
    assert [row for reply in good for row in reply["y"]] == whole(models["sine-cell"], np.array(x))


# Binary frames --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT64])
def test_binary_frames_get_the_bits_that_json_gets(
    server: Server, client: httpx.Client, models: dict[str, Model], dtype: Dtype
) -> None:
    """x exactly, y as the dtype holds it: of a scaled y float32 loses what float64 keeps."""
    for name, model in models.items():
        if name == "fragile":
            continue
        x = sequence(name, 12, 3).astype(dtype.numpy)
        told = client.post(
            "/predict",
            json={"session_id": f"json-{name}-{dtype}", "x": x.tolist(), "model": name},
        ).json()
        pieces = []
        with connected(server) as ws:
            for at, end in [(0, 1), (1, 2), (2, 12)]:
                names = [Binding(3, f"bin-{name}-{dtype}", name)] if at == 0 else []
                ws.send(encode_requests([Send(3, x[at:end], at)], names, dtype))
                (reply,) = read_records(ws, 1)
                assert (reply.step, reply.status) == (end, 0)
                assert reply.flags == (Flag.CREATED if at == 0 else 0)
                assert reply.y is not None and reply.y.dtype == dtype.numpy
                pieces.append(reply.y)
        y, expected = np.concatenate(pieces), raw_y(model, x.astype(float))
        assert y.tolist() == expected.astype(dtype.numpy).tolist()
        narrower = min(y.dtype, expected.dtype)  # JSON writes float32 in as few digits as it needs
        assert y.astype(narrower).tolist() == np.array(told["y"], narrower).tolist()


def test_many_sessions_in_one_binary_frame(server: Server, models: dict[str, Model]) -> None:
    """A thousand of two models, in chunks of several sizes; names are sent once."""
    rng = random.Random(5)
    names = [rng.choice(["sine-cell", "series-lstm"]) for _ in range(1000)]
    x = [sequence(name, 6, n).astype(np.float32) for n, name in enumerate(names)]
    y: list[list[Array]] = [[] for _ in names]
    bindings = [Binding(n, f"ws-bin-{n}", name) for n, name in enumerate(names)]
    cuts = [0, 1, 3, 6]
    with connected(server) as ws:
        for frame, (at, end) in enumerate(pairwise(cuts), 1):
            order = rng.sample(range(1000), 1000)
            ws.send(encode_requests([Send(n, x[n][at:end]) for n in order], bindings))
            bindings = []
            for reply in read_records(ws, 1000):
                assert (reply.frame, order[reply.item]) == (frame, reply.handle)
                assert reply.step == end and reply.y is not None
                y[reply.handle].append(reply.y)
    for n in range(0, 1000, 37):
        expected = raw_y(models[names[n]], x[n].astype(float)).astype(np.float32)
        assert np.concatenate(y[n]).tolist() == expected.tolist()


def test_refusals_are_records_among_the_answers(server: Server) -> None:
    """With the HTTP status, and the error as JSON has it; the session stays where it stood."""
    good = np.array([[0.5]])
    with connected(server) as ws:
        names = [Binding(0, "ws-refused", "sine-cell"), Binding(1, "ws-nobody", "nobody")]
        sent = [
            Send(0, good),  # 0
            Send(0, np.array([[0.5, 0.5]])),
            Send(0, np.array([[np.nan]])),  # 2
            Send(0, np.zeros((0, 1))),
            Send(0, good, step=9),  # 4
            Send(1, good),
            Send(77, good),  # 6
            Send(0, good, step=-5),
            Send(0, good, step=1),  # 8
        ]
        ws.send(encode_requests(sent, names))
        replies = {reply.item: reply for reply in read_records(ws, len(sent))}
        refused = {item: reply for item, reply in replies.items() if reply.status}
        codes = {
            item: (reply.status, (reply.error or {})["error"]["code"])
            for item, reply in refused.items()
        }
        assert codes == {
            1: (400, "bad_shape"),
            2: (400, "not_finite"),
            3: (400, "bad_shape"),
            4: (409, "step_conflict"),
            5: (404, "unknown_model"),
            6: (400, "invalid_request"),
            7: (400, "invalid_request"),
        }
        conflict = refused[4].error or {}
        assert conflict["error"]["expected"] == 1
        assert (conflict["session_id"], conflict["step"]) == ("ws-refused", 9)
        assert (conflict["frame"], conflict["item"]) == (1, 4)
        assert [replies[n].step for n in (0, 8)] == [1, 2]
        for bad in (b"", b"CA", encode_requests([Send(0, good)]) + b"\x00"):
            ws.send(bad)
            (reply,) = read_records(ws, 1)
            assert (reply.handle, reply.status) == (NO_HANDLE, 400)
        for bad_json in (
            b"{}",
            b"[1]",
            b'[{"handle":0}]',
            b'[{"handle":65536,"session_id":"a"}]',
            b'[{"handle":0,"session_id":"a","want":["y"]}]',
            b"\xff",
        ):
            frame = bytearray(encode_requests([Send(0, good)]))
            frame[8:12] = len(bad_json).to_bytes(4, "little")
            ws.send(bytes(frame) + bad_json)
            (reply,) = read_records(ws, 1)
            assert (reply.handle, reply.status) == (NO_HANDLE, 400)
        ws.send(encode_requests([Send(0, good, step=2)]))  # the handle means what it did
        (reply,) = read_records(ws, 1)
        assert reply.step == 3


def test_text_and_binary_share_a_connection_and_its_sessions(
    server: Server, models: dict[str, Model]
) -> None:
    """In the order of the frames; a handle that is bound again means another session."""
    x = sequence("sine-cell", 4, 8).astype(np.float32)
    with connected(server) as ws:
        ws.send(encode_requests([Send(0, x[:1])], [Binding(0, "ws-both", "sine-cell")]))
        ws.send(json.dumps(body("ws-both", x[1:2].tolist())))
        ws.send(encode_requests([Send(0, x[2:])]))
        ws.send(encode_requests([Send(0, x[:1])], [Binding(0, "ws-other", "sine-cell")]))
        frames = [ws.recv(timeout=30) for _ in range(2)]
        while len(records := [one for frame in frames for one in records_in(frame)]) < 3:
            frames.append(ws.recv(timeout=30))
    (second,) = [json.loads(frame) for frame in frames if isinstance(frame, str)]
    first, third = [reply for reply in records if reply.frame in (1, 3)]
    (other,) = [reply for reply in records if reply.frame == 4]
    expected = raw_y(models["sine-cell"], x.astype(float)).astype(np.float32)
    assert first.y is not None and third.y is not None
    y = np.concatenate([first.y, np.array(second["y"], np.float32), third.y])
    assert y.tolist() == expected.tolist()
    assert (third.step, other.step, other.flags) == (4, 1, Flag.CREATED)


def test_long_replies_leave_in_frames_that_clients_take(server: Server) -> None:
    """None is much longer than a quarter of a MiB, though 2 MB are ready at once."""
    x = np.zeros((8000, 1))
    with connected(server) as ws:
        names = [Binding(n, f"ws-long-{n}", "sine-cell") for n in range(64)]
        ws.send(encode_requests([Send(n, x) for n in range(64)], names))
        done, sizes = 0, []
        while done < 64:
            frame = ws.recv(timeout=60)
            done += int.from_bytes(bytes(frame)[4:8], "little")  # type: ignore[arg-type]
            sizes.append(len(frame))
    assert max(sizes) <= (256 << 10) + 16


# Who may, and how it ends ---------------------------------------------------------------------


def test_a_plain_get_is_told_to_upgrade(client: httpx.Client) -> None:
    """In the shape of all errors; other methods are not for it at all."""
    plain = client.get("/ws")
    assert (plain.status_code, plain.json()["error"]["code"]) == (426, "upgrade_required")
    assert (plain.headers["upgrade"], plain.headers["connection"]) == ("websocket", "Upgrade")
    posted = client.post("/ws", content=b"{}")
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"]
)
def test_a_page_from_elsewhere_cannot_open_one(server: Server, origin: str) -> None:
    """A browser would let it: the handshake is refused, in the shape of all errors."""
    with (
        pytest.raises(InvalidStatus) as refused,
        connected(server, additional_headers={"Origin": origin}),
    ):
        pass
    response = refused.value.response
    assert (response.status_code, response.headers["content-type"]) == (403, "application/json")
    assert json.loads(response.body or b"")["error"]["code"] == "forbidden"
    assert "x-request-id" in response.headers


def test_a_page_of_this_machine_can(server: Server) -> None:
    """As from a development server on another port."""
    with connected(server, additional_headers={"Origin": "http://localhost:8080"}) as ws:
        (reply,) = ask(ws, body("ws-origin", [[0.5]]))
        assert reply["step"] == 1
        assert ws.protocol.extensions == []  # no compression, though the client offered it


def test_a_key_that_nobody_asked_for_is_taken_for_granted(server: Server) -> None:
    """A page sends its key first, whatever the server; frames count without it."""
    with connected(server) as ws:
        assert ask(ws, {"api_key": "anything"}) == [{"authenticated": True}]
        (refused,) = ask(ws, "x")
        assert refused["frame"] == 1


def test_the_request_id_of_the_handshake_is_told(server: Server) -> None:
    """And another is made for who has none."""
    with connected(server, additional_headers={"X-Request-ID": "page-1"}) as ws:
        assert ws.response is not None
        assert ws.response.headers["x-request-id"] == "page-1"


def test_text_that_is_not_utf8_ends_the_connection(server: Server) -> None:
    """1007, as RFC 6455 wants; no traceback in the log. Fragments are put together first."""
    with BareClient(server) as bare:
        text = json.dumps(body("ws-utf8", [[0.5]], id="é"), ensure_ascii=False).encode()
        cut = text.index("é".encode()) + 1
        bare.send(text[:cut], fin=False)
        bare.send(text[cut:], Opcode.CONT)
        assert b'"step":1' in bare.socket.recv(4096)
        bare.send(b'{"id": "\xff"}')
        assert bare.read_to_end()[-2:] == (1007).to_bytes(2, "big")
    assert "Traceback" not in server.text()


def test_a_client_that_vanishes_leaves_whole_steps_only(
    server: Server, client: httpx.Client, models: dict[str, Model]
) -> None:
    """What had not started is not run; the session goes on from where it says it stands."""
    x = sequence("sine-cell", 3000, 6).astype(np.float32)
    with BareClient(server) as gone:
        sends = [Send(0, x[n : n + 1], n) for n in range(1000)]
        gone.send(encode_requests(sends, [Binding(0, "ws-vanish", "sine-cell")]), Opcode.BINARY)
        gone.socket.recv(1)
    deadline = time.monotonic() + 10
    step = -1
    while step != (step := client.get("/sessions/ws-vanish").json()["step"]):
        assert time.monotonic() < deadline
    assert 1 <= step < 1000
    rest_of_x = x[step:].astype(float).tolist()
    reply = client.post("/predict", json=body("ws-vanish", rest_of_x, step=step)).json()
    assert reply["y"] == whole(models["sine-cell"], x.astype(float))[step:]


def test_a_slow_reader_slows_only_itself(server: Server, client: httpx.Client) -> None:
    """The server stops reading from it, and answers others meanwhile."""
    chunk = encode_requests([Send(0, np.full((8000, 1), 0.1))])
    with BareClient(server, receive_buffer=4096) as slow:
        slow.socket.settimeout(2)  # once the server stops reading, nothing more can be sent
        slow.send(encode_requests([], [Binding(0, "ws-slow", "sine-cell")]), Opcode.BINARY)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 10_000:
                slow.send(chunk, Opcode.BINARY)
                sent += 1
                client.post("/predict", json=body("ws-quick", [[0.1]])).raise_for_status()
        # What it had read when it stopped is run; then the session stands.
        steps = [-1, client.get("/sessions/ws-slow").json()["step"]]
        while steps[-1] != steps[-2]:
            time.sleep(1)
            steps.append(client.get("/sessions/ws-slow").json()["step"])
        assert steps[-1] <= 8000 * sent < 8000 * 10_000
        client.post("/predict", json=body("ws-quick", [[0.1]])).raise_for_status()
        with connected(server) as ws:
            assert "step" in ask(ws, body("ws-quick", [[0.1]]))[0]


def test_a_client_that_closes_is_closed_with(server: Server) -> None:
    """1000, echoed; what it had read before stays read."""
    with connected(server) as ws:
        ask(ws, body("ws-close", [[0.5]]))
        ws.close(1000, "done")
        assert ws.protocol.close_rcvd is not None
        assert ws.protocol.close_rcvd.code == 1000


# A browser ------------------------------------------------------------------------------------

PAGE = """<!doctype html><body><script>
const ws = new WebSocket("ws://127.0.0.1:%d/ws");
ws.binaryType = "arraybuffer";
const seen = [];
ws.onopen = () => ws.send(JSON.stringify(
  {session_id: "browser", model: "sine-cell", x: [[0.5]], id: "a"}));
ws.onmessage = (event) => {
  if (typeof event.data === "string") {
    seen.push(JSON.parse(event.data));
    const names = new TextEncoder().encode(
      JSON.stringify([{handle: 0, session_id: "browser", model: "sine-cell"}]));
    const frame = new DataView(new ArrayBuffer(16 + 24 + 4 + names.length));
    [0xCA, 1, 1, 1].forEach((byte, at) => frame.setUint8(at, byte));
    frame.setUint32(4, 1, true);
    frame.setUint32(8, names.length, true);
    frame.setUint32(16, 0, true);
    frame.setUint32(20, 1, true);
    frame.setBigInt64(24, 1n, true);
    frame.setUint32(32, 1, true);
    frame.setFloat32(40, 0.25, true);
    new Uint8Array(frame.buffer).set(names, 44);
    ws.send(frame);
  } else {
    const reply = new DataView(event.data);
    seen.push({step: Number(reply.getBigInt64(24, true)), y: reply.getFloat32(48, true)});
    ws.close(1000, "done");
  }
};
ws.onclose = (event) => {
  seen.push(event.code);
  document.body.dataset.seen = JSON.stringify(seen);
  document.title = "done";
};
</script></body>"""


FOREIGN = """<script>
const ws = new WebSocket("ws://127.0.0.1:%d/ws");
ws.onopen = () => parent.postMessage("open", "*");
ws.onclose = (event) => parent.postMessage("closed " + event.code, "*");
</script>"""
FRAME = """<!doctype html><body><iframe sandbox="allow-scripts" srcdoc="%s"></iframe><script>
onmessage = (event) => {
  document.body.dataset.seen = event.data;
  document.title = "done";
};
</script></body>"""


@pytest.mark.needs("chromium")
def test_a_browser_speaks_both(server: Server, models: dict[str, Model], tmp_path: Path) -> None:
    """A page on this machine: a text frame, a binary frame made by DataView, a close."""
    dom = dom_of(PAGE % server.port, tmp_path / "profile")
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, dom
    text, binary, code = json.loads(html.unescape(found[1]))
    y = raw_y(models["sine-cell"], np.array([[0.5], [0.25]])).astype(np.float32)
    assert (text["id"], text["step"], text["created"]) == ("a", 1, True)
    assert np.float32(text["y"]).tolist() == y[:1].tolist()
    assert (binary["step"], np.float32(binary["y"])) == (2, y[1, 0])
    assert code == 1000


@pytest.mark.needs("chromium")
def test_a_browser_is_kept_out_where_its_page_is_from_elsewhere(
    server: Server, tmp_path: Path
) -> None:
    """A sandboxed frame has the origin `null`, as a page of the internet has its own."""
    dom = dom_of(FRAME % html.escape(FOREIGN % server.port), tmp_path / "profile")
    assert 'data-seen="closed 1006"' in dom


def test_nothing_is_left_of_connections_that_came_and_went(server: Server) -> None:
    """No file of the server's stays open."""

    def files() -> int:
        return sum(child.num_fds() for child in server.process.children(recursive=True))

    before = files()
    for _ in range(100):
        with connected(server) as ws:
            ask(ws, body("ws-again", [[0.5]]))
    deadline = time.monotonic() + 10
    while files() > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
