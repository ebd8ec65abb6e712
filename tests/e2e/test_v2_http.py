"""The Open Inference Protocol over HTTP of a real `bentoml serve`, by the real tritonclient."""

import asyncio
import gzip
import json
import shutil
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc.model_config_pb2 as pb
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from service.model import Model
from tests.e2e.conftest import Server, start_server
from tests.e2e.test_http import sequence
from tests.service.build_artifact import Array, build_artifact
from tests.service.test_text import GUARD, JUDGE, SPEAKER, WRITER

MAX_BODY_BYTES = 300_000


@pytest.fixture(scope="module")
def v2_server(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Models of numbers, of text, of classes and of alarms, and a limit that is soon reached."""
    root = tmp_path_factory.mktemp("v2")
    for spec in (WRITER, SPEAKER, JUDGE, GUARD):
        build_artifact(root / "artifacts", spec)
    server = start_server(
        root,
        CAROUSEL_MODELS=f"{artifacts},{root / 'artifacts'}",
        CAROUSEL_MAX_BODY_BYTES=str(MAX_BODY_BYTES),
        CAROUSEL_STORE="memory",
    )
    try:
        server.wait_until_it_listens()
        yield server
    finally:
        server.stop()


@pytest.fixture
def v2(v2_server: Server) -> Iterator[Any]:
    client = triton.InferenceServerClient(f"127.0.0.1:{v2_server.port}", concurrency=16)
    yield client
    client.close()


@pytest.fixture
def http(v2_server: Server) -> Iterator[httpx.Client]:
    with v2_server.client() as client:
        yield client


def tensor(x: Array, datatype: str = "FP32", binary: bool = True, kind: Any = triton) -> Any:
    """The input `x`."""
    made = kind.InferInput("x", list(x.shape), datatype)
    made.set_data_from_numpy(x, binary_data=binary)
    return made


def fp32(x: Array) -> Any:
    return tensor(x.astype(np.float32))


def whole(model: Model, x: Array) -> Array:
    """y (T, ...) FP32 of one sequence, run whole and alone in this process."""
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    return model.decode(y).astype(np.float32)


def x_of(steps: int, seed: int, model: str = "sine-cell") -> Array:
    return sequence(model, steps, seed).astype(np.float32)


def said(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = result.get_response()["parameters"]
    return found


# What a server says of itself -------------------------------------------------------------------


def test_a_server_is_live_and_ready_and_says_what_it_is(v2: Any) -> None:
    """What clients ask first; shared memory is none of its extensions."""
    assert v2.is_server_live() and v2.is_server_ready()
    found = v2.get_server_metadata()
    assert (found["name"], found["version"]) == ("carousel", "0.1.0")
    assert {"sequence", "sequence(string_id)", "binary_tensor_data"} < set(found["extensions"])
    assert not any("shared_memory" in one for one in found["extensions"])


def test_a_model_says_what_it_takes(v2: Any, models: dict[str, Model]) -> None:
    """With its name alone, and with its version."""
    version = models["series-lstm"].version
    assert v2.is_model_ready("series-lstm") and v2.is_model_ready("series-lstm", version)
    assert not v2.is_model_ready("nobody") and not v2.is_model_ready("series-lstm", "1")
    for asked in ("", version):
        found = v2.get_model_metadata("series-lstm", asked)
        assert (found["name"], found["versions"]) == ("series-lstm", [version])
        assert found["platform"] == "onnxruntime_onnx"
        assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1, 8]}]
        assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, -1, 2]}]
    text = v2.get_model_metadata("writer")
    assert text["inputs"] == [{"name": "x", "datatype": "BYTES", "shape": [-1, -1]}]
    assert [one["name"] for one in text["outputs"]] == ["y", "text"]
    with pytest.raises(InferenceServerException, match="model `nobody` is not served") as refused:
        v2.get_model_metadata("nobody")
    assert refused.value.status() == "404"


@pytest.mark.parametrize("name", ["sine-cell", "writer", "judge", "guard"])
def test_a_configuration_is_tritons(v2: Any, name: str) -> None:
    """It parses as the message of Triton's own schema, and is that of a sequence model."""
    config = json_format.ParseDict(v2.get_model_config(name), pb.ModelConfig())
    assert (config.name, config.max_batch_size) == (name, 256)
    assert config.HasField("sequence_batching")
    assert config.sequence_batching.max_sequence_idle_microseconds == 3_600_000_000
    assert config.input[0].dims[0] == -1
    is_text = name == "writer"
    assert config.input[0].data_type == (pb.TYPE_STRING if is_text else pb.TYPE_FP32)


def test_the_index_has_every_version(v2: Any, http: httpx.Client) -> None:
    """All of them are ready here."""
    found = v2.get_model_repository_index()
    assert {"sine-cell", "writer", "judge"} < {one["name"] for one in found}
    assert {one["state"] for one in found} == {"READY"}
    assert http.post("/v2/repository/index", json={"ready": True}).json() == found


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda client: client.load_model("sine-cell"), "the directory of the artifacts"),
        (lambda client: client.unload_model("sine-cell"), "the directory of the artifacts"),
        (lambda client: client.get_trace_settings(), "traces"),
        (lambda client: client.update_trace_settings("sine-cell", {}), "traces"),
        (lambda client: client.get_log_settings(), "the log"),
        (lambda client: client.get_system_shared_memory_status(), "shared memory"),
        (lambda client: client.register_system_shared_memory("a", "/b", 8), "shared memory"),
        (lambda client: client.unregister_cuda_shared_memory(), "shared memory"),
    ],
)
def test_what_is_not_offered_says_so(v2: Any, call: Any, why: str) -> None:
    """As an error that the client can read."""
    with pytest.raises(InferenceServerException, match=why) as refused:
        call(v2)
    assert refused.value.status() == "501"


# Sequences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence_id", [42, 2**64 - 1, "pump-7"])
def test_a_sequence_is_a_session(
    v2: Any, http: httpx.Client, models: dict[str, Model], sequence_id: int | str
) -> None:
    """Begun, gone on with and ended; other protocols know it by its id."""
    x = x_of(12, 1)
    y = []
    for at, flags in ((0, {"sequence_start": True}), (4, {}), (8, {"sequence_end": True})):
        part = fp32(x[np.newaxis, at : at + 4])
        result = v2.infer("sine-cell", [part], sequence_id=sequence_id, **flags)
        y.append(result.as_numpy("y")[0])
        assert said(result) == {
            "sequence_id": sequence_id,
            "step": at + 4,
            "created": at == 0,
            "restarted": False,
        }
        record = http.get(f"/sessions/{sequence_id}")
        assert record.json().get("step") == (None if at == 8 else at + 4)
    assert np.concatenate(y).dtype == np.float32
    assert np.array_equal(np.concatenate(y), whole(models["sine-cell"], x))
    with pytest.raises(InferenceServerException, match="gone") as refused:
        v2.infer("sine-cell", [fp32(x[np.newaxis])], sequence_id=sequence_id)
    assert refused.value.status() == "410"


def test_a_native_session_goes_on_as_a_sequence(v2: Any, http: httpx.Client) -> None:
    """There is one space of ids."""
    http.post(
        "/predict", json={"session_id": "7", "x": [[0.5]] * 3, "model": "sine-cell"}
    ).raise_for_status()
    assert said(v2.infer("sine-cell", [fp32(x_of(2, 1)[np.newaxis])], sequence_id=7))["step"] == 5


def test_a_start_over_a_live_session_begins_it_anew_and_says_so(
    v2: Any, models: dict[str, Model]
) -> None:
    """As Triton's users expect; without a start nothing is ever begun."""
    x = x_of(5, 2)
    first, again = (
        v2.infer("sine-cell", [fp32(x[np.newaxis])], sequence_id=5, sequence_start=True)
        for _ in range(2)
    )
    assert (said(first)["restarted"], said(again)["restarted"]) == (False, True)
    assert (said(again)["created"], said(again)["step"]) == (True, 5)
    assert np.array_equal(again.as_numpy("y")[0], whole(models["sine-cell"], x))
    with pytest.raises(InferenceServerException, match="session `6` is gone"):
        v2.infer("sine-cell", [fp32(x[np.newaxis])], sequence_id=6)


@pytest.mark.parametrize("sequence_id", [0, ""])
def test_without_a_sequence_each_row_is_one_of_its_own(
    v2: Any, http: httpx.Client, models: dict[str, Model], sequence_id: int | str
) -> None:
    """From the initial state, each time; nothing of it stays."""
    x = np.stack([x_of(6, seed, "series-lstm") for seed in range(5)])
    for _ in range(2):
        result = v2.infer("series-lstm", [fp32(x)], sequence_id=sequence_id, request_id="r-1")
        for row, y in zip(x, result.as_numpy("y"), strict=True):
            assert np.array_equal(y, whole(models["series-lstm"], row))
    assert "parameters" not in result.get_response()
    assert result.get_response()["id"] == "r-1"
    assert result.get_response()["model_version"] == models["series-lstm"].version


def test_a_step_makes_a_retry_safe(v2: Any) -> None:
    """The same reply, and no second advance; another step is told where the session stands."""
    x = fp32(x_of(3, 3)[np.newaxis])

    def send(step: int, **flags: Any) -> Any:
        return v2.infer("sine-cell", [x], sequence_id=8, parameters={"step": step}, **flags)

    send(0, sequence_start=True)
    first, retry = send(3), send(3)
    assert retry.get_response() == first.get_response()
    assert np.array_equal(retry.as_numpy("y"), first.as_numpy("y"))
    with pytest.raises(InferenceServerException, match="stands at step 6") as refused:
        send(5)
    assert refused.value.status() == "409"


def test_an_idempotency_key_makes_a_retry_safe(v2: Any) -> None:
    """As a parameter or as a header."""
    x = fp32(x_of(3, 3)[np.newaxis])

    def send(**more: Any) -> int:
        return int(said(v2.infer("sine-cell", [x], sequence_id=9, **more))["step"])

    send(sequence_start=True)
    for more in ({"parameters": {"idempotency_key": "a"}}, {"headers": {"idempotency-key": "a"}}):
        assert send(**more) == 6
    assert send(headers={"idempotency-key": "b"}) == 9


def test_concurrent_sequences_do_not_meet(v2: Any, models: dict[str, Model]) -> None:
    """As perf_analyzer drives a sequence model: many at once, with their flags, whole lengths."""
    config = v2.get_model_config("sine-cell")
    assert "sequence_batching" in config and config["max_batch_size"] > 0
    assert v2.get_model_metadata("sine-cell")["inputs"][0]["shape"][1:] == [-1, 1]
    length, chunk = 6, 4
    inputs = {f"load-{n}": x_of(length * chunk, 100 + n) for n in range(24)}
    y: dict[str, list[Array]] = {name: [] for name in inputs}
    for at in range(length):
        under_way = {
            name: v2.async_infer(
                "sine-cell",
                [fp32(x[np.newaxis, at * chunk : (at + 1) * chunk])],
                outputs=[triton.InferRequestedOutput("y", binary_data=True)],
                sequence_id=name,
                sequence_start=at == 0,
                sequence_end=at == length - 1,
            )
            for name, x in inputs.items()
        }
        for name, request in under_way.items():
            y[name].append(request.get_result().as_numpy("y")[0])
    for name, x in inputs.items():
        assert np.array_equal(np.concatenate(y[name]), whole(models["sine-cell"], x))


def test_the_asyncio_client_works(v2_server: Server, models: dict[str, Model]) -> None:
    """It names gzip in each request, and reads it in replies to inferences alone."""

    async def scenario() -> None:
        url = f"127.0.0.1:{v2_server.port}"
        async with triton_aio.InferenceServerClient(url) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_config("sine-cell"))["name"] == "sine-cell"
            x = np.stack([x_of(500, seed) for seed in range(30)])
            part = tensor(x, kind=triton_aio)
            y = (await client.infer("sine-cell", [part])).as_numpy("y")
            assert np.array_equal(y[29], whole(models["sine-cell"], x[29]))
            with pytest.raises(InferenceServerException, match="no output `z`"):
                await client.infer(
                    "sine-cell", [part], outputs=[triton_aio.InferRequestedOutput("z")]
                )

    asyncio.run(scenario())


def test_statistics_count_what_was_done(v2: Any, http: httpx.Client) -> None:
    """As perf_analyzer reads them: twice, and what lies between is its measurement."""

    def stand() -> dict[str, Any]:
        (found,) = v2.get_inference_statistics("series-lstm")["model_stats"]
        return dict(found)

    def done(part: str) -> tuple[int, int]:
        start, end = (one["inference_stats"][part] for one in (before, after))
        return end["count"] - start["count"], end["ns"] - start["ns"]

    x = np.stack([x_of(4, seed, "series-lstm") for seed in range(6)])
    before = stand()
    began = time.time()
    v2.infer("series-lstm", [tensor(x)])  # six rows, one execution
    row = {"session_id": "counted", "x": x[0].tolist(), "model": "series-lstm", "step": 0}
    for _ in range(2):  # the second is a retry
        http.post("/predict", json=row).raise_for_status()
    with pytest.raises(InferenceServerException):
        v2.infer("series-lstm", [tensor(x[:1])], sequence_id=999)
    after = stand()
    assert after["inference_count"] - before["inference_count"] == 7
    assert after["execution_count"] - before["execution_count"] == 2
    assert done("success")[0] == 8
    assert done("fail")[0] == done("cache_hit")[0] == 1
    assert done("queue")[0] == 9
    assert done("compute_infer")[0] == 7
    assert done("compute_output")[0] == 1  # rows without a sequence have nothing to commit
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert 0 < sum(done(part)[1] for part in parts) <= done("success")[1] + done("fail")[1]
    assert began - 1 <= after["last_inference"] / 1e3 <= time.time() + 0.001
    everything = v2.get_inference_statistics()["model_stats"]
    assert after in everything and len(everything) > 4
    assert v2.get_inference_statistics("series-lstm", after["version"])["model_stats"] == [after]
    with pytest.raises(InferenceServerException, match="model `nobody` is not served"):
        v2.get_inference_statistics("nobody")


# Tensors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("FP64", np.float64),
        ("FP32", np.float32),
        ("FP16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("INT64", np.int64),
        ("INT32", np.int32),
        ("INT16", np.int16),
        ("INT8", np.int8),
        ("UINT64", np.uint64),
        ("UINT32", np.uint32),
        ("UINT16", np.uint16),
        ("UINT8", np.uint8),
    ],
)
def test_numbers_come_in_any_datatype(
    v2: Any, models: dict[str, Model], datatype: str, dtype: Any
) -> None:
    """In raw units; what they are is kept."""
    x = (np.random.default_rng(4).random((2, 7, 8)) * 40).astype(dtype)
    y = v2.infer("series-lstm", [tensor(x, datatype)]).as_numpy("y")
    for row, got in zip(x, y, strict=True):
        assert np.array_equal(got, whole(models["series-lstm"], row.astype(np.float64)))


@pytest.mark.parametrize("in_binary", [True, False])
@pytest.mark.parametrize("out_binary", [True, False])
def test_tensors_travel_as_bytes_or_as_json(
    v2: Any, models: dict[str, Model], in_binary: bool, out_binary: bool
) -> None:
    """The same numbers."""
    x = x_of(5, 5)
    wanted = [triton.InferRequestedOutput("y", binary_data=out_binary)]
    part = tensor(x[np.newaxis], binary=in_binary)
    result = v2.infer("sine-cell", [part], outputs=wanted)
    assert ("data" in result.get_output("y")) is not out_binary
    assert np.array_equal(result.as_numpy("y")[0], whole(models["sine-cell"], x))


def test_json_may_be_nested_or_flat(http: httpx.Client) -> None:
    """As its shape says; the reply is flat."""
    replies = [
        http.post(
            "/v2/models/sine-cell/infer",
            json={"inputs": [{"name": "x", "shape": [2, 2, 1], "datatype": "FP64", "data": data}]},
        ).json()
        for data in ([0.1, 0.2, 0.3, 0.4], [[[0.1], [0.2]], [[0.3], [0.4]]])
    ]
    assert replies[0] == replies[1]
    (y,) = replies[0]["outputs"]
    assert (y["shape"], len(y["data"])) == ([2, 2, 1], 4)


def test_text_comes_as_bytes_and_goes_as_bytes(v2: Any) -> None:
    """An element is one text, or a token of one."""

    def send(model: str, texts: list[list[bytes]], *wanted: str, binary: bool = True) -> Any:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in wanted]
        part = tensor(np.array(texts, object), "BYTES", binary)
        return v2.infer(model, [part], outputs=outputs)

    of_text = send("writer", [[b"a bad cab"], [b"fed a bed"]], "text")
    assert of_text.as_numpy("text").shape == (2, 1)
    assert [len(text) for text in of_text.as_numpy("text")[:, 0]] == [9, 9]
    of_tokens = send("writer", [[bytes([c]) for c in b"a bad cab"]], "text", binary=False)
    assert of_tokens.as_numpy("text")[0, 0].encode() == of_text.as_numpy("text")[0, 0]
    words = send("speaker", [[b"to", b" ", b"be"]], "tokens", "y")
    assert [one["name"] for one in words.get_response()["outputs"]] == ["tokens", "y"]
    assert words.as_numpy("tokens").shape == (1, 3)
    assert words.as_numpy("y").shape == (1, 3, 5)
    with pytest.raises(InferenceServerException, match='"z" at position 0'):
        send("writer", [[b"z"]])
    with pytest.raises(InferenceServerException, match="rows of `x` have 1 to 2 steps"):
        send("writer", [[b"a"], [b"ab"]])


def test_what_the_pipeline_reads_is_an_output(v2: Any) -> None:
    """All outputs, where none is asked for."""
    x = np.random.default_rng(6).normal(size=(2, 5, 2)).astype(np.float32)
    judged = v2.infer("judge", [tensor(x)])
    y, labels = judged.as_numpy("y"), judged.as_numpy("labels")
    assert [[b"calm", b"loud", b"off"][n] for n in y[1].argmax(axis=1)] == labels[1].tolist()
    assert np.allclose(judged.as_numpy("probabilities").sum(axis=2), 1.0)
    guarded = v2.infer("guard", [tensor(x)])
    assert guarded.as_numpy("alarm").dtype == bool
    assert np.array_equal(guarded.as_numpy("alarm"), guarded.as_numpy("y")[..., 0] > 0.75)
    with pytest.raises(InferenceServerException, match="`guard` has no output `text`") as refused:
        v2.infer("guard", [tensor(x)], outputs=[triton.InferRequestedOutput("text")])
    assert refused.value.status() == "400"


# Compression ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["gzip", "deflate", None])
@pytest.mark.parametrize("got", ["gzip", "deflate", None])
def test_bodies_may_be_compressed(
    v2: Any, models: dict[str, Model], sent: str | None, got: str | None
) -> None:
    """Both ways, by each of the client's algorithms; the bytes after the JSON too."""
    x = np.stack([x_of(600, seed) for seed in range(8)])
    result = v2.infer(
        "sine-cell",
        [tensor(x)],
        request_compression_algorithm=sent,
        response_compression_algorithm=got,
    )
    assert np.array_equal(result.as_numpy("y")[7], whole(models["sine-cell"], x[7]))


def test_a_reply_of_some_size_is_compressed_for_who_takes_it(http: httpx.Client) -> None:
    """JSON, here, of 2,000 steps."""
    body = {
        "inputs": [{"name": "x", "shape": [1, 2000, 1], "datatype": "FP32", "data": [0] * 2000}]
    }
    for coding, read in (("gzip", gzip.decompress), ("deflate", zlib.decompress)):
        with http.stream(
            "POST",
            "/v2/models/sine-cell/infer",
            json=body,
            headers={"accept-encoding": coding},
        ) as reply:
            assert reply.headers["content-encoding"] == coding
            raw = b"".join(reply.iter_raw())
            assert int(reply.headers["content-length"]) == len(raw)
            assert len(json.loads(read(raw))["outputs"][0]["data"]) == 2000
    plain = http.post("/v2/models/sine-cell/infer", json=body, headers={"accept-encoding": "br"})
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused(http: httpx.Client, coding: str) -> None:
    """The limit of a body counts what comes out of it."""
    pack = gzip.compress if coding == "gzip" else zlib.compress
    reply = http.post(
        "/v2/models/sine-cell/infer",
        content=pack(b" " * (100 * MAX_BODY_BYTES)),
        headers={"content-encoding": coding},
    )
    assert reply.status_code == 413
    assert list(reply.json()) == ["error"]


# Without a client -------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_is_a_client_too(v2_server: Server) -> None:
    """JSON in, JSON out."""
    body = {
        "id": "1",
        "inputs": [{"name": "x", "shape": [1, 2, 1], "datatype": "FP32", "data": [0.1, 0.2]}],
        "parameters": {"sequence_id": "curl", "sequence_start": True},
    }
    url = f"{v2_server.url}/v2/models/sine-cell/infer"
    done = subprocess.run(["curl", "-s", url, "-d", json.dumps(body)], capture_output=True)
    reply = json.loads(done.stdout)
    assert (reply["id"], reply["parameters"]["step"]) == ("1", 2)
    assert reply["outputs"][0]["shape"] == [1, 2, 1]


def test_the_log_has_no_traceback(v2_server: Server) -> None:
    """After all of the above."""
    assert "Traceback" not in v2_server.text()
