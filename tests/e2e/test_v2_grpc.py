"""The Open Inference Protocol over gRPC of a real `bentoml serve` of two workers, by tritonclient.

The last test ends the server.
"""

import asyncio
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from service.model import Model
from tests.e2e.conftest import Server, Start, start_server
from tests.e2e.test_http import sequence
from tests.service.build_artifact import Array

WORKER = "_bentoml_impl.worker.service"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def rpc(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers that share the port and the sessions."""
    server = start_server(
        tmp_path_factory.mktemp("rpc"),
        CAROUSEL_ARTIFACTS=str(artifacts),
        CAROUSEL_WORKERS="2",
        CAROUSEL_MAX_BODY_BYTES="1000000",
    )
    try:
        server.wait_until_it_listens()
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(rpc: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(rpc.grpc_address) as client:
        yield client


@pytest.fixture
def channel(rpc: Server) -> Iterator[Any]:
    with grpc.insecure_channel(rpc.grpc_address) as channel:
        yield channel


@pytest.fixture
def http(rpc: Server) -> Iterator[httpx.Client]:
    with rpc.client() as client:
        yield client


def x_of(steps: int, seed: int, model: str = "sine-cell") -> Array:
    return sequence(model, steps, seed).astype(np.float32)


def whole(model: Model, x: Array) -> Array:
    """y (T, ...) FP32 of one sequence, run whole and alone in this process."""
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    return model.decode(y).astype(np.float32)


def tensor(x: Array, kind: Any = triton) -> list[Any]:
    """The inputs: `x` (T, ...) as one row."""
    made = kind.InferInput("x", [1, *x.shape], "FP32")
    made.set_data_from_numpy(x[np.newaxis].astype(np.float32))
    return [made]


def said(result: Any) -> dict[str, Any]:
    """The parameters of a reply."""
    parameters = result.get_response().parameters
    return {
        name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in parameters.items()
    }


class Stream:
    """A stream of tritonclient's, as a queue of what its callback is given."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self.replies.put((result, error)))

    def send(self, x: Array, model: str = "sine-cell", **options: Any) -> None:
        self.client.async_stream_infer(model, tensor(x), **options)

    def read(self) -> Any:
        """The next reply; raises its error."""
        result, error = self.replies.get(timeout=30)
        if error is not None:
            raise error
        return result


# One request ------------------------------------------------------------------------------------


def test_a_server_says_what_it_is(client: Any, models: dict[str, Model]) -> None:
    """What clients ask before their first inference."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("sine-cell") and not client.is_model_ready("nobody")
    assert "sequence" in client.get_server_metadata().extensions
    version = models["series-lstm"].version
    found = client.get_model_metadata("series-lstm", version, as_json=True)
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "-1", "8"]}]
    config = client.get_model_config("series-lstm").config
    assert (config.max_batch_size, config.input[0].dims) == (256, [-1, 8])
    assert config.HasField("sequence_batching")
    index = client.get_model_repository_index(as_json=True)["models"]
    assert {one["name"] for one in index} == {"fragile", "series-lstm", "sine-cell"}
    client.unregister_system_shared_memory()  # as Triton's examples begin
    assert not client.get_system_shared_memory_status().regions
    refusals: list[Callable[[], Any]] = [
        lambda: client.register_system_shared_memory("a", "/a", 8),
        lambda: client.load_model("sine-cell"),
        lambda: client.update_log_settings({"log_verbose_level": 1}),
    ]
    for refused in refusals:
        with pytest.raises(InferenceServerException) as why:
            refused()
        assert why.value.status() == "StatusCode.UNIMPLEMENTED"
    assert not client.get_log_settings().settings and not client.get_trace_settings().settings


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_a_request_without_a_sequence_leaves_nothing(
    client: Any, channel: Any, models: dict[str, Model], compression: str | None
) -> None:
    """Its rows are sequences of their own, raw bytes or lists, compressed or not."""
    x = np.stack([x_of(50, 1, "series-lstm"), x_of(50, 2, "series-lstm")])
    inputs = [triton.InferInput("x", list(x.shape), "FP32")]
    inputs[0].set_data_from_numpy(x)
    version = models["series-lstm"].version
    result = client.infer(
        "series-lstm", inputs, version, request_id="r-1", compression_algorithm=compression
    )
    reply = result.get_response()
    assert (reply.model_name, reply.model_version, reply.id) == ("series-lstm", version, "r-1")
    y = result.as_numpy("y")
    for row, expected in enumerate(x):
        assert np.array_equal(y[row], whole(models["series-lstm"], expected))
    message = service_pb2.ModelInferRequest(model_name="series-lstm")
    message.inputs.add(name="x", datatype="FP64", shape=x.shape)
    message.inputs[0].contents.fp64_contents.extend(x.ravel().tolist())
    message.parameters["binary_data_output"].bool_param = False
    listed = raw_infer(channel)(message)
    assert not listed.raw_output_contents
    assert np.array_equal(listed.outputs[0].contents.fp32_contents, y.ravel())


def raw_infer(channel: Any) -> Any:
    """ModelInfer of messages that tritonclient would not make."""
    return channel.unary_unary(
        INFER,
        request_serializer=lambda one: one if isinstance(one, bytes) else one.SerializeToString(),
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


@pytest.mark.parametrize("sequence_id", [2**63 - 1, "pump-7"])
def test_a_sequence_is_a_session(
    client: Any, http: httpx.Client, models: dict[str, Model], sequence_id: int | str
) -> None:
    """An integer or a string; the same that other protocols know, until it ends."""
    x, session = x_of(30, 3), f"/sessions/{sequence_id}"
    y = []
    for at in range(0, 30, 10):
        options = {"sequence_start": at == 0, "sequence_end": at == 20}
        result = client.infer(
            "sine-cell", tensor(x[at : at + 10]), sequence_id=sequence_id, **options
        )
        assert said(result)["step"] == at + 10
        y.append(result.as_numpy("y")[0])
        assert http.get(session).status_code == (404 if at == 20 else 200)
    assert np.array_equal(np.concatenate(y), whole(models["sine-cell"], x))
    with pytest.raises(InferenceServerException, match="is gone or never began") as gone:
        client.infer("sine-cell", tensor(x[:1]), sequence_id=sequence_id)
    assert gone.value.status() == "StatusCode.NOT_FOUND"


def test_a_start_on_a_live_sequence_begins_it_anew_and_says_so(
    client: Any, models: dict[str, Model]
) -> None:
    """As Triton's users expect; `restarted` in the reply."""
    x = x_of(5, 4)
    for restarted in (False, True, True):
        result = client.infer("sine-cell", tensor(x), sequence_id=11, sequence_start=True)
        assert (said(result)["created"], said(result)["restarted"]) == (True, restarted)
        assert np.array_equal(result.as_numpy("y")[0], whole(models["sine-cell"], x))


def test_a_request_with_its_step_is_safe_to_send_again(client: Any, channel: Any) -> None:
    """The same reply; any other step is ABORTED, with the step that is expected."""
    x = tensor(x_of(3, 5))
    client.infer("sine-cell", x, sequence_id="again", sequence_start=True)
    replies = [
        client.infer("sine-cell", x, sequence_id="again", parameters={"step": 3}).get_response()
        for _ in range(2)
    ]
    assert replies[0].raw_output_contents == replies[1].raw_output_contents
    with pytest.raises(InferenceServerException, match="stands at step 6") as conflict:
        client.infer("sine-cell", x, sequence_id="again", parameters={"step": 9})
    assert conflict.value.status() == "StatusCode.ABORTED"


def test_tritons_asyncio_client(rpc: Server, models: dict[str, Model]) -> None:
    """Inferences at once, and a stream."""
    x = x_of(40, 6)

    async def scenario() -> None:
        async with triton_aio.InferenceServerClient(rpc.grpc_address) as client:

            async def sequence_of(number: int) -> None:
                for at in range(0, 40, 20):
                    result = await client.infer(
                        "sine-cell",
                        tensor(x[at : at + 20], triton_aio),
                        sequence_id=f"aio-{number}",
                        sequence_start=at == 0,
                    )
                assert np.array_equal(result.as_numpy("y")[0], whole(models["sine-cell"], x)[20:])

            await asyncio.gather(*(sequence_of(number) for number in range(20)))

            async def requests() -> Any:
                for at in range(40):
                    yield {
                        "model_name": "sine-cell",
                        "inputs": tensor(x[at : at + 1], triton_aio),
                        "sequence_id": "aio-stream",
                        "sequence_start": at == 0,
                    }

            y = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                y.append(result.as_numpy("y")[0])
            assert np.array_equal(np.concatenate(y), whole(models["sine-cell"], x))

    asyncio.run(scenario())


def test_statistics_count_inferences_of_both_workers(client: Any) -> None:
    """Whatever the protocol; here of one model, of its only version."""
    (before,) = client.get_inference_statistics("fragile").model_stats
    assert before.inference_count == 0
    for _ in range(5):
        client.infer("fragile", tensor(x_of(1, 1)))
    deadline = time.monotonic() + 10
    while (found := client.get_inference_statistics("fragile").model_stats[0]) == before:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (found.inference_count, found.inference_stats.success.count) == (5, 5)
    assert 0 < found.execution_count <= 5 and found.inference_stats.compute_infer.ns > 0
    names = {one.name for one in client.get_inference_statistics().model_stats}
    assert names == {"fragile", "series-lstm", "sine-cell"}


# Streams ----------------------------------------------------------------------------------------


def test_many_sequences_share_a_stream_each_in_its_order(
    client: Any, models: dict[str, Model]
) -> None:
    """Interleaved, of two models; every reply says that it is its request's last."""
    names = ["sine-cell", "series-lstm"] * 4
    inputs = [x_of(25, 10 + n, name) for n, name in enumerate(names)]
    stream = Stream(client)
    for at in range(25):
        for n, name in enumerate(names):
            stream.send(
                inputs[n][at : at + 1],
                name,
                sequence_id=f"shared-{n}",
                sequence_start=at == 0,
                sequence_end=at == 24,
                request_id=f"{n}/{at}",
                enable_empty_final_response=True,
            )
    got: dict[int, list[Any]] = {n: [] for n in range(len(names))}
    for _ in range(25 * len(names)):
        result = stream.read()
        assert said(result)["triton_final_response"] is True
        got[int(result.get_response().id.partition("/")[0])].append(result)
    for n, results in got.items():
        assert [one.get_response().id for one in results] == [f"{n}/{at}" for at in range(25)]
        y = np.concatenate([one.as_numpy("y")[0] for one in results])
        assert np.array_equal(y, whole(models[names[n]], inputs[n]))
    client.stop_stream()


def test_a_reply_comes_while_the_stream_is_still_being_sent(
    client: Any, models: dict[str, Model]
) -> None:
    """Closed loop: each request is made of the reply before it."""
    stream, x, xs, ys = Stream(client), x_of(1, 7), [], []
    for step in range(30):
        stream.send(x, sequence_id="loop", sequence_start=step == 0)
        xs.append(x)
        x = stream.read().as_numpy("y")[0]
        ys.append(x)
    assert np.array_equal(np.concatenate(ys), whole(models["sine-cell"], np.concatenate(xs)))


def test_a_refused_request_does_not_end_its_stream(channel: Any) -> None:
    """Its error has its id, and our code for programs; the sequence stands where it stood."""
    x = x_of(2, 8)
    good = service_pb2.ModelInferRequest(model_name="sine-cell", id="good")
    good.inputs.add(name="x", datatype="FP32", shape=(1, *x.shape))
    good.raw_input_contents.append(x.tobytes())
    good.parameters["sequence_id"].uint64_param = 77
    bad = service_pb2.ModelInferRequest()
    bad.CopyFrom(good)
    bad.id = "bad"
    bad.raw_input_contents[0] = np.full_like(x, np.nan).tobytes()
    sent: queue.Queue[Any] = queue.Queue()
    stub = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
    replies = stub(iter(sent.get, None))
    good.parameters["sequence_start"].bool_param = True
    sent.put(good)
    assert next(replies).infer_response.parameters["step"].int64_param == 2
    sent.put(bad)
    reply = next(replies)
    assert reply.error_message == "row 0 of `x` is not finite"
    said = reply.infer_response
    assert (said.id, said.parameters["carousel-error"].string_param) == ("bad", "not_finite")
    assert said.parameters["sequence_id"].uint64_param == 77
    good.parameters["sequence_start"].bool_param = False
    sent.put(good)
    assert next(replies).infer_response.parameters["step"].int64_param == 4
    sent.put(None)
    assert list(replies) == []


GONE = """
import queue, sys
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
got = queue.Queue()
client.start_stream(lambda result, error: got.put(result))
x = triton.InferInput("x", [1, 1, 1], "FP32")
for step in range(500):
    x.set_data_from_numpy(np.full((1, 1, 1), step / 500, np.float32))
    client.async_stream_infer(
        "sine-cell", [x], sequence_id="gone", sequence_start=step == 0, parameters={"step": step}
    )
got.get()
print("one", flush=True)
sys.stdin.read()
"""


def test_a_client_that_is_killed_leaves_whole_steps_only(
    rpc: Server, client: Any, http: httpx.Client, models: dict[str, Model]
) -> None:
    """By SIGKILL, in the middle of its stream; the session goes on from where it stands."""
    command = [sys.executable, "-c", GONE, rpc.grpc_address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"one\n"
        process.kill()
    x = (np.arange(600, dtype=np.float32) / 500).reshape(-1, 1)
    step = http.get("/sessions/gone").json()["step"]
    while True:  # the steps that had started may still be on their way
        assert 1 <= step <= 500
        try:
            result = client.infer(
                "sine-cell", tensor(x[step:]), sequence_id="gone", parameters={"step": step}
            )
            break
        except InferenceServerException as conflict:
            assert conflict.status() == "StatusCode.ABORTED"
            step = http.get("/sessions/gone").json()["step"]
    assert np.array_equal(result.as_numpy("y")[0], whole(models["sine-cell"], x)[step:])


def test_a_slow_reader_slows_only_itself(channel: Any, client: Any, http: httpx.Client) -> None:
    """The server stops reading from it, and answers others meanwhile."""
    x = np.full((1000, 1), 0.1, np.float32)
    message = service_pb2.ModelInferRequest(model_name="sine-cell")
    message.inputs.add(name="x", datatype="FP32", shape=(1, *x.shape))
    message.raw_input_contents.append(x.tobytes())
    message.parameters["sequence_id"].string_param = "slow"
    message.parameters["sequence_start"].bool_param = True
    sent = [0]
    over = threading.Event()

    def requests() -> Iterator[Any]:
        while not over.is_set():
            sent[0] += 1
            yield message
            message.parameters["sequence_start"].bool_param = False

    stub = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
    replies = stub(requests())  # and reads none of them
    session, before, now = "/sessions/slow", (-1, -1), (0, 0)
    deadline = time.monotonic() + 60
    while now != before:  # what was read is still being run for a while
        assert time.monotonic() < deadline
        client.infer("sine-cell", tensor(x[:1]), sequence_id="quick", sequence_start=True)
        time.sleep(1)
        before, now = now, (sent[0], http.get(session).json()["step"])
    assert now[1] <= 1000 * now[0]
    assert sent[0] > 256
    over.set()
    replies.cancel()


# The port ---------------------------------------------------------------------------------------


def workers_of(server: Server) -> list[psutil.Process]:
    return [one for one in server.process.children() if WORKER in one.cmdline()]


def test_both_workers_answer_on_the_one_port(rpc: Server) -> None:
    """Connections go to either, and any of them answers any sequence."""
    workers = workers_of(rpc)
    assert len(workers) == 2

    def connections(worker: psutil.Process) -> int:
        found = worker.net_connections("tcp")
        return sum(one.status == "ESTABLISHED" and one.laddr.port == rpc.grpc_port for one in found)

    x = tensor(x_of(1, 9))
    clients = []
    for n in range(30):
        options = [("grpc.use_local_subchannel_pool", 1)]  # else they share one connection
        one = triton.InferenceServerClient(rpc.grpc_address, channel_args=options)
        clients.append(one)
        result = one.infer("sine-cell", x, sequence_id="both", sequence_start=n == 0)
        assert said(result)["step"] == n + 1
    assert all(connections(worker) > 0 for worker in workers)
    for one in clients:
        one.close()


def test_a_second_service_on_the_port_does_not_start(rpc: Server, start: Start) -> None:
    """It would silently get half of the connections."""
    second = start(grpc_port=rpc.grpc_port)
    assert second.process.wait(timeout=60) == 1
    expected = f"carousel: CAROUSEL_GRPC_PORT={rpc.grpc_port}: 127.0.0.1 port {rpc.grpc_port} cann"
    assert expected in second.text()
    assert "Traceback" not in second.text()


def test_health_and_reflection_are_the_standard_ones(rpc: Server, channel: Any) -> None:
    """As probes, and tools that list what there is, ask for them."""
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    database = ProtoReflectionDescriptorDatabase(channel)
    names = set(database.get_services())
    assert names == {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for name in names:
        file = database.FindFileContainingSymbol(name)
        assert any(f"{file.package}.{service.name}" == name for service in file.service)


# Anything at all --------------------------------------------------------------------------------

PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["sequence_id", "sequence_start", "sequence_end", "step", "timeout", "priority", "x"]
    ),
    st.one_of(
        st.none(),
        st.builds(dict, bool_param=st.booleans()),
        st.builds(dict, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(dict, uint64_param=st.sampled_from([0, 1, 2**64 - 1])),
        st.builds(dict, string_param=st.text(max_size=300)),
        st.builds(dict, double_param=st.floats()),
    ),
    max_size=4,
)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "fp32_contents": st.lists(st.floats(width=32), max_size=4),
        "int_contents": st.lists(st.integers(-300, 300), max_size=4),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=4),
        "bytes_contents": st.lists(st.binary(max_size=4), max_size=4),
        "bool_contents": st.lists(st.booleans(), max_size=4),
    },
)
INPUTS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["x", "y", ""]),
            "datatype": st.sampled_from(
                ["FP32", "FP64", "FP16", "BF16", "INT8", "UINT64", "BYTES", "BOOL", "fp32", ""]
            ),
            "shape": st.lists(st.sampled_from([-1, 0, 1, 2, 4, 2**40]), max_size=4),
        },
        optional={"contents": CONTENTS, "parameters": PARAMETERS},
    ),
    max_size=2,
)


def parameterize(where: Any, parameters: dict[str, dict[str, Any] | None]) -> None:
    for name, value in parameters.items():
        where[name].SetInParent()
        for field, one in (value or {}).items():
            setattr(where[name], field, one)


@st.composite
def messages(draw: Any) -> bytes:
    """Requests that are wrong in some way, or several; some are no message at all."""
    message = service_pb2.ModelInferRequest(
        model_name=draw(st.sampled_from(["sine-cell", "sine-cell", "nobody", "", "fragile"])),
        model_version=draw(st.sampled_from(["", "", "1"])),
        id=draw(st.text(max_size=5)),
        raw_input_contents=draw(st.lists(st.binary(max_size=16), max_size=2)),
    )
    parameterize(message.parameters, draw(PARAMETERS))
    for fields in draw(INPUTS):
        parameters, contents = fields.pop("parameters", {}), fields.pop("contents", None)
        added = message.inputs.add(**fields)
        parameterize(added.parameters, parameters)
        if contents is not None:
            added.contents.SetInParent()
            added.contents.MergeFrom(service_pb2.InferTensorContents(**contents))
    for name in draw(st.lists(st.sampled_from(["y", "z"]), max_size=2)):
        message.outputs.add(name=name)
    whole = bytes(message.SerializeToString())
    sent: bytes = draw(st.sampled_from([whole, whole, whole[: len(whole) // 2], b"\xff" + whole]))
    return sent


@settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(messages())
def test_whatever_comes_is_the_clients_fault_and_moves_nothing(
    rpc: Server, channel: Any, client: Any, http: httpx.Client, sent: bytes
) -> None:
    """Never INTERNAL or UNKNOWN; a sequence beside it stands where it stood."""
    victim = "/sessions/victim"
    if http.get(victim).status_code == 404:
        client.infer("sine-cell", tensor(x_of(3, 1)), sequence_id="victim", sequence_start=True)
    try:
        reply = raw_infer(channel)(sent)
        assert reply.model_name in ("sine-cell", "fragile")
    except grpc.RpcError as error:
        assert error.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        ), error
    assert http.get(victim).json()["step"] == 3
    assert "Traceback" not in rpc.text()


# The end: this test is the last of its file -----------------------------------------------------


def test_a_service_told_to_stop_answers_what_it_accepted(
    rpc: Server, channel: Any, http: httpx.Client, models: dict[str, Model]
) -> None:
    """SIGTERM: each stream gets its replies, then UNAVAILABLE; a long request its reply."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    x = x_of(20, 12)
    client = triton.InferenceServerClient(rpc.grpc_address)
    stream = Stream(client)
    for at in range(20):
        stream.send(x[at : at + 1], sequence_id="last", sequence_start=at == 0)
    y = [stream.read().as_numpy("y")[0] for _ in range(20)]
    assert np.array_equal(np.concatenate(y), whole(models["sine-cell"], x))
    long: Future[Any] = Future()
    with triton.InferenceServerClient(rpc.grpc_address) as other:
        other.async_infer(
            "sine-cell",
            tensor(x_of(16_000, 13)),
            lambda result, error: long.set_result((result, error)),
            sequence_id="long",
            sequence_start=True,
        )
        time.sleep(0.1)
        rpc.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(InferenceServerException, match="shutting down") as ended:
            stream.read()
        assert ended.value.status() == "StatusCode.UNAVAILABLE"
        result, error = long.result(timeout=30)
        assert error is None and said(result)["step"] == 16_000
    client.close()
    rpc.process.wait(timeout=20)
    assert "Traceback" not in rpc.text()
