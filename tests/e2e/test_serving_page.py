"""What docs/serving.md says beside its examples: the table of errors, and lines for a proxy."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service import errors
from service.errors import CarouselError, SettingsError
from tests.e2e.conftest import ROOT, Server, free_port
from tests.e2e.test_stream import Duplex, line

PAGE = (ROOT / "docs/serving.md").read_text()
HAPROXY = re.search(r"^```haproxy\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
START_TIMEOUT_S = 20


def test_the_table_of_errors_has_each_with_its_status_and_no_other() -> None:
    """Of all that a client may get; settings stop the start."""
    rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", PAGE, re.MULTILINE)
    table = {(int(status), code) for status, cell in rows for code in re.findall(r"`(\w+)`", cell)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    of_clients = {
        (kind.status, kind.code)
        for kind in kinds
        if issubclass(kind, CarouselError) and kind is not SettingsError
    }
    assert table == of_clients


@contextmanager
def proxied(server: Server, directory: Path) -> Iterator[Server]:
    """The proxy as the page has it, before `server`."""
    assert HAPROXY is not None
    port = free_port()
    lines = HAPROXY[1].replace("bind :8080", f"bind 127.0.0.1:{port}")
    lines = lines.replace("127.0.0.1:3000", f"127.0.0.1:{server.port}")
    config = directory / "haproxy.cfg"
    config.write_text(lines)
    log = directory / "haproxy.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            ["haproxy", "-db", "-f", str(config)], stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield Server(process, port, log)  # type: ignore[arg-type]
        finally:
            process.terminate()


@pytest.mark.needs("haproxy")
def test_haproxy_as_the_page_has_it_holds_nothing_back(server: Server, tmp_path: Path) -> None:
    """A stream is full duplex through it, a forecast comes line by line, an id gets through."""
    with proxied(server, tmp_path) as proxy:
        transport = httpx.HTTPTransport(retries=START_TIMEOUT_S)
        with httpx.Client(base_url=proxy.url, transport=transport, timeout=30) as http:
            while http.get("/readyz").status_code == 503:  # until its first check is through
                continue
            reply = http.post(
                "/predict", json=line("proxied", [[0.5]]), headers={"X-Request-ID": "job-7"}
            )
            assert (reply.json()["step"], reply.headers["x-request-id"]) == (1, "job-7")
            body = {"session_id": "proxied", "horizon": 100_000}
            with http.stream("POST", "/forecast", json=body) as forecast:
                lines = forecast.iter_lines()
                assert json.loads(next(lines))["horizon"] == 100_000
                assert json.loads(next(lines))["step"] == 1  # long before the last is known
        with proxy.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = Duplex(connection)
            assert stream.head()[0] == 200
            for step in range(1, 6):
                stream.send(line("proxied", [[0.5]], step=step))
                assert stream.read()["step"] == step + 1  # before the next line is sent
            stream.finish()
            assert stream.rest() == []
            stream.close()


@pytest.mark.needs("node")
def test_the_javascript_of_the_page_reads_a_forecast_line_by_line(
    server: Server, tmp_path: Path
) -> None:
    """By node's fetch, which is a browser's."""
    httpx.post(server.url + "/predict", json={**line("meter-1", [[0.5]])}).raise_for_status()
    (script,) = re.findall(r"^```javascript\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "read.mjs").write_text(script.replace("http://localhost:3000", server.url))
    done = subprocess.run(
        ["node", "read.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"^\{ step: ", done.stdout, re.MULTILINE)) == 50
    assert "done: true" in done.stdout
