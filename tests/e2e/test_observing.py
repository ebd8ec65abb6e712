"""Metrics, spans and logs of a real server with two workers; the dashboard and the alerts."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests import promql
from tests.e2e.conftest import ROOT, Server, start_server
from tests.e2e.documents import commands, steady
from tests.e2e.otlp import Collector, collecting

DOCS = (ROOT / "docs/observing.md").read_text()
OBSERVABILITY = ROOT / "deploy/observability"
OF_A_SCRAPE = {"job", "instance"}  # labels that Prometheus adds
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
WORKERS = 2
SECRET = 0.31415926  # in every x
PATIENCE_S = 20

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def watched(
    artifacts: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Two workers, all that they tell turned on, after one of each kind of request."""
    server = start_server(
        tmp_path_factory.mktemp("watched"),
        CAROUSEL_ARTIFACTS=str(artifacts),
        CAROUSEL_DEFAULT_MODEL="sine-cell",
        CAROUSEL_WORKERS=str(WORKERS),
        CAROUSEL_LOG_FORMAT="json",
        CAROUSEL_ACCESS_LOG="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}",
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    try:
        server.wait_until_it_listens()
        wait_for(lambda: value(server, "carousel_workers") == WORKERS)
        ask(server)
        yield server
    finally:
        server.stop()


# What /v2/models/stats is made of: panels show the same as histograms.
OF_STATISTICS = {"carousel_model_seconds", "carousel_model_last_request_timestamp_seconds"}


def ask(server: Server) -> None:
    """30 sessions of one step each, over new connections so that both workers answer; and more."""
    url = server.url
    for n in range(30):
        httpx.post(url + "/predict", json=body(f"s-{n}"))
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "traced-1"}
    httpx.post(url + "/predict", json={**body("s-0"), "step": 1}, headers=headers)
    httpx.post(url + "/predict", json={**body("s-0"), "step": 1})  # a retry
    assert httpx.post(url + "/predict", json={**body("s-0"), "step": 9}).status_code == 409
    assert httpx.post(url + "/predict", content=b"{").status_code == 400
    unsampled = {"traceparent": f"00-{TRACE[::-1]}-{PARENT}-00"}
    httpx.post(url + "/predict", json=body("quiet"), headers=unsampled)
    over = {"session_id": "f", "model": "fragile", "x": [[1e30]]}
    assert httpx.post(url + "/predict", json=over).status_code in (400, 422)
    lines = b"".join(json.dumps(body(f"s-{n}")).encode() + b"\n" for n in range(8))
    assert len(httpx.post(url + "/stream", content=lines).text.splitlines()) == 8
    assert "done" in httpx.post(url + "/forecast", json={"session_id": "s-0", "horizon": 5}).text


def body(session_id: str) -> dict[str, object]:
    return {"session_id": session_id, "x": [[SECRET]]}


def scrape(server: Server) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """Of all series that have these labels."""
    return sum(
        number
        for (its_name, its_labels), number in samples.items()
        if its_name == name and labels.items() <= dict(its_labels).items()
    )


def value(server: Server, name: str, **labels: str) -> float:
    return total(scrape(server), name, **labels)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_the_workers_counted_is_added(watched: Server) -> None:
    """Whichever of them answers /metrics; the last of it is a second old."""
    wait_for(lambda: value(watched, "carousel_requests_total", outcome="done") == 41)
    for _ in range(4):
        found = scrape(watched)
        assert total(found, "carousel_requests_total", protocol="predict", outcome="done") == 32
        assert total(found, "carousel_requests_total", protocol="stream", outcome="done") == 8
        assert total(found, "carousel_requests_total", protocol="forecast", outcome="done") == 1
        assert total(found, "carousel_requests_total", outcome="replayed") == 1
        assert total(found, "carousel_requests_total", outcome="refused") == 2
        assert total(found, "carousel_requests_total", outcome="failed") == 0
        assert total(found, "carousel_requests_replayed_total") == 1
        assert total(found, "carousel_step_conflicts_total") == 1
        assert total(found, "carousel_requests_refused_total", reason="invalid_json") == 1
        assert total(found, "carousel_steps_total", model="sine-cell") == 40
        assert total(found, "carousel_sessions_begun_total", model="sine-cell") == 31
        assert total(found, "carousel_request_seconds_count") == 44
        assert total(found, "carousel_request_seconds_bucket", le="+Inf") == 44
        assert total(found, "carousel_batch_rows_sum", model="sine-cell") >= 40
        assert total(found, "carousel_forecast_steps_total") >= 4


def test_what_the_workers_share_is_not_added(watched: Server) -> None:
    """Live sessions are the store's, and each version was proven once in each worker."""
    for _ in range(4):
        found = scrape(watched)
        assert total(found, "carousel_sessions_live") == 31
        assert total(found, "carousel_model_golden_passed", model="sine-cell") == 1
        assert total(found, "carousel_workers") == WORKERS
        assert total(found, "carousel_draining") == total(found, "carousel_queue_depth") == 0
        assert total(found, "carousel_streams_open", protocol="stream") == 0


def test_no_series_is_of_a_session_or_a_path(watched: Server) -> None:
    """Labels are those that the documentation says, and their values few."""
    text = httpx.get(watched.url + "/metrics").text
    ours = [line for line in text.splitlines() if line.startswith("carousel_")]
    assert ours
    assert not [line for line in ours if "s-1" in line or "/predict" in line]


# The documentation, the dashboard, the alerts ----------------------------------------------------


@pytest.mark.needs("curl")
def test_the_curl_line_prints_what_the_document_shows(watched: Server) -> None:
    """But for the number, as here are two workers."""
    ((command, shown),) = [one for one in commands(DOCS) if one[0].startswith("curl")]
    local = command.replace("localhost:3000", f"127.0.0.1:{watched.port}")
    done = subprocess.run(["bash", "-c", local], capture_output=True, text=True, check=True)
    assert steady(done.stdout) == steady("\n".join(shown))


def documented() -> dict[str, tuple[str, set[str]]]:
    """metric -> its kind and labels, as the table of docs/observing.md says."""
    rows = re.findall(r"^\| `(carousel_\w+)` \| (\w+) \|([^|]*)\|", DOCS, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def shown(server: Server) -> dict[str, tuple[str, set[str]]]:
    """metric -> its kind and labels, as /metrics shows them."""
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(httpx.get(server.url + "/metrics").text):
        if family.name.startswith("carousel_") and family.samples:
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            found[name] = (family.type, labels)
    return found


def test_the_table_of_metrics_is_what_the_server_shows(watched: Server) -> None:
    """Every name, its kind and its labels, and no other."""
    assert documented() == shown(watched)


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and the expression: of the dashboard, its variables and the alerts."""
    board = json.loads((OBSERVABILITY / "grafana/carousel.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for group in yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def plain(expression: str) -> str:
    """Without what is Grafana's own: label_values(METRIC, LABEL) and variables in ranges."""
    inner = re.fullmatch(r"label_values\((.*), (\w+)\)", expression)
    return f"sum by ({inner[2]}) ({inner[1]})" if inner else expression


def test_the_dashboard_and_the_alerts_ask_for_what_there_is(watched: Server) -> None:
    """Each metric of each expression is a series of this server, and each label one of its own."""
    there = {
        family_sample.name: set(family_sample.labels)
        for family in text_string_to_metric_families(httpx.get(watched.url + "/metrics").text)
        for family_sample in family.samples
    } | {"up": set()}
    used: set[str] = set()
    for where, expression in expressions():
        asked = promql.read(plain(expression))
        assert asked.metrics, where
        own: set[str] = set()
        for metric, labels in asked.metrics.items():
            assert metric in there, f"{where}: {metric}"
            assert labels <= there[metric] | OF_A_SCRAPE, f"{where}: {metric}"
            own |= there[metric]
        assert asked.groupings <= own | OF_A_SCRAPE, where
        used |= asked.metrics.keys()
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert set(documented()) - OF_STATISTICS <= stems, "a metric that no panel shows"


def test_panels_do_not_lie_on_each_other() -> None:
    """And each has a title and an id of its own."""
    panels = json.loads((OBSERVABILITY / "grafana/carousel.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)
    assert all(panel["title"] for panel in panels)


def test_the_compose_file_mounts_files_that_are_there() -> None:
    """And Grafana is told of the Prometheus beside it."""
    services = yaml.safe_load((OBSERVABILITY / "compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (OBSERVABILITY / source).exists(), source
    source = OBSERVABILITY / "grafana/provisioning/datasources/prometheus.yaml"
    (prometheus,) = yaml.safe_load(source.read_text())["datasources"]
    address = prometheus["url"].removeprefix("http://")
    assert f"--web.listen-address={address}" in services["prometheus"]["command"]


# Spans ------------------------------------------------------------------------------------------


def test_a_request_is_a_child_of_the_span_that_its_client_names(
    watched: Server, collector: Collector
) -> None:
    """Its batch is its child, and read, run and commit are the batch's."""
    wait_for(lambda: any(span.trace == TRACE for span in collector.named("batch")))
    mine = {span.name: span for span in collector.spans if span.trace == TRACE}
    request, batch = mine["request"], mine["batch"]
    assert request.service == "carousel"
    assert request.parent == PARENT
    assert request.attributes["carousel.request_id"] == "traced-1"
    assert request.attributes["carousel.protocol"] == "predict"
    assert request.attributes["carousel.model"] == "sine-cell"
    assert request.attributes["carousel.outcome"] == "done"
    assert request.attributes["carousel.steps"] == 1
    assert (batch.parent, batch.links) == (request.id, (request.id,))
    assert (batch.attributes["carousel.rows"], batch.attributes["carousel.steps"]) == (1, 1)
    parts = [mine["read"], mine["run"], mine["commit"]]
    assert [part.parent for part in parts] == [batch.id] * 3
    times = [request.begin_ns, batch.begin_ns, *(t for p in parts for t in (p.begin_ns, p.end_ns))]
    assert times == sorted(times)
    assert request.end_ns >= batch.end_ns >= times[-1]


def test_a_batch_is_linked_to_all_of_its_requests(collector: Collector, watched: Server) -> None:
    """Eight lines of a stream come together, and a line waits for the one before of its session."""
    wait_for(lambda: len(streamed(collector)) == 8)
    requests = {span.id for span in streamed(collector)}
    batches = [span for span in collector.named("batch") if set(span.links) <= requests]
    assert sorted(link for span in batches for link in span.links) == sorted(requests)
    for batch in batches:
        assert batch.parent == batch.links[0]
        assert batch.attributes["carousel.jobs"] == len(batch.links)


def streamed(collector: Collector) -> list[Any]:
    found = collector.named("request")
    return [span for span in found if span.attributes["carousel.protocol"] == "stream"]


def test_what_its_client_does_not_trace_has_no_span(watched: Server, collector: Collector) -> None:
    """The flag of `traceparent` decides, by the default sampler."""
    wait_for(lambda: len(collector.named("request")) >= 43)
    assert not [span for span in collector.spans if span.trace == TRACE[::-1]]


def test_refusals_are_spans_that_blame_the_client(watched: Server, collector: Collector) -> None:
    """With the error's code; only an error of ours marks the span as failed."""
    wait_for(lambda: bool(refused(collector)))
    (conflict,) = refused(collector)
    assert conflict.attributes["carousel.outcome"] == "refused"
    assert not conflict.is_error


def refused(collector: Collector) -> list[Any]:
    return [s for s in collector.spans if s.attributes.get("error.type") == "step_conflict"]


def test_spans_hold_neither_payloads_nor_sessions(watched: Server, collector: Collector) -> None:
    """Nor the digits of an x or a session's id."""
    wait_for(lambda: len(collector.named("request")) >= 43)
    sent = b"".join(collector.raw)
    assert b"0.3141" not in sent
    assert b"s-1" not in sent
    values = {str(v) for span in collector.spans for v in span.attributes.values()}
    assert not [value for value in values if "0.3141" in value]


# Logs -------------------------------------------------------------------------------------------


def test_every_line_is_one_json_object(watched: Server) -> None:
    """BentoML's own too, with a time, a level and an event."""
    lines = [json.loads(line) for line in watched.text().splitlines()]
    assert {"carousel", "carousel.model", "carousel.access", "bentoml.serve"} <= {
        line["logger"] for line in lines
    }
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] in ("info", "warning")
        assert line["event"]


def test_an_access_line_says_what_was_asked_and_what_became_of_it(watched: Server) -> None:
    """One of the HTTP request, one of the request to the engine, with one id; and no payload."""
    lines = [json.loads(line) for line in watched.text().splitlines()]
    http, request = (
        next(one for one in lines if one["event"] == event and one["request_id"] == "traced-1")
        for event in ("http", "request")
    )
    assert (http["method"], http["path"], http["status"]) == ("POST", "/predict", 200)
    assert (request["session_id"], request["model"]) == ("s-0", "sine-cell")
    assert (request["protocol"], request["outcome"], request["steps"]) == ("predict", "done", 1)
    assert 0 < request["duration_ms"] < http["duration_ms"] < 60_000
    conflicts = [one for one in lines if one.get("code") == "step_conflict"]
    assert [one["outcome"] for one in conflicts] == ["refused"]
    assert "0.3141" not in watched.text()
