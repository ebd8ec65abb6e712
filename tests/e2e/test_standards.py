"""Request ids, CORS and compressed bodies at a real `bentoml serve`: by curl, httpx, a browser."""

import functools
import gzip
import html
import json
import re
import subprocess
import threading
import zlib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.model import Model
from tests.e2e.conftest import SINE, Server, serving
from tests.e2e.test_http import sequence, whole
from tests.e2e.test_stream import Duplex, line
from tests.service.build_artifact import build_artifact

MAX_BODY_BYTES = 200_000


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A web server of other origins than the service's, and the directory that it shows."""
    root = tmp_path_factory.mktemp("pages")
    handler = functools.partial(QuietHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"localhost:{web.server_port}", root
        web.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def service(pages: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that lets the pages of `localhost` ask, and those of `127.0.0.1` not."""
    root = tmp_path_factory.mktemp("standards")
    build_artifact(root / "artifacts", SINE)
    with serving(
        root,
        CAROUSEL_ARTIFACTS=str(root / "artifacts"),
        CAROUSEL_CORS_ORIGINS=f"http://{pages[0]}, https://app.example",
        CAROUSEL_MAX_BODY_BYTES=str(MAX_BODY_BYTES),
        CAROUSEL_STORE="memory",
    ) as server:
        yield server


@pytest.fixture
def http(service: Server) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def sine(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(build_artifact(tmp_path_factory.mktemp("sine"), SINE))


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/predict", b'{"session_id": "id", "x": [[0.5]]}', 200),
        ("POST", "/predict", b"not json", 400),
        ("GET", "/predict", b"", 405),
        ("GET", "/nowhere", b"", 404),
        ("PUT", "/livez", b"", 405),
        ("GET", "/sessions/nobody", b"", 404),
        ("GET", "/models", b"", 200),
        ("GET", "/readyz", b"", 200),
        ("POST", "/stream", b"not json\n", 200),
        ("POST", "/forecast", b'{"session_id": "id", "horizon": 1}', 200),
        ("OPTIONS", "/forecast", b"", 405),
    ],
)
def test_every_reply_of_ours_says_the_request_id(
    http: httpx.Client, method: str, path: str, body: bytes, status: int
) -> None:
    """The client's, or one made here; errors and streams too."""
    named = http.request(method, path, content=body, headers={"X-Request-ID": "job-7"})
    assert (named.status_code, named.headers["x-request-id"]) == (status, "job-7")
    made = http.request(method, path, content=body).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", made)


def test_pages_of_the_host_are_its_own(http: httpx.Client) -> None:
    """BentoML's documentation and metrics get none of it."""
    for path in ("/livez", "/docs.json", "/metrics"):
        reply = http.get(path, headers={"X-Request-ID": "job-7", "Origin": "https://app.example"})
        assert reply.status_code == 200
        assert not {"x-request-id", "access-control-allow-origin"} & reply.headers.keys()


def test_a_preflight_is_answered_for_every_route(http: httpx.Client) -> None:
    """Also for /stream, whose own replies are not held back."""
    asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    for path in ("/predict", "/stream", "/forecast", "/sessions/a/fork", "/models"):
        reply = http.options(path, headers=asks)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
    reply = http.post("/stream", content=json.dumps(line("cors", [[0.5]])), headers=asks)
    assert reply.json()["step"] == 1
    assert reply.headers["access-control-allow-origin"] == "https://app.example"


def test_a_page_that_is_not_named_is_neither_answered_nor_admitted(http: httpx.Client) -> None:
    """There are no keys here, so it is refused at the door as well."""
    reply = http.post(
        "/predict", json=line("evil", [[0.5]]), headers={"Origin": "https://evil.example"}
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden")
    assert "access-control-allow-origin" not in reply.headers
    assert http.get("/sessions/evil").status_code == 404


def test_a_named_page_changes_no_models(http: httpx.Client) -> None:
    """That is for who sits at this machine."""
    reply = http.post("/models/sine-cell/promote", headers={"Origin": "https://app.example"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden")
    here = http.post("/models/sine-cell/promote")  # it has one version alone
    assert (here.status_code, here.json()["error"]["code"]) == (400, "invalid_request")


PAGE = """<!doctype html><title>a page</title><script>
const service = "SERVICE";
async function seen() {
  const ask = {session_id: "page-ORIGIN", x: [[0.5]], model: "sine-cell"};
  const first = await fetch(service + "/predict", {
    method: "POST", body: JSON.stringify(ask),
    headers: {"Content-Type": "application/json", "X-Request-ID": "page-1"},
  });
  const reply = await first.json();
  const wrong = await fetch(service + "/predict", {method: "POST", body: "{"});
  const stream = await fetch(service + "/forecast", {
    method: "POST", headers: {Accept: "text/event-stream"},
    body: JSON.stringify({session_id: ask.session_id, horizon: 3}),
  });
  const events = (await stream.text()).split("\\n\\n").filter(Boolean).length;
  const dropped = await fetch(service + "/sessions/" + ask.session_id, {method: "DELETE"});
  return [reply.step, first.headers.get("X-Request-ID"), (await wrong.json()).error.code, events,
          (await dropped.json()).dropped];
}
seen().catch(error => error.name).then(found => {
  document.body.dataset.seen = JSON.stringify(found);
});
</script><body></body>"""


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(
    ("host", "seen"),
    [
        ("localhost", [1, "page-1", "invalid_json", 5, True]),
        ("127.0.0.1", "TypeError"),  # what a browser tells a page that may not know more
    ],
)
def test_a_real_browser_lets_the_named_page_ask_and_no_other(
    service: Server, pages: tuple[str, Path], tmp_path: Path, host: str, seen: object
) -> None:
    """Preflights for JSON and DELETE, a header that it may read, errors that it may read."""
    name = f"{host}.html"
    (pages[1] / name).write_text(
        PAGE.replace("SERVICE", service.url).replace("ORIGIN", host), encoding="utf-8"
    )
    address = pages[0].replace("localhost", host)
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000"),
            f"http://{address}/{name}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr
    assert json.loads(html.unescape(found[1])) == seen


@pytest.mark.needs("curl", "gzip")
def test_curl_sends_and_gets_gzip(service: Server, sine: Model, tmp_path: Path) -> None:
    """`gzip -c | curl --data-binary @-`, and `--compressed`: the same numbers, fewer bytes."""
    x = sequence("sine-cell", 4000, 1)
    (tmp_path / "body.json").write_text(json.dumps(line("curl-gzip", x.tolist())))
    command = (
        f"gzip -c body.json | curl -sS --compressed -D head -H 'Content-Encoding: gzip' "
        f"--data-binary @- {service.url}/predict -w '%{{stderr}}%{{size_download}}'"
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    reply = json.loads(done.stdout)
    assert reply["y"] == whole(sine, x)
    head = (tmp_path / "head").read_text().lower()
    assert "content-encoding: gzip" in head and "vary: accept-encoding" in head
    assert int(done.stderr) < len(done.stdout) * 0.6


def test_a_retried_request_gets_the_same_compressed_bytes(http: httpx.Client) -> None:
    """Byte for byte, as without gzip."""
    ask = line("same-bytes", sequence("sine-cell", 3000, 2).tolist(), step=0)
    raw = []
    for _ in range(2):
        with http.stream("POST", "/predict", json=ask) as reply:
            assert reply.headers["content-encoding"] == "gzip"
            raw.append(b"".join(reply.iter_raw()))
    assert raw[0] == raw[1]


def test_what_is_small_or_not_asked_for_is_not_compressed(http: httpx.Client) -> None:
    """httpx asks for gzip unless it is told not to."""
    big = line("plain", sequence("sine-cell", 3000, 3).tolist())
    reply = http.post("/predict", json=big, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in reply.headers
    reply = http.post("/predict", json=line("plain", [[0.5]]))
    assert "content-encoding" not in reply.headers


def post(http: httpx.Client, path: str, body: bytes, coding: str) -> httpx.Response:
    return http.post(path, content=body, headers={"Content-Encoding": coding})


@pytest.mark.parametrize("path", ["/predict", "/forecast", "/stream", "/sessions/id/fork"])
def test_an_unknown_coding_is_415(http: httpx.Client, path: str) -> None:
    """With the codings that there are; a stream is refused before it begins."""
    reply = post(http, path, b"x", "zstd")
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert reply.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{}", 400, "bad_encoding"),
        (gzip.compress(b'{"session_id": "s", "x": [[0.5]]}')[:-9], 400, "bad_encoding"),
        (gzip.compress(b" " * (MAX_BODY_BYTES + 1)), 413, "too_long"),
        (gzip.compress(b" " * 50_000_000), 413, "too_long"),
    ],
    ids=["no-gzip", "cut-short", "too-long", "bomb"],  # gzip's own bytes hold the time
)
def test_a_damaged_body_and_a_bomb_run_nothing(
    http: httpx.Client, body: bytes, status: int, code: str
) -> None:
    """The limit is of what comes out."""
    reply = post(http, "/predict", body, "gzip")
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert http.get("/readyz").status_code == 200


def test_a_compressed_stream_is_read_as_it_comes(service: Server) -> None:
    """Each line that its sender flushes is answered before the next is sent."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    with service.connect() as connection:
        stream = Duplex(connection, "content-encoding: gzip")
        stream.head()
        for step in range(5):
            ask = json.dumps(line("packed", [[0.5]], step=step)).encode() + b"\n"
            stream.send(packer.compress(ask) + packer.flush(zlib.Z_SYNC_FLUSH), end=b"")
            assert stream.read()["step"] == step + 1
        stream.send(packer.flush(), end=b"")
        stream.finish()
        assert stream.rest() == []
        stream.close()


def test_a_stream_that_breaks_in_the_middle_ends_with_an_error_line(http: httpx.Client) -> None:
    """What had come was run, and is answered; the last line says why, and where."""
    lines = b"".join(json.dumps(line("broken", [[0.5]])).encode() + b"\n" for _ in range(3))
    body = gzip.compress(lines) + b"not gzip"
    *done, last = [json.loads(one) for one in post(http, "/stream", body, "gzip").text.splitlines()]
    assert [reply["step"] for reply in done] == [1, 2, 3]
    assert (last["error"]["code"], last["line"]) == ("bad_encoding", 4)


def test_a_snapshot_may_come_compressed(http: httpx.Client) -> None:
    """PUT takes it as POST does."""
    http.post("/predict", json=line("source", [[0.5]])).raise_for_status()
    file = http.get("/sessions/source/snapshot").content
    packed = {"Content-Encoding": "gzip"}
    reply = http.put("/sessions/copy/snapshot", content=gzip.compress(file), headers=packed)
    assert (reply.status_code, reply.json()["step"]) == (200, 1)


def test_nothing_of_ours_failed(service: Server) -> None:
    """After all of this file."""
    assert "Traceback" not in service.text()
