"""The OpenAPI page of a real `bentoml serve`: a valid document, and every example in it is true."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis

from service.catalog import Catalog
from service.config import Config
from service.engine import Engine
from service.key_ring import KeyRing
from service.model import Model
from service.protocols.access import Access
from service.protocols.native import NativeApp, read_request
from service.protocols.openapi import native_paths
from service.protocols.openapi_bodies import OTHER_VERSION, SINE_VERSION
from service.snapshot import Keyring
from service.store.open import open_store
from tests.e2e.conftest import FRAGILE, SERIES, SINE, Server, free_port, serving
from tests.service.build_artifact import Spec, build_artifact
from tests.service.test_engine import run, running
from tests.service.test_native import ACME, ANYBODY, KEYS, ZETA, bearer
from tests.service.test_text import pipeline

LETTERS = "def (x):"
TEXT = Spec(
    "char-rnn", 4, len(LETTERS), ids=len(LETTERS), seed=5, scaling=pipeline(vocabulary=[*LETTERS])
)
NEWER = replace(SINE, seed=9)  # the same ports, other weights
WIDER = replace(SINE, seed=3, hidden_size=9)
PUMP = {"session_id": "pump-7", "x": [[0.1], [0.2]], "step": 0}


HASH = re.compile(r"\b[0-9a-f]{12,16}\b")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in native_paths().items():
        for method, operation in item.items():
            yield path, method.upper(), operation


OPERATIONS = {f"{method} {path}": (path, method, one) for path, method, one in operations()}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is served, and beside it one of which a byte was changed."""
    root = tmp_path_factory.mktemp("page")
    built = {
        name: build_artifact(root, spec)
        for name, spec in {
            **{"older": SINE, "newer": NEWER, "text": TEXT, "series": SERIES, "fragile": FRAGILE},
            "broken": replace(SERIES, seed=12),
        }.items()
    }
    (file,) = built["broken"].glob("*fp32*")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    return built


@pytest.fixture(scope="module")
def service(
    versions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    root = versions["older"].parents[1]
    with serving(
        tmp_path_factory.mktemp("server"),
        CAROUSEL_ARTIFACTS=str(root),
        CAROUSEL_DEFAULT_MODEL=f"sine-cell:{versions['older'].name}",
    ) as server:
        yield server


@pytest.fixture
def http(service: Server) -> Iterator[httpx.Client]:
    """With `pump-7` at step 2, as the page's examples have it, and none of the other sessions."""
    with service.client() as client:
        for session_id in ("pump-7", "pump-8", "file-1", "pump-7-what-if"):
            client.delete(f"/sessions/{session_id}")
        client.post("/predict", json=PUMP).raise_for_status()
        yield client


def test_the_whole_page_is_openapi(http: httpx.Client) -> None:
    """BentoML's part too, by the specification's own schema; every reference leads somewhere."""
    page = http.get("/docs.json").json()
    schemathesis.openapi.from_dict(page).validate()
    names = re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(page))
    assert set(names) <= page["components"]["schemas"].keys()
    schemes = page["components"]["securitySchemes"].keys()
    for _, _, one in OPERATIONS.values():
        assert {name for way in one["security"] for name in way} <= schemes


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_says_all_that_it_may_answer(name: str) -> None:
    """A request id in and out, every refusal in the error's shape, Retry-After where it helps."""
    _, method, operation = OPERATIONS[name]
    assert "X-Request-ID" in {one["name"] for one in operation["parameters"]}
    statuses = operation["responses"].keys()
    assert "405" in statuses
    assert ("415" in statuses) == (method in ("POST", "PUT"))
    for status, response in operation["responses"].items():
        assert "X-Request-ID" in response["headers"]
        assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))
        if int(status) >= 400:
            examples = response["content"]["application/json"]["examples"]
            for code, example in examples.items():
                assert example["value"]["error"]["code"] == code


# What is asked, and what is answered --------------------------------------------------------------


def form(value: object) -> object:
    """What a body looks like without its values."""
    if isinstance(value, dict):
        return {HASH.sub("HASH", key): form(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return "number" if type(value) in (int, float) else type(value).__name__


def told(text: str, kind: str) -> list[object]:
    """The JSON of a body: one, each of an array, a line each, or an event each."""
    if kind == "text/event-stream":
        return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    lines = [json.loads(line) for line in text.splitlines()]
    return lines[0] if isinstance(lines[0], list) else lines


def asked(operation: dict[str, Any]) -> Iterator[tuple[str, str | None, object]]:
    """(example, content type, body) of each that there is; of a file none."""
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        yield "", None, None
    for kind, media in content.items():
        for name, example in media.get("examples", {}).items():
            yield name, kind, example["value"]


EXAMPLES = [
    pytest.param(path, method, operation, kind, body, reply_kind, reply, id=f"{key} {name}")
    for key, (path, method, operation) in OPERATIONS.items()
    for name, kind, body in asked(operation)
    for reply_kind, media in operation["responses"].get("200", {"content": {}})["content"].items()
    for reply_name, reply in media.get("examples", {}).items()
    if name in ("", reply_name)
]


@pytest.mark.parametrize(
    ("path", "method", "operation", "kind", "body", "reply_kind", "reply"), EXAMPLES
)
def test_an_example_sent_to_a_server_gets_the_answer_that_the_page_shows(
    http: httpx.Client,
    versions: dict[str, Path],
    path: str,
    method: str,
    operation: dict[str, Any],
    kind: str | None,
    body: object,
    reply_kind: str,
    reply: dict[str, Any],
) -> None:
    """Field by field, but for the numbers; and as the schema says."""
    if path in ("/predict", "/stream"):
        http.delete("/sessions/pump-7")
    text = body if isinstance(body, str) else json.dumps(body)
    text = text.replace(SINE_VERSION, versions["older"].name)
    text = text.replace(OTHER_VERSION, versions["newer"].name)
    headers = {"Accept": reply_kind}
    if kind is not None:
        headers["Content-Type"] = kind
    response = http.request(
        method,
        path.replace("{session_id}", "pump-7").replace("{name}", "sine-cell"),
        content=None if kind is None else text,
        headers=headers,
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == reply_kind
    shown = reply["value"] if isinstance(reply["value"], str) else json.dumps(reply["value"])
    found, expected = told(response.text, reply_kind), told(shown, reply_kind)
    assert form(found[0]) == form(expected[0])
    assert [form(one) for one in found] == [form(one) for one in expected]
    document = {"openapi": "3.0.2", "info": {"title": "", "version": "1"}, "paths": native_paths()}
    if reply_kind == "application/json":
        schemathesis.openapi.from_dict(document)[path][method].validate_response(response)


def test_a_snapshot_is_restored_as_the_page_shows(http: httpx.Client) -> None:
    """Files have no example in a page."""
    file = http.get("/sessions/pump-7/snapshot").content
    reply = http.put("/sessions/pump-8/snapshot", content=file)
    media = OPERATIONS["PUT /sessions/{session_id}/snapshot"][2]["responses"]["200"]["content"]
    assert form(reply.json()) == form(media["application/json"]["examples"]["begun"]["value"])


# What is refused ----------------------------------------------------------------------------------

SHOWN = {
    code: example["value"]["error"]
    for _, _, operation in OPERATIONS.values()
    for status, response in operation["responses"].items()
    if int(status) >= 400
    for code, example in response["content"]["application/json"]["examples"].items()
}
ELSEWHERE = {  # what only a full disk, only a race, and only a slow model can provoke
    "store_full": "tests/chaos/test_disk_full.py",
    "model_loading": "tests/service/test_engine.py",
    "timed_out": "tests/e2e/test_deadlines.py",
}


def predict(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/predict", json={"session_id": "pump-7", **body})


def changed_snapshot(http: httpx.Client) -> httpx.Response:
    file = bytearray(http.get("/sessions/pump-7/snapshot").content)
    file[-1] ^= 1
    return http.put("/sessions/pump-8/snapshot", content=bytes(file))


def coded(http: httpx.Client, coding: str) -> httpx.Response:
    return http.post("/predict", content=b"{", headers={"Content-Encoding": coding})


def other_under_its_key(http: httpx.Client) -> httpx.Response:
    http.delete("/sessions/pump-7")
    for x in ([[0.1], [0.2]], [[0.3]]):
        body = {"session_id": "pump-7", "x": x}
        reply = http.post("/predict", json=body, headers={"Idempotency-Key": "a-key"})
    return reply


def of_series(http: httpx.Client) -> httpx.Response:
    predict(http, session_id="room-1", x=[[20.0] * 8], model="series-lstm").raise_for_status()
    return http.post("/forecast", json={"session_id": "room-1", "horizon": 3})


def of_broken(http: httpx.Client) -> httpx.Response:
    (broken,) = http.get("/models").json()["broken"]
    reference = f"{broken['name']}:{broken['version']}"
    return predict(http, x=[[20.0] * 8], session_id="pump-8", model=reference)


PROVOKE: dict[str, Callable[[httpx.Client], httpx.Response]] = {
    "invalid_json": lambda h: h.post("/predict", content=b'{"session_id": "pump-7", "x": [[0.3]'),
    "invalid_request": lambda h: h.post("/predict", json={"session_id": "pump-7"}),
    "bad_shape": lambda h: predict(h, x=[[0.3, 0.4]]),
    "unknown_token": lambda h: predict(h, session_id="file-1", x="def Z", model="char-rnn"),
    "not_finite": lambda h: h.post("/predict", content=b'{"session_id": "pump-7", "x": [[NaN]]}'),
    "result_not_finite": lambda h: predict(
        h, session_id="pump-8", x=[[1.0], [7.0]], model="fragile"
    ),
    "too_long": lambda h: h.post("/predict", content=bytes(8_388_609)),
    "unsupported_encoding": lambda h: coded(h, "br"),
    "bad_encoding": lambda h: coded(h, "gzip"),
    "unknown_model": lambda h: predict(h, x=[[0.3]], model="nobody"),
    "session_not_found": lambda h: h.get("/sessions/pump-8"),
    "upgrade_required": lambda h: h.get("/ws"),
    "cannot_forecast": of_series,
    "method_not_allowed": lambda h: h.get("/predict"),
    "step_conflict": lambda h: predict(h, x=[[0.3]], step=9),
    "model_conflict": lambda h: predict(h, x=[[20.0] * 8], model="series-lstm"),
    "idempotency_conflict": other_under_its_key,
    "session_exists": lambda h: h.post("/sessions/pump-7/fork", json={"session_id": "pump-7"}),
    "bad_snapshot": lambda h: h.put("/sessions/pump-8/snapshot", content=b"not a snapshot"),
    "bad_signature": changed_snapshot,
    "session_gone": lambda h: predict(h, session_id="pump-8", x=[[0.3]], step=5),
    "bad_artifact": of_broken,
}


def is_as_shown(error: dict[str, Any]) -> None:
    """The page's example, but for versions, numbers, paths, and which models there are."""

    def steady(text: str) -> str:
        text = HASH.sub("HASH", text)
        text = re.sub(r"\[('[^']*', )*'[^']*'\]", "MODELS", text)
        return re.sub(r"\d+", "N", text)

    shown = SHOWN[error["code"]]
    assert steady(error["message"]) == steady(shown["message"])
    assert form(error) == form(shown)


def test_every_error_of_the_page_is_provoked_somewhere() -> None:
    """Here, or where it says."""
    assert SHOWN.keys() == PROVOKE.keys() | ELSEWHERE.keys() | IN_PROCESS


@pytest.mark.parametrize("code", PROVOKE)
def test_an_error_is_worded_as_the_page_shows(http: httpx.Client, code: str) -> None:
    """By a real server, with the status under which the page has it."""
    reply = PROVOKE[code](http)
    error = reply.json()["error"]
    assert error["code"] == code
    is_as_shown(error)
    assert any(
        code
        in operation["responses"]
        .get(str(reply.status_code), {"content": {}})["content"]
        .get("application/json", {})
        .get("examples", {})
        for _, _, operation in OPERATIONS.values()
    )


IN_PROCESS = frozenset(
    {
        "unauthorized",
        "forbidden",
        "other_tenant",
        "overloaded",
        "draining",
        "incompatible",
        "no_snapshot_key",
        "store_unavailable",
    }
)


def test_errors_of_other_settings_are_worded_as_the_page_shows(
    versions: dict[str, Path], tmp_path: Path
) -> None:
    """Keys, a full queue, a drain, a Redis that is away, and versions that differ: in process."""
    sine = Model.load(versions["older"])
    wider = Model.load(build_artifact(tmp_path, WIDER))
    seen: set[str] = set()

    def app(engine: Engine, keyring: Keyring | None = None, keys: str = "") -> httpx.AsyncClient:
        access = Access(KeyRing(None, keys)) if keys else None
        transport = httpx.ASGITransport(NativeApp(engine, 1 << 20, access, keyring))
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    def note(reply: httpx.Response) -> None:
        is_as_shown(reply.json()["error"])
        seen.add(reply.json()["error"]["code"])

    async def with_keys() -> None:
        signed = Keyring((b"k" * 32,))
        async with running(Catalog([sine])) as engine, app(engine, signed, KEYS) as http:
            note(await http.post("/predict", json=PUMP))
            note(await http.post("/models/sine-cell/promote", headers=bearer(ACME)))
            (await http.post("/predict", json=PUMP, headers=bearer(ACME))).raise_for_status()
            at = "/sessions/pump-7/snapshot"
            file = (await http.get(at, headers=bearer(ACME))).content
            note(await http.put(at, content=file, headers=bearer(ZETA)))

    async def without() -> None:
        async with running(Catalog([sine, wider]), max_queue=1) as engine, app(engine) as http:
            note(await http.post("/models/sine-cell/promote"))
            named = {**PUMP, "model": sine.reference}
            (await http.post("/predict", json=named)).raise_for_status()
            note(await http.get("/sessions/pump-7/snapshot"))
            await engine.submit(read_request(json.dumps(named).encode(), ANYBODY))
            note(await http.post("/predict", json=named))
            engine.drain()
            note(await http.post("/predict", json=named))

    async def without_redis() -> None:
        config = Config(store="redis", redis_url=f"redis://127.0.0.1:{free_port()}/0")
        store = open_store(config)
        async with running(Catalog([sine]), store=store) as engine, app(engine) as http:
            note(await http.post("/predict", json=PUMP))

    for scenario in (with_keys, without, without_redis):
        run(scenario())
    assert seen == IN_PROCESS
