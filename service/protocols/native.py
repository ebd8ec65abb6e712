"""The native JSON routes, as one ASGI app.

    POST   /predict         advance one session; or many, an array: service/protocols/many.py
    POST   /stream          NDJSON in, NDJSON out: service/protocols/ndjson.py
    POST   /forecast        what it would go on with: service/protocols/forecast.py
    GET    /sessions/{id}   where it stands
    DELETE /sessions/{id}   forget it; its forks and snapshots: service/protocols/copies.py
    GET    /models          what is served
    GET    /readyz          200 while a version of every model passed its self-test, and the store
                            is there

Refused, all in the shape {"error": {"code", "message", ...}}: unknown routes (404), other methods
(405), callers without a key where one is needed (401) or without an admin's (403), bodies over the
limit (413, while they are read) or in a coding that is not read (415), and whatever the engine
refuses. /readyz answers anybody, for probes, and tells more to who has a key.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from service.engine import Engine
from service.errors import (
    CarouselError,
    DrainingError,
    InternalError,
    MethodNotAllowedError,
    RouteNotFoundError,
)
from service.feedback import why_not
from service.job import Answer, Request
from service.key_ring import Caller
from service.logs import about
from service.model import Model
from service.origin import NOWHERE, Origin, origin_of, request_id_of
from service.pipeline import Pipeline
from service.protocols.access import Access, require_admin
from service.protocols.asgi import (
    ClientGone,
    Headers,
    Receive,
    Scope,
    Send,
    read_body,
    send_error,
    send_json,
    to_who_stays,
)
from service.protocols.content_coding import decoded
from service.protocols.copies import (
    SESSION,
    CopyRoutes,
    describe_session,
    raw_path,
    route_of,
    session_id_of,
)
from service.protocols.forecast import read_forecast, serve_forecast
from service.protocols.idempotency import idempotency_key_of
from service.protocols.many import is_array, predict_many
from service.protocols.ndjson import Bodies, serve_stream
from service.protocols.watches import Watches
from service.session import SessionKey
from service.snapshot import Keyring
from service.wire import (
    Array,
    Envelope,
    RowShape,
    decode_envelope,
    decode_rows,
    encode,
    encode_answer,
)

OPEN = frozenset({"/readyz"})  # routes that need no key
ADMIN = "/models/"  # what stands below it changes what is served, to all tenants
CALLER = "carousel.caller"  # where a request's scope has its Caller

logger = logging.getLogger("carousel.http")

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class JsonRows:
    """The x of a JSON request, still raw."""

    raw: bytes

    def decode(self, shape: RowShape) -> Array:
        return decode_rows(self.raw, shape)


def read_request(
    body: bytes, caller: Caller, origin: Origin = NOWHERE, idempotency_key: str | None = None
) -> Request:
    """One /predict body of `caller`'s, or one line of /stream; ClientError if it is not one."""
    return request_of(decode_envelope(body), caller, origin, idempotency_key)


def request_of(
    envelope: Envelope, caller: Caller, origin: Origin, idempotency_key: str | None = None
) -> Request:
    """What a body asks for, whichever protocol it came by."""
    return Request(
        key=SessionKey(caller.tenant, envelope.session_id),
        rows=JsonRows(bytes(envelope.x)),
        step=envelope.step,
        model=envelope.model,
        want=None if envelope.want is None else tuple(envelope.want),
        choose=envelope.choose,
        most=caller.max_sessions,
        idempotency_key=idempotency_key,
        origin=origin,
    )


def write_answer(answer: Answer) -> bytes:
    return encode_answer(
        answer.session_id, answer.model, answer.version, answer.step, answer.created, answer.result
    )


class NativeApp:
    """The routes over one engine."""

    def __init__(
        self,
        engine: Engine,
        max_body_bytes: int,
        access: Access | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """
        Args:
            access: who may call; None: whoever is on this machine.
            keyring: signs snapshots; None: there are none.
        """
        copies = CopyRoutes(engine, keyring or Keyring(()), max_body_bytes, _caller_of)
        self._engine = engine
        self._access = access or Access()
        self._max_body_bytes = max_body_bytes
        self._watches = Watches()
        self._routes: dict[str, dict[str, Handler]] = {
            "/predict": {"POST": self._predict},
            "/stream": {"POST": self._stream},
            "/forecast": {"POST": self._forecast},
            "/models": {"GET": self._models},
            "/readyz": {"GET": self._readyz},
            SESSION: {"GET": self._look_up, "DELETE": self._drop},
            **copies.routes,
        }
        # Found by their path alone, with no id to look for: what is asked most.
        self._whole_paths = frozenset(path for path in self._routes if "{" not in path)

    def knows(self, scope: Scope) -> bool:
        """Whether it is a request to one of the native routes."""
        if scope["type"] != "http":
            return False
        path = scope["path"]
        return path in self._whole_paths or route_of(path) in self._routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = to_who_stays(send)
        path = scope["path"]
        try:
            handler = self._find(self._route_of(scope), scope["method"])
            if path not in OPEN:
                scope[CALLER] = caller = self._access.admit(scope)
                if path.startswith(ADMIN):
                    require_admin(caller)
            await handler(scope, decoded(scope, receive, self._max_body_bytes), send)
        except ClientGone:
            _note_gone(scope)
        except CarouselError as error:
            await self._refuse(scope, send, error)
        except Exception:
            request_id = (request_id_of(scope["headers"]) or b"").decode()
            what = about(request_id=request_id, code=InternalError.code)
            logger.exception("%s %s failed", scope["method"], path, extra=what)
            failed = InternalError("the server failed; its log says why")
            await self._refuse(scope, send, failed)

    async def _refuse(self, scope: Scope, send: Send, error: CarouselError) -> None:
        self._engine.metrics.refused(error)
        headers: Headers = []
        if isinstance(error, MethodNotAllowedError):
            allowed = ", ".join(self._routes[self._route_of(scope)])
            headers = [(b"allow", allowed.encode())]
        try:
            await send_error(send, error, headers)
        except ClientGone:
            _note_gone(scope)

    def _route_of(self, scope: Scope) -> str:
        path: str = scope["path"]
        if path in self._whole_paths:
            return path
        return route_of(raw_path(scope) if "{" in route_of(path) else path)

    async def before_metrics(self) -> None:
        """What must be known at the moment that /metrics is asked."""
        try:
            await self._engine.show_metrics()
        except CarouselError as error:
            logger.error("the live sessions could not be counted: %s", error.message)
        except Exception:
            logger.exception("the live sessions could not be counted")

    def _find(self, path: str, method: str) -> Handler:
        methods = self._routes.get(path)
        if methods is None:
            raise no_route(path)
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise no_method(path, method, list(methods))
        return handler

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._max_body_bytes)
        headers, caller = scope["headers"], _caller_of(scope)
        origin, idempotency_key = origin_of(headers, "predict"), idempotency_key_of(headers)
        if is_array(body):
            reply = await predict_many(
                self._engine,
                body,
                receive,
                lambda one: read_request(one, caller, origin),
                write_answer,
                idempotency_key,
            )
            await send_json(send, reply)
            return
        job = await self._engine.submit(read_request(body, caller, origin, idempotency_key))
        watch = self._watches.add(receive, partial(self._engine.abandon, job))
        try:
            answer = await job.future
        except asyncio.CancelledError:
            if job.future.cancelled():
                raise ClientGone from None
            raise
        finally:
            self._watches.remove(watch)
        await send_json(send, write_answer(answer))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = origin_of(scope["headers"], "stream")

        bodies = Bodies(
            admit=lambda: self._access.admit(scope),
            read=lambda body, caller: read_request(body, caller, origin),
            request_of=lambda envelope, caller: request_of(envelope, caller, origin),
            write_answer=write_answer,
        )
        tenant = scope[CALLER].tenant
        await serve_stream(
            self._engine, receive, send, bodies, self._max_body_bytes, tenant, origin
        )

    async def _forecast(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._max_body_bytes)
        origin = origin_of(scope["headers"], "forecast")
        request = read_forecast(body, scope[CALLER].tenant, JsonRows, origin)
        await serve_forecast(self._engine, request, scope, receive, send)

    async def _look_up(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _session_key(scope)
        record = await self._engine.look_up(key)
        await send_json(send, encode(describe_session(key, record)))

    async def _drop(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _session_key(scope)
        record = await self._engine.drop(key)
        await send_json(send, encode({**describe_session(key, record), "dropped": True}))

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        catalog = self._engine.catalog
        body = {
            "models": [
                {**_describe_model(model), "newest": catalog.is_newest(model)}
                for model in catalog.models
            ],
            "broken": [
                {"name": name, "version": version, **error.body()}
                for reference, error in catalog.broken.items()
                for name, _, version in [reference.partition(":")]
            ],
            "promoted": {
                name: moves
                for name in catalog.names
                if (moves := self._engine.promotions.moves_of(name))
            },
        }
        await send_json(send, encode(body))

    async def _readyz(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._engine.is_draining:
            raise DrainingError("the server is shutting down")
        is_known = self._access.is_admitted(scope)  # what is served is not for everybody
        for error in self._engine.catalog.unserved:
            if is_known:
                raise type(error)(error.message, **error.data)
            raise type(error)("a model is not served; the log says which, and /readyz with a key")
        await self._engine.reach_store()
        body: dict[str, object] = {"status": "ready"}
        if is_known:
            body["models"] = self._engine.catalog.served
        await send_json(send, encode(body))


def no_route(path: str) -> RouteNotFoundError:
    return RouteNotFoundError(f"there is no route {path}; /docs.json lists them", path=path)


def no_method(path: str, method: str, allowed: list[str]) -> MethodNotAllowedError:
    return MethodNotAllowedError(
        f"{path} does not take {method}, expected {' or '.join(allowed)}",
        method=method,
        expected=allowed,
    )


def _note_gone(scope: Scope) -> None:
    logger.info("%s %s: the client went away", scope["method"], scope["path"])


def _caller_of(scope: Scope) -> Caller:
    caller: Caller = scope[CALLER]
    return caller


def _session_key(scope: Scope) -> SessionKey:
    return SessionKey(_caller_of(scope).tenant, session_id_of(scope))


def _describe_model(model: Model) -> dict[str, object]:
    manifest = model.artifact.manifest
    return {
        "name": model.name,
        "version": model.version,
        "variant": model.runtime.variant,
        "mode": manifest.mode,
        "ports": manifest.ports.model_dump(mode="json", exclude_none=True),
        "pipeline": _describe_pipeline(manifest.pipeline),
        "reply": list(model.reader.fields),
        "forecast": why_not(model) is None,
    }


def _describe_pipeline(pipeline: Pipeline) -> dict[str, object]:
    """The parts that there are; of a long one, a vocabulary or a scaling, only that it is there."""
    parts = pipeline.model_dump(mode="json", exclude_none=True)
    brief = {"x": "scaled", "y": "scaled", "vocabulary": len(pipeline.vocabulary or ())}
    return {name: brief.get(name, part) for name, part in parts.items()}
