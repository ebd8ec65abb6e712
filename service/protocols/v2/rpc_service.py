"""GRPCInferenceService: the methods of v2 over gRPC, as one generic handler.

What a request means and what the server says of itself is the rest of this package's affair; here
stands which method is whose, who may call it, and that every error gets its status. ServerLive and
ServerReady answer anybody, for probes; what follows a key is asked before anything is read.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from service.engine import Engine
from service.errors import CarouselError, InternalError, NotOfferedError
from service.model import Model
from service.protocols.access import Access
from service.protocols.asgi import ClientGone
from service.protocols.v2 import metadata
from service.protocols.v2.inference import (
    answers_of,
    submit,
    to_requests,
    to_response,
)
from service.protocols.v2.proto import inference_pb2 as pb
from service.protocols.v2.rpc_call import Call, Context, Unreadable, reader_of
from service.protocols.v2.rpc_codec import read_request, wants_raw, write_response
from service.protocols.v2.rpc_stream import Messages, serve_stream
from service.protocols.v2.statistics import model_statistics

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
OPEN = frozenset({"ServerLive", "ServerReady"})  # methods that need no key

logger = logging.getLogger("carousel.grpc")

T = TypeVar("T")
Method = Callable[[Any, Call], Awaitable[Message]]


class InferenceService:
    """The methods over one engine."""

    def __init__(self, engine: Engine, access: Access, limits: metadata.Limits) -> None:
        """
        Args:
            access: who may call.
            limits: what a model's configuration says of the server.
        """
        self._engine = engine
        self._access = access
        self._limits = limits

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """Every method of the protocol, by its own name in snake case."""
        handlers = {}
        for method in SERVICE.methods:
            read = reader_of(GetMessageClass(method.input_type))
            write = GetMessageClass(method.output_type).SerializeToString
            if method.client_streaming:
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(
                    self._stream, read, write
                )
            else:
                own: Method = getattr(self, "_" + _snake(method.name))
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                    self._answered(method.name, own), read, write
                )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    # Every call ---------------------------------------------------------------------------------

    def _answered(self, name: str, method: Method) -> Callable[[Any, Context], Awaitable[Any]]:
        async def run(message: Message | Unreadable, call: Call) -> Message:
            if name not in OPEN:
                call.caller()
            if isinstance(message, Unreadable):
                raise message.error()
            return await method(message, call)

        async def answer(message: Message | Unreadable, context: Context) -> Message:
            call = Call(context, self._access)
            return await self._or_abort(name, call, run(message, call))

        return answer

    async def _stream(self, messages: Messages, context: Context) -> None:
        call = Call(context, self._access)
        serving = serve_stream(self._engine, call, messages, self._limits.max_batch)
        try:
            await self._or_abort("ModelStreamInfer", call, serving)
        except ClientGone:
            logger.info("ModelStreamInfer: the client went away")

    async def _or_abort(self, name: str, call: Call, answer: Awaitable[T]) -> T:
        """What `answer` gives; else the RPC ends with its error's status."""
        try:
            return await answer
        except CarouselError as why:
            error: CarouselError = why
        except ClientGone:
            raise
        except Exception:
            logger.exception("%s failed", name)
            error = InternalError("the server failed; its log says why")
        self._engine.metrics.refused(error)
        await call.refuse(error)

    # Health -------------------------------------------------------------------------------------

    async def _server_live(self, _: pb.ServerLiveRequest, call: Call) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, _: pb.ServerReadyRequest, call: Call) -> Message:
        try:
            await metadata.check_ready(self._engine)
        except CarouselError:
            return pb.ServerReadyResponse(ready=False)
        return pb.ServerReadyResponse(ready=True)

    async def _model_ready(self, asked: pb.ModelReadyRequest, call: Call) -> Message:
        try:
            metadata.check_model_ready(self._engine, asked.name, asked.version)
        except CarouselError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    # Metadata -----------------------------------------------------------------------------------

    async def _server_metadata(self, _: pb.ServerMetadataRequest, call: Call) -> Message:
        return ParseDict(metadata.server_metadata(), pb.ServerMetadataResponse())

    async def _model_metadata(self, asked: pb.ModelMetadataRequest, call: Call) -> Message:
        model = await self._model(asked.name, asked.version)
        body = metadata.model_metadata(self._engine.catalog, model)
        return ParseDict(body, pb.ModelMetadataResponse())

    async def _model_config(self, asked: pb.ModelConfigRequest, call: Call) -> Message:
        model = await self._model(asked.name, asked.version)
        body = metadata.model_config(model, self._limits)
        return ParseDict({"config": body}, pb.ModelConfigResponse())

    async def _model(self, name: str, version: str) -> Model:
        return await self._engine.load(metadata.reference_of(name, version))

    # Inference ----------------------------------------------------------------------------------

    async def _model_infer(self, message: pb.ModelInferRequest, call: Call) -> Message:
        engine = self._engine
        asked = read_request(message)
        requests = to_requests(
            asked,
            call.caller(),
            call.origin,
            self._limits.max_batch,
            call.header(b"idempotency-key"),
        )
        answers = await answers_of(engine, await submit(engine, requests))
        return write_response(to_response(asked, answers), wants_raw(message))

    async def _model_statistics(self, asked: pb.ModelStatisticsRequest, call: Call) -> Message:
        body = await model_statistics(self._engine, asked.name, asked.version)
        return ParseDict(body, pb.ModelStatisticsResponse())

    # The model repository -----------------------------------------------------------------------

    async def _repository_index(self, asked: pb.RepositoryIndexRequest, call: Call) -> Message:
        entries = metadata.repository_index(self._engine.catalog, asked.ready)
        return ParseDict({"models": entries}, pb.RepositoryIndexResponse())

    async def _repository_model_load(self, _: object, call: Call) -> Message:
        raise _not_by_clients()

    async def _repository_model_unload(self, _: object, call: Call) -> Message:
        raise _not_by_clients()

    # What there is none of: clients ask for its end before they begin ---------------------------

    async def _system_shared_memory_status(self, _: object, call: Call) -> Message:
        return pb.SystemSharedMemoryStatusResponse()

    async def _system_shared_memory_register(self, _: object, call: Call) -> Message:
        raise _no_shared_memory()

    async def _system_shared_memory_unregister(self, _: object, call: Call) -> Message:
        return pb.SystemSharedMemoryUnregisterResponse()

    async def _cuda_shared_memory_status(self, _: object, call: Call) -> Message:
        return pb.CudaSharedMemoryStatusResponse()

    async def _cuda_shared_memory_register(self, _: object, call: Call) -> Message:
        raise _no_shared_memory()

    async def _cuda_shared_memory_unregister(self, _: object, call: Call) -> Message:
        return pb.CudaSharedMemoryUnregisterResponse()

    async def _trace_setting(self, asked: pb.TraceSettingRequest, call: Call) -> Message:
        _refuse_settings("traces", asked.settings)
        return pb.TraceSettingResponse()

    async def _log_settings(self, asked: pb.LogSettingsRequest, call: Call) -> Message:
        _refuse_settings("logs", asked.settings)
        return pb.LogSettingsResponse()


def _refuse_settings(what: str, settings: Mapping[str, object]) -> None:
    if settings:
        raise NotOfferedError(
            f"{what} are set where the service is started, not by its clients; expected no "
            f"settings, got {', '.join(sorted(settings)[:8])}"
        )


def _not_by_clients() -> NotOfferedError:
    return NotOfferedError(
        "models are not loaded or unloaded by clients: the directory of the artifacts is the list, "
        "and is looked at once a second; put a version there, or take it away"
    )


def _no_shared_memory() -> NotOfferedError:
    return NotOfferedError("there is no shared memory here; send tensors in the requests")


def _snake(name: str) -> str:
    """ServerLive: server_live."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
