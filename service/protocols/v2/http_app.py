"""v2 over HTTP, as one ASGI app.

    GET  /v2                                         the server, its version and extensions
    GET  /v2/health/live, /v2/health/ready           200, to anybody
    POST /v2/models/NAME[/versions/V]/infer          an inference
    GET  /v2/models/NAME[/versions/V]                its inputs and outputs
    GET  /v2/models/NAME[/versions/V]/ready, /config, /stats
    GET  /v2/models/stats                            those of all models
    POST /v2/repository/index                        every version, with its state

Errors are {"error": "..."}, with the status that the same error has under every protocol. Refused
(501), as there is nothing behind them: loading and unloading (the directory of the artifacts is the
list), the settings of traces and of the log (settings of the service), and shared memory.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

import msgspec

from service.engine import Engine
from service.errors import (
    CarouselError,
    InternalError,
    InvalidJsonError,
    MethodNotAllowedError,
    NotOfferedError,
    RequestError,
    RouteNotFoundError,
)
from service.job import Job
from service.key_ring import Caller
from service.model import Model
from service.origin import origin_of
from service.protocols.access import Access
from service.protocols.asgi import (
    JSON,
    ClientGone,
    Headers,
    Receive,
    Scope,
    Send,
    read_body,
    send_bytes,
    send_error,
    send_json,
    to_who_stays,
)
from service.protocols.content_coding import MIN_BYTES, accepted_coding, decoded, gzipped
from service.protocols.copies import raw_path
from service.protocols.idempotency import idempotency_key_of
from service.protocols.v2.http_body import read_infer, write_infer
from service.protocols.v2.inference import (
    abandon,
    answers_of,
    submit,
    to_requests,
    to_response,
)
from service.protocols.v2.metadata import (
    Limits,
    check_model_ready,
    check_ready,
    model_config,
    model_metadata,
    reference_of,
    repository_index,
    server_metadata,
)
from service.protocols.v2.statistics import model_statistics
from service.wire import encode

ROOT = "/v2"
OPEN = {("health", "live"), ("health", "ready")}  # to who has no key
HEADER_LENGTH = b"inference-header-content-length"
BINARY = b"application/octet-stream"
# As of /predict: watching each from the start would cost every quick one a task.
WATCH_AFTER_S = 0.05

logger = logging.getLogger("carousel.http")


class _IndexBody(msgspec.Struct, frozen=True):
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request, and what its path names."""

    scope: Scope
    receive: Receive
    send: Send
    caller: Caller
    model: str = ""
    version: str = ""  # "": none was named


Handler = Callable[[Call], Awaitable[None]]
Path = tuple[str, ...]  # what follows /v2, or the model


class V2App:
    """The routes over one engine."""

    def __init__(
        self, engine: Engine, limits: Limits, max_body_bytes: int, access: Access | None = None
    ) -> None:
        """`access`: who may call; None: whoever is on this machine."""
        self._engine = engine
        self._limits = limits
        self._max_body_bytes = max_body_bytes
        self._access = access or Access()
        self._of_server: dict[Path, dict[str, Handler]] = {
            (): {"GET": self._server},
            ("health", "live"): {"GET": self._live},
            ("health", "ready"): {"GET": self._ready},
            ("repository", "index"): {"POST": self._index},
            ("models", "stats"): {"GET": self._stats},
        }
        self._of_model: dict[Path, dict[str, Handler]] = {
            (): {"GET": self._model},
            ("ready",): {"GET": self._model_ready},
            ("config",): {"GET": self._config},
            ("stats",): {"GET": self._stats},
            ("infer",): {"POST": self._infer},
        }

    def knows(self, scope: Scope) -> bool:
        """Whether it is an HTTP request to v2, even to a route that is not there."""
        path: str = scope["path"]
        return scope["type"] == "http" and (path == ROOT or path.startswith(ROOT + "/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = to_who_stays(send)
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            logger.info("%s %s: the client went away", scope["method"], scope["path"])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            path = _path_of(scope)
            caller = Caller("") if path in OPEN else self._access.admit(scope)
            methods, model, version = self._find(path, scope["path"])
            handler = methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
            if handler is None:
                raise _no_method(scope, methods)
            body = decoded(scope, receive, self._max_body_bytes)
            await handler(Call(scope, body, send, caller, model, version))
        except ClientGone:
            raise
        except CarouselError as error:
            await self._refuse(send, error)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await self._refuse(send, InternalError("the server failed; its log says why"))

    async def _refuse(self, send: Send, error: CarouselError) -> None:
        self._engine.metrics.refused(error)
        headers: Headers = []
        if isinstance(error, MethodNotAllowedError):
            headers = [(b"allow", str(error.data["allow"]).encode())]
        await send_error(send, error, headers, encode({"error": error.message}))

    def _find(self, path: Path, shown: str) -> tuple[dict[str, Handler], str, str]:
        """The methods of a route, and the model and version that it names."""
        if path in self._of_server:
            return self._of_server[path], "", ""
        refuse_what_is_not_offered(path)
        match path:
            case ("models", model, "versions", version, *rest) if tuple(rest) in self._of_model:
                return self._of_model[tuple(rest)], model, version
            case ("models", model, *rest) if tuple(rest) in self._of_model:
                return self._of_model[tuple(rest)], model, ""
        raise RouteNotFoundError(f"there is no route {shown}; /docs.json lists them", path=shown)

    # The server ---------------------------------------------------------------------------------

    async def _server(self, call: Call) -> None:
        await _reply(call, server_metadata())

    async def _live(self, call: Call) -> None:
        await _reply(call, {"live": True})

    async def _ready(self, call: Call) -> None:
        await check_ready(self._engine)
        await _reply(call, {"ready": True})

    async def _index(self, call: Call) -> None:
        body = await read_body(call.scope, call.receive, self._max_body_bytes)
        try:
            asked = msgspec.json.decode(body or b"{}", type=_IndexBody)
        except msgspec.ValidationError as error:
            raise RequestError(f"{error}; expected {{ready?}}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidJsonError(f"the body is not JSON: {error}") from error
        await _reply(call, repository_index(self._engine.catalog, asked.ready))

    # A model ------------------------------------------------------------------------------------

    async def _load(self, call: Call) -> Model:
        return await self._engine.load(reference_of(call.model, call.version))

    async def _model(self, call: Call) -> None:
        await _reply(call, model_metadata(self._engine.catalog, await self._load(call)))

    async def _model_ready(self, call: Call) -> None:
        check_model_ready(self._engine, call.model, call.version)
        await _reply(call, {"name": call.model, "ready": True})

    async def _config(self, call: Call) -> None:
        await _reply(call, model_config(await self._load(call), self._limits))

    async def _stats(self, call: Call) -> None:
        await _reply(call, await model_statistics(self._engine, call.model, call.version))

    async def _infer(self, call: Call) -> None:
        headers = call.scope["headers"]
        body = await read_body(call.scope, call.receive, self._max_body_bytes)
        length = _header(headers, HEADER_LENGTH)
        asked, form = read_infer(body, length, call.model, call.version)
        requests = to_requests(
            asked,
            call.caller,
            origin_of(headers, "v2"),
            self._limits.max_batch,
            idempotency_key_of(headers),
        )
        jobs = await submit(self._engine, requests)
        try:
            with self._watch(jobs, call.receive):
                answers = await answers_of(self._engine, jobs)
        except asyncio.CancelledError:
            if any(job.future.cancelled() for job in jobs):
                raise ClientGone from None
            raise
        await _reply_tensors(call, *write_infer(to_response(asked, answers), form))

    @contextmanager
    def _watch(self, jobs: Sequence[Job], receive: Receive) -> Iterator[None]:
        """Abandon `jobs` if their client hangs up before they are done."""
        watches: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()

        async def wait_for_hang_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue
            abandon(self._engine, jobs)

        def start() -> None:
            watches.append(loop.create_task(wait_for_hang_up()))

        timer = loop.call_later(WATCH_AFTER_S, start)
        try:
            yield
        finally:
            timer.cancel()
            for watch in watches:
                watch.cancel()


def refuse_what_is_not_offered(path: Path) -> None:
    """NotOfferedError if the path is one of Triton's that this server has nothing behind."""
    match path:
        case ("repository", "models", _, "load" | "unload"):
            raise NotOfferedError(
                "models are not loaded or unloaded by clients: the directory of the artifacts is "
                "the list, and is looked at once a second; put a version there, or take it away"
            )
        case ("systemsharedmemory" | "cudasharedmemory", *_):
            raise NotOfferedError("shared memory is not offered; send tensors as bytes, or as JSON")
        case ("trace", "setting") | ("models", _, "trace", "setting"):
            raise NotOfferedError(
                "traces are not set by clients, but by the service's settings; see its README"
            )
        case ("logging",):
            raise NotOfferedError(
                "the log is not set by clients, but by the service's settings; see its README"
            )


def _path_of(scope: Scope) -> Path:
    """The parts after /v2; an encoded slash is not a separator."""
    return tuple(map(unquote, raw_path(scope).rstrip("/").split("/")[2:]))


def _no_method(scope: Scope, methods: dict[str, Handler]) -> MethodNotAllowedError:
    allowed = ", ".join(methods)
    return MethodNotAllowedError(
        f"{scope['path']} does not take {scope['method']}, expected {allowed}", allow=allowed
    )


def _header(headers: Headers, name: bytes) -> bytes | None:
    return next((bytes(value) for found, value in headers if found == name), None)


async def _reply(call: Call, body: object) -> None:
    """A reply that is never compressed: clients of v2 read the coding of inferences alone.

    tritonclient.http.aio names gzip in every request, and decodes it nowhere else.
    """
    headers = call.scope["headers"]
    call.scope["headers"] = [one for one in headers if one[0] != b"accept-encoding"]
    await send_json(call.send, encode(body))


async def _reply_tensors(call: Call, body: bytes, json_length: int | None) -> None:
    headers: Headers = []
    if json_length is not None:
        headers.append((HEADER_LENGTH, str(json_length).encode()))
    coding = accepted_coding(call.scope["headers"]) if len(body) >= MIN_BYTES else None
    if coding is not None:
        body = await gzipped(body, coding)
        headers += [(b"content-encoding", coding), (b"vary", b"Accept-Encoding")]
    await send_bytes(call.send, body, JSON if json_length is None else BINARY, 200, headers)
