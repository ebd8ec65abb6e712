"""The gRPC service in process, over a real port: what a real `bentoml serve` makes hard to time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.catalog import Catalog
from service.engine import Engine
from service.errors import CarouselError, SessionNotFoundError, UnauthorizedError
from service.key_ring import KeyRing, digest_of_key
from service.model import Model
from service.protocols.access import Access
from service.protocols.v2.metadata import Limits
from service.protocols.v2.proto import inference_pb2 as pb
from service.protocols.v2.rpc_server import RpcServer
from service.protocols.v2.rpc_service import SERVICE, InferenceService
from service.protocols.v2.rpc_status import MAX_DETAILS_BYTES, code_of, status_of
from service.session import SessionKey
from service.store.memory import MemoryStore
from tests.e2e.test_keys import own_address
from tests.service.test_engine import ROOM, run, running

Code = grpc.StatusCode
Channel = grpc.aio.Channel
MAX_MESSAGE_BYTES = 100_000
X = np.array([[0.5], [-0.25]], np.float32)
KEY, OTHER_KEY = "carousel_" + "k" * 40, "carousel_" + "o" * 40
KEYS = "\n".join(
    f'{digest_of_key(key.encode())} = {{ tenant = "{tenant}" }}'
    for key, tenant in ((KEY, "acme"), (OTHER_KEY, "other"))
)


def infer_request(sequence_id: str = "", *, x: Any = X, **parameters: Any) -> pb.ModelInferRequest:
    """One request of `sine-cell`; a sequence's unless the id is empty."""
    message = pb.ModelInferRequest(model_name="sine-cell", id=parameters.pop("id", ""))
    message.inputs.add(name="x", datatype="FP32", shape=(1, *x.shape))
    message.raw_input_contents.append(x.tobytes())
    message.parameters["sequence_id"].string_param = sequence_id
    for name, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], field, value)
    return message


def method(channel: Channel, name: str) -> Any:
    """A method as a stub has it; a request may be bytes that are no message."""
    descriptor = SERVICE.methods_by_name[name]
    kind = channel.stream_stream if descriptor.client_streaming else channel.unary_unary
    return kind(
        f"/{SERVICE.full_name}/{name}",
        request_serializer=lambda one: one if isinstance(one, bytes) else one.SerializeToString(),
        response_deserializer=getattr(pb, descriptor.output_type.name).FromString,
    )


async def with_rpc(
    catalog: Catalog,
    use: Callable[[Channel, Engine], Awaitable[None]],
    access: Access | None = None,
    host: str = "127.0.0.1",
    **limits: Any,
) -> None:
    async with running(catalog, **limits) as engine:
        service = InferenceService(engine, access or Access(), Limits(64, 1000, 60.0))
        server = RpcServer(engine, service, MAX_MESSAGE_BYTES)
        port = await server.start("0.0.0.0", 0)
        async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
            await use(channel, engine)
        await server.close()


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def hints(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata() or ())  # type: ignore[arg-type]  # pairs, whatever they say


# Errors -----------------------------------------------------------------------------------------


def every_error(base: type[CarouselError] = CarouselError) -> list[type[CarouselError]]:
    return [base, *(one for child in base.__subclasses__() for one in every_error(child))]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_ours_has_a_status(kind: type[CarouselError]) -> None:
    """None is UNKNOWN; INTERNAL is ours alone."""
    code = code_of(kind("why"))
    assert code is not Code.UNKNOWN
    assert (code is Code.INTERNAL) == (kind.status == 500)


def test_a_long_message_is_cut_to_what_metadata_may_hold() -> None:
    """It may quote what the client sent, in any script."""
    for message in ("short", "x" * 100_000, "\N{SNOWMAN}" * 3000):
        code, details, metadata = status_of(CarouselError(message))
        assert (code, dict(metadata)) == (Code.INTERNAL, {"carousel-error": "error"})
        assert message.startswith(details.removesuffix(" ..."))
        assert len(details.encode()) <= MAX_DETAILS_BYTES
        assert details.endswith(" ...") == (message != "short")


class Gated(MemoryStore):
    """A store that gives nothing before its gate is open."""

    def __init__(self) -> None:
        super().__init__(**ROOM)
        self.gate = asyncio.Event()

    async def get(self, keys: Any) -> Any:
        await self.gate.wait()
        return await super().get(keys)


async def accepted(engine: Engine, session_id: str) -> None:
    """Return once a request of this session waits in the engine."""
    while engine._batcher.last_of(SessionKey("", session_id)) is None:
        await asyncio.sleep(0.001)


def test_a_full_queue_says_when_to_come_back(sine: Model) -> None:
    """RESOURCE_EXHAUSTED, with our own code and retry-after in the trailing metadata."""
    store = Gated()

    async def use(channel: Channel, engine: Engine) -> None:
        infer = method(channel, "ModelInfer")
        first = infer(infer_request("a", sequence_start=True))
        await accepted(engine, "a")
        metadata = (("x-request-id", "mine-1"),)
        error = await refused(infer(infer_request("b", sequence_start=True), metadata=metadata))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        expected = {"carousel-error": "overloaded", "retry-after": "1", "x-request-id": "mine-1"}
        assert hints(error) == expected
        store.gate.set()
        assert (await first).parameters["step"].int64_param == 2

    run(with_rpc(Catalog([sine]), use, store=store, max_queue=1))


class Faulty(MemoryStore):
    """A store with a bug."""

    async def get(self, keys: Any) -> Any:
        raise ZeroDivisionError("secret detail")


def test_a_bug_of_ours_is_internal_without_its_traceback(
    sine: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has it; the client does not. In the engine, in a method, in a stream."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    async def use(channel: Channel, engine: Engine) -> None:
        errors = [await refused(method(channel, "ModelInfer")(infer_request("a", step=0)))]
        monkeypatch.setattr("service.protocols.v2.rpc_service.read_request", broken)
        monkeypatch.setattr("service.protocols.v2.rpc_stream.read_request", broken)
        errors.append(await refused(method(channel, "ModelInfer")(infer_request("a"))))
        stream = method(channel, "ModelStreamInfer")()
        await stream.write(infer_request("a"))
        errors.append(await refused(stream.read()))
        for error in errors:
            assert (error.code(), hints(error)["carousel-error"]) == (Code.INTERNAL, "internal")
            assert "secret" not in (error.details() or "")

    run(with_rpc(Catalog([sine]), use, store=Faulty(**ROOM)))
    assert "ZeroDivisionError: secret detail" in caplog.text


# Bytes ------------------------------------------------------------------------------------------


def test_bytes_that_are_no_message_are_the_clients_fault(sine: Model) -> None:
    """In a stream they cost that message only."""

    async def use(channel: Channel, engine: Engine) -> None:
        error = await refused(method(channel, "ModelInfer")(b"\xff\xff"))
        assert error.code() is Code.INVALID_ARGUMENT
        assert error.details() == "the request is not a message inference.ModelInferRequest"
        stream = method(channel, "ModelStreamInfer")()
        await stream.write(b"\xff\xff")
        await stream.write(infer_request("s", sequence_start=True))
        await stream.done_writing()
        first, second = [reply async for reply in stream]
        assert first.error_message == "the request is not a message inference.ModelInferRequest"
        assert second.infer_response.parameters["step"].int64_param == 2

    run(with_rpc(Catalog([sine]), use))


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_is_refused(sine: Model, compression: grpc.Compression) -> None:
    """Also one that is small before it is unpacked; below the limit compression is taken."""

    async def use(channel: Channel, engine: Engine) -> None:
        infer = method(channel, "ModelInfer")
        small = infer_request("s", x=np.zeros((2000, 1), np.float32), sequence_start=True)
        reply = await infer(small, compression=compression)
        assert reply.parameters["step"].int64_param == 2000
        large = infer_request("s", x=np.zeros((50_000, 1), np.float32), sequence_start=True)
        error = await refused(infer(large, compression=compression))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "larger than max" in (error.details() or "")

    run(with_rpc(Catalog([sine]), use))


# Who may call -----------------------------------------------------------------------------------


def test_a_key_is_asked_for_before_anything_is_read(sine: Model) -> None:
    """But for liveness, readiness, health and reflection; a tenant sees its own sequences only."""

    async def use(channel: Channel, engine: Engine) -> None:
        for found in SERVICE.methods:
            call = method(channel, found.name)
            if found.name in ("ServerLive", "ServerReady"):
                assert await call(b"")
                continue
            for metadata in ((), (("authorization", "Bearer carousel_three"),)):
                made = call(metadata=metadata) if found.client_streaming else None
                error = await refused(made.read() if made else call(b"\xff", metadata=metadata))
                assert error.code() is Code.UNAUTHENTICATED, found.name
        infer = method(channel, "ModelInfer")
        mine, others = (("authorization", f"Bearer {KEY}"),), (("x-api-key", OTHER_KEY),)
        reply = await infer(infer_request("s", sequence_start=True), metadata=mine)
        assert reply.parameters["step"].int64_param == 2
        error = await refused(infer(infer_request("s"), metadata=others))
        assert (error.code(), hints(error)["carousel-error"]) == (Code.NOT_FOUND, "session_gone")
        assert (await engine.look_up(SessionKey("acme", "s"))).step == 2

    run(with_rpc(Catalog([sine]), use, Access(KeyRing(None, KEYS))))


def test_a_key_that_expires_ends_with_its_stream_open(sine: Model) -> None:
    """It is asked for with each message."""
    now = [0.0]
    ring = KeyRing(None, KEYS)
    find = ring.find

    def find_until(key: bytes) -> Any:
        if now[0]:
            raise UnauthorizedError("the key expired")
        return find(key)

    ring.find = find_until  # type: ignore[method-assign]

    async def use(channel: Channel, engine: Engine) -> None:
        stream = method(channel, "ModelStreamInfer")(metadata=(("x-api-key", KEY),))
        await stream.write(infer_request("s", sequence_start=True))
        assert (await stream.read()).error_message == ""
        now[0] = 1.0
        await stream.write(infer_request("s"))
        reply = await stream.read()
        assert reply.error_message == "the key expired"
        parameters = reply.infer_response.parameters
        assert parameters["carousel-error"].string_param == "unauthorized"

    run(with_rpc(Catalog([sine]), use, Access(ring)))


def test_without_keys_only_this_machine_is_answered(sine: Model) -> None:
    """Wherever it listens: the peer's address counts. Nor are web pages from elsewhere."""

    async def elsewhere(channel: Channel, engine: Engine) -> None:
        error = await refused(method(channel, "ModelInfer")(infer_request()))
        assert error.code() is Code.PERMISSION_DENIED
        assert (await method(channel, "ServerLive")(b"")).live

    async def here(channel: Channel, engine: Engine) -> None:
        infer = method(channel, "ModelInfer")
        assert (await infer(infer_request())).model_name == "sine-cell"
        page = (("origin", "https://elsewhere.example"),)
        assert (await refused(infer(infer_request(), metadata=page))).code() is (
            Code.PERMISSION_DENIED
        )

    run(with_rpc(Catalog([sine]), elsewhere, host=own_address()))
    run(with_rpc(Catalog([sine]), here))
    run(with_rpc(Catalog([sine]), here_too, Access(loopback_only=False), host=own_address()))


async def here_too(channel: Channel, engine: Engine) -> None:
    assert (await method(channel, "ModelInfer")(infer_request())).model_name == "sine-cell"


# Who waits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deadline", "cancel", "timeout"])
def test_what_nobody_waits_for_is_not_run(sine: Model, how: str) -> None:
    """Its deadline passed, its client cancelled it, or its own `timeout` is over."""
    store = Gated()

    async def use(channel: Channel, engine: Engine) -> None:
        infer = method(channel, "ModelInfer")
        first = infer(infer_request("first", sequence_start=True))
        await accepted(engine, "first")
        await asyncio.sleep(0.01)  # the batch of the first is under way
        parameters = {"timeout": 50_000} if how == "timeout" else {}
        message = infer_request("second", sequence_start=True, **parameters)
        second = infer(message, timeout=0.05 if how == "deadline" else None)
        await accepted(engine, "second")
        if how == "cancel":
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        else:
            assert (await refused(second)).code() is Code.DEADLINE_EXCEEDED
        while engine._batcher.last_of(SessionKey("", "second")) is not None:
            await asyncio.sleep(0.001)
        store.gate.set()
        await first
        with pytest.raises(SessionNotFoundError):
            await engine.look_up(SessionKey("", "second"))

    run(asyncio.wait_for(with_rpc(Catalog([sine]), use, store=store), 20))


def test_a_timeout_within_a_stream_ends_that_request_only(sine: Model) -> None:
    """Its error comes before what it waited for."""
    store = Gated()

    async def use(channel: Channel, engine: Engine) -> None:
        stream = method(channel, "ModelStreamInfer")()
        await stream.write(infer_request("first", sequence_start=True, id="1"))
        await accepted(engine, "first")
        await asyncio.sleep(0.01)
        await stream.write(infer_request("second", sequence_start=True, id="2", timeout=20_000))
        reply = await stream.read()
        assert (reply.infer_response.id, reply.error_message[:23]) == (
            "2",
            "the request took longer",
        )
        store.gate.set()
        assert (await stream.read()).infer_response.id == "1"
        with pytest.raises(SessionNotFoundError):
            await engine.look_up(SessionKey("", "second"))

    run(with_rpc(Catalog([sine]), use, store=store))


def test_rows_without_a_sequence_have_one_reply_in_a_stream(sine: Model) -> None:
    """And one error, if one of them is refused; nothing of them stays."""

    async def use(channel: Channel, engine: Engine) -> None:
        stream = method(channel, "ModelStreamInfer")()
        x = np.stack([X, 2 * X, X])
        good = infer_request(id="good")
        good.inputs[0].shape[:] = x.shape
        good.raw_input_contents[0] = x.tobytes()
        await stream.write(good)
        y = (await stream.read()).infer_response
        assert (y.id, list(y.outputs[0].shape)) == ("good", [3, 2, 1])
        rows = np.frombuffer(y.raw_output_contents[0], "<f4").reshape(3, 2)
        assert np.array_equal(rows[0], rows[2]) and not np.array_equal(rows[0], rows[1])
        x[1, 0] = np.nan
        good.raw_input_contents[0] = x.tobytes()
        await stream.write(good)
        assert "is not finite" in (await stream.read()).error_message
        assert await engine._store.count() == 0

    run(with_rpc(Catalog([sine]), use))


# The end ----------------------------------------------------------------------------------------


def test_a_draining_server_answers_what_it_accepted_and_ends_its_streams(sine: Model) -> None:
    """UNAVAILABLE comes last; the watchers of its health hear of it; a stranger is let go."""
    store = Gated()

    async def use(channel: Channel, engine: Engine) -> None:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        unary = method(channel, "ModelInfer")(infer_request("unary", sequence_start=True))
        stream = method(channel, "ModelStreamInfer")()
        for n in range(3):
            await stream.write(infer_request("s", sequence_start=n == 0, id=str(n)))
        idle = method(channel, "ModelStreamInfer")()
        await idle.write(b"\xff")
        assert (await idle.read()).error_message
        await accepted(engine, "s")
        await asyncio.sleep(0.05)
        engine.drain()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF  # type: ignore[attr-defined]
        error = await refused(idle.read())
        assert (error.code(), hints(error)["carousel-error"]) == (Code.UNAVAILABLE, "draining")
        store.gate.set()
        assert [(await stream.read()).infer_response.id for _ in range(3)] == ["0", "1", "2"]
        assert (await refused(stream.read())).code() is Code.UNAVAILABLE
        assert (await unary).parameters["step"].int64_param == 2
        later = await refused(method(channel, "ServerLive")(b""))
        assert later.code() is Code.UNAVAILABLE

    run(asyncio.wait_for(with_rpc(Catalog([sine]), use, store=store), 20))
