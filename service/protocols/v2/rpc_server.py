"""The gRPC server of one worker: its port, its life, health and reflection.

Rules
- It runs on the worker's own loop, beside the engine; workers share the port (service/port.py).
- Once the engine drains, health says NOT_SERVING, what was accepted is answered, streams are told
  UNAVAILABLE when all of theirs is, and nobody new is let in. After `GRACE_S` what is left is
  cancelled: a client that does not read its replies, or that keeps a reflection open.
- Health (grpc.health.v1) and reflection need no key: they say which services there are, and
  whether this process takes requests. Whether every model can be served says ServerReady.
"""

import asyncio
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.engine import Engine
from service.errors import SettingsError
from service.port import address_of
from service.protocols.v2.proto.pool import POOL
from service.protocols.v2.rpc_service import SERVICE, InferenceService

GRACE_S = 10  # for what was accepted; whoever stops a container gives it 30 s or more
PING_S = 60  # a client whose machine was switched off is found out so
PING_TIMEOUT_S = 20
FASTEST_PING_S = 10  # of clients that look whether the server is there; faster is cut off

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """It serves until it drains; that is all that ever changes.

    The package's own servicer lets watchers of one name lose each other's condition when one of
    them leaves (1.81), and never ends a watch, for which a server that stops would wait.
    """

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Say NOT_SERVING from now on."""
        self._ended.set()

    def _status_of(self, service: str) -> Any:
        """SERVING, NOT_SERVING or SERVICE_UNKNOWN, as a reply."""
        reply = health_pb2.HealthCheckResponse
        if service not in ("", SERVICE.full_name):
            return reply(status=reply.SERVICE_UNKNOWN)
        return reply(status=reply.NOT_SERVING if self._ended.is_set() else reply.SERVING)

    async def Check(self, request: Any, context: Context) -> Any:
        status = self._status_of(request.service)
        if status.status == status.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:100]}"
            )
        return status

    async def Watch(self, request: Any, context: Context) -> None:
        if not self._ended.is_set():
            await context.write(self._status_of(request.service))
            await self._ended.wait()
        await context.write(self._status_of(request.service))


class RpcServer:
    """Listens from `start` on, until the engine drains."""

    def __init__(self, engine: Engine, service: InferenceService, max_message_bytes: int) -> None:
        self._engine = engine
        self._health = Health()
        self._ending: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(options=_options(max_message_bytes))
        self._server.add_generic_rpc_handlers((service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, _described())

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port, which is another where 0 was asked for.

        Raises:
            SettingsError: the port cannot be had.
        """
        address = address_of(host, port)
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise SettingsError(f"gRPC cannot listen on {address}: {error}") from error
        await self._server.start()
        self._engine.on_drain(self._drain)
        return bound

    def _drain(self) -> None:
        self._health.end()
        self._ending = asyncio.get_running_loop().create_task(self._server.stop(GRACE_S))

    async def close(self) -> None:
        """Drain, and return once all is answered, or the grace is over."""
        self._engine.drain()
        if self._ending is not None:
            await self._ending


def _described() -> DescriptorPool:
    """A pool with all that is served: theirs beside ours."""
    for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        POOL.AddSerializedFile(file.serialized_pb)  # the same again changes nothing
    return POOL


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),  # what the client asked for: as long as its request
        ("grpc.keepalive_time_ms", PING_S * 1000),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", FASTEST_PING_S * 1000),
    ]
