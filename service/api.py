"""The BentoML service. The only module that knows BentoML.

How our routes get past BentoML's router: `CarouselService.to_asgi` puts `Front` before BentoML's
whole app, so /predict and /stream meet none of its middlewares and no per-request pydantic. The
`@bentoml.api` method is the declaration that BentoML's own clients and pages read (/schema.json),
and what other BentoML services call in process; it goes the same road as the HTTP route.

How the models are found, once, in the process that starts the workers (`settle_models`):
CAROUSEL_MODELS; else, in a Bento, the Bento's own; else what is under CAROUSEL_ARTIFACTS; else the
artifacts in BentoML's model store. The workers get the answer as absolute directories in
CAROUSEL_MODELS, for BentoML changes their working directory; what of it is served, and from when
on, says service/shelf.py. For the same reason CAROUSEL_STORE_PATH is made absolute there.

Siblings are imported at the top and never later: outside its workers BentoML takes the project
off `sys.path` once this module is imported. Redis's is imported where the settings name it, here
too.
"""

# BentoML publishes no types for its decorators and classes.
# mypy: disable-error-code="misc, no-any-return, untyped-decorator"

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import attrs
import bentoml
import click
import orjson
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.service.openapi.specification import (
    Components,
    OpenAPISpecification,
    PathItem,
    Tag,
)
from bentoml.exceptions import BentoMLException, NotFound
from pydantic import BaseModel, Field

from service.artifact import find_artifacts
from service.catalog import check_default
from service.collector import settle_collector
from service.config import PREFIX, Config, load_config
from service.engine import Engine
from service.errors import CarouselError, SettingsError, StoreUnavailableError
from service.key_ring import Caller, KeyRing
from service.leases import Leases
from service.logs import set_up_logging
from service.metrics import Metrics
from service.model import Model
from service.parent import end_with_parent, note_parent
from service.port import hold_port, told_host
from service.promotion import Promotions
from service.protocols.access import HOW_TO_OPEN, Access, is_loopback
from service.protocols.around import Around
from service.protocols.asgi import Receive
from service.protocols.front import Front, OwnApps
from service.protocols.native import NativeApp, read_request, write_answer
from service.protocols.openapi import native_paths
from service.protocols.openapi_form import SECURITY_SCHEMES, TAG
from service.protocols.openapi_v2 import v2_paths
from service.protocols.seats import Seats
from service.protocols.uvicorn_sockets import set_limits
from service.protocols.v2.http_app import V2App
from service.protocols.v2.metadata import Limits
from service.protocols.v2.rpc_server import RpcServer
from service.protocols.v2.rpc_service import InferenceService
from service.protocols.websocket import WebSocketApp
from service.shelf import Shelf, names_at
from service.snapshot import Keyring, open_keyring
from service.store.counted import CountedStore
from service.store.open import check_store, import_store, open_store
from service.sweeper import period_of
from service.tracing import Tracing, check_tracing, open_tracing
from service.watch import Watch
from service.wire import encode

logger = logging.getLogger("carousel")

LABEL = ("carousel", "artifact")  # what `python -m export` puts on a model in BentoML's store


def _load_config_or_stop() -> Config:
    try:
        return load_config()
    except SettingsError as error:
        raise SystemExit(f"carousel: {error.message}") from None


CONFIG = _load_config_or_stop()
import_store(CONFIG)
set_up_logging(CONFIG.log_format, CONFIG.access_log)
# BentoML listens on 0.0.0.0 unless told otherwise, by its configuration, BENTOML_HOST or --host.
LISTEN: Any = {"host": "127.0.0.1"} if CONFIG.is_loopback_only else {}
EXTRA_PORTS = [CONFIG.grpc_port] if CONFIG.grpc_port else []  # that a deployment opens too


class CarouselService(bentoml.Service[Any]):
    """A BentoML service whose native routes are answered before BentoML's own app."""

    own: OwnApps | None = None  # there once the service has started

    def to_asgi(self, is_main: bool = True) -> Any:
        app = super().to_asgi(is_main)
        return Front(app, self._require_own, _at_start) if is_main else app

    def _require_own(self) -> OwnApps:
        if self.own is None:
            raise RuntimeError("a request came before the service had started")
        return self.own

    @property
    def openapi_spec(self) -> OpenAPISpecification:
        """BentoML's page with our routes, as they answer. Of BentoML's own schemas none is left:
        they are of its /predict, and no OpenAPI 3.0 (pydantic writes JSON Schema of 2020)."""
        spec = super().openapi_spec
        ours = native_paths() | v2_paths()
        paths = {path: PathItem(**item) for path, item in ours.items()}
        tags = [Tag(name=TAG, description="LSTM models as stateful streams."), *(spec.tags or [])]
        components = KeyedComponents(schemas={}, securitySchemes=SECURITY_SCHEMES)
        return attrs.evolve(spec, paths={**spec.paths, **paths}, tags=tags, components=components)


@attrs.frozen
class KeyedComponents(Components):
    """BentoML's have no place for API keys."""

    securitySchemes: dict[str, Any] | None = None


class Prediction(BaseModel):
    """The reply to /predict."""

    session_id: str
    model: str
    version: str
    step: int = Field(description="The index of the next step.")
    created: bool = Field(description="Whether this request began the session.")
    y: list[Any] | None = Field(None, description="Rows of (time, ...), raw units.")
    text: str | None = Field(None, description="The characters chosen, one a step.")
    tokens: list[str] | None = Field(None, description="The tokens chosen, one a step.")
    labels: list[str] | None = Field(None, description="The classes chosen, one a step.")
    probabilities: list[list[float]] | None = Field(None, description="Of each class, a step.")
    alarm: list[bool] | None = Field(None, description="Whether a step's score is too high.")


@bentoml.service(
    name="carousel",
    description="Trained LSTM models as streams in which every session keeps its own state.",
    workers=CONFIG.workers,
    http=LISTEN,
    extra_ports=EXTRA_PORTS,
    service_class=CarouselService,
)
class Carousel:
    """LSTM models as stateful streams: every session keeps its own hidden and cell state."""

    bento_service: CarouselService  # set by BentoML
    engine: Engine
    access: Access
    watch: Watch
    rpc_server: RpcServer | None = None  # None: no gRPC
    tracing: Tracing | None

    @bentoml.on_deployment
    @staticmethod
    def settle_models() -> None:
        """Decide what is served, where sessions are, and to whom, before the workers start."""
        this: Any = Carousel  # what the decorator made of the class
        try:
            refuse_open_door(CONFIG, _asked_host())
            open_access(CONFIG)
            places = find_models(CONFIG, this.bento)
            check_default(CONFIG.default_model, names_at(places))
            check_store(CONFIG)
            open_snapshot_keys(CONFIG)
            if CONFIG.grpc_port:
                hold_port(_asked_host(), CONFIG.grpc_port, _asked_port(), PREFIX + "GRPC_PORT")
            check_tracing(os.environ)
        except SettingsError as error:
            raise SystemExit(f"carousel: {error.message}") from None
        note_parent()
        os.environ[PREFIX + "MODELS"] = ",".join(map(str, places))
        os.environ[PREFIX + "STORE_PATH"] = str(CONFIG.store_path.absolute())
        if CONFIG.api_keys_file is not None:
            os.environ[PREFIX + "API_KEYS_FILE"] = str(CONFIG.api_keys_file.absolute())
        if CONFIG.is_loopback_only:
            logger.warning("there are no API keys: only this machine is answered; %s", HOW_TO_OPEN)

    @bentoml.on_startup
    async def open(self) -> None:
        """Load the models, prove them, and begin to serve."""
        _log_what_happens()
        config = CONFIG
        load = partial(
            Model.load,
            variant=config.variant,
            threads=config.threads,
            batch=config.asked_batch,
            max_state_bytes=config.max_state_bytes,
        )
        shelf = Shelf(find_models(config, self.bento_service.bento), load)
        catalog = shelf.open(config.default_model)
        self.tracing = open_tracing(os.environ)
        metrics = Metrics()
        store = CountedStore(open_store(config), metrics.store_failed)
        renew_s = config.idle_timeout_s / 4
        promotions = Promotions(store, renew_s)
        self.engine = Engine(
            catalog,
            store,
            max_batch=config.max_batch,
            max_queue=config.max_queue,
            max_steps=config.max_steps_per_request,
            max_forecast_steps=config.max_forecast_steps,
            max_queue_per_tenant=config.tenant_queue,
            request_timeout_s=config.request_timeout_s,
            metrics=metrics,
            sweep_period_s=period_of(config.idle_timeout_s),
            fetch=partial(shelf.fetch, catalog),
            promotions=promotions,
            tracing=self.tracing,
        )
        with suppress(StoreUnavailableError):  # its log says why, and it connects when it can
            await self.engine.reach_store()
        self.watch = Watch(catalog, shelf, promotions, Leases(store, renew_s))
        await self.watch.start()
        self.engine.start()
        end_with_parent()
        self.access = open_access(config)
        native = NativeApp(
            self.engine, config.max_body_bytes, self.access, open_snapshot_keys(config)
        )
        limits = Limits(config.max_batch, config.max_sessions, config.idle_timeout_s)
        v2 = V2App(self.engine, limits, config.max_body_bytes, self.access)
        sockets = WebSocketApp(
            self.engine,
            config.max_body_bytes,
            self.access,
            Seats(config.max_connections, config.tenant_connections),
            config.ping_interval_s,
        )
        around = Around(config.cors_origins)
        self.bento_service.own = OwnApps([native, v2, sockets], native.before_metrics, around)
        _drain_on_signals(self.engine, sockets.closed)
        if config.grpc_port:
            rpcs = InferenceService(self.engine, self.access, limits)
            self.rpc_server = RpcServer(self.engine, rpcs, config.max_body_bytes)
            await self.rpc_server.start(told_host(), config.grpc_port)
        settle_collector()

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Answer what was accepted, and stop."""
        if self.rpc_server is not None:
            await self.rpc_server.close()
        await self.watch.close()
        await self.engine.close()
        if self.tracing is not None:
            await self.tracing.close()

    @bentoml.api(route="/predict")
    async def predict(
        self,
        session_id: Annotated[str, Field(min_length=1, max_length=256, examples=["pump-7"])],
        x: Annotated[
            list[Any] | str, Field(description="Rows of (time, ...), or text.", examples=[[[0.1]]])
        ],
        step: Annotated[int | None, Field(ge=0, description="The index of the first row.")] = None,
        model: Annotated[str | None, Field(description="`name` or `name:version`.")] = None,
        want: Annotated[list[str] | None, Field(description="Fields of the result.")] = None,
        choose: Annotated[dict[str, Any] | None, Field(description="How to choose.")] = None,
    ) -> Prediction:
        """Advance one session by the rows of `x`, and begin it if there is none."""
        asked = {"session_id": session_id, "x": x, "step": step, "model": model}
        body = encode({**asked, "want": want, "choose": choose})
        try:
            answer = await self.engine.predict(read_request(body, self._caller()))
        except CarouselError as error:  # of errors that are not its own, BentoML makes a 500
            raise BentoMLException(error.message, error_code=HTTPStatus(error.status)) from error
        return Prediction.model_validate(orjson.loads(write_answer(answer)))

    def _caller(self) -> Caller:
        """Of a call by BentoML's own road, as from a service that depends on this one."""
        try:
            scope: Any = self.bento_service.context.request.scope
        except LookupError:  # a call by code of this process
            scope = {"headers": []}
        return self.access.admit(scope)


def refuse_open_door(config: Config, host: str) -> None:
    """SettingsError if BentoML was told to listen on the network, and nobody is kept out."""
    if config.is_loopback_only and not is_loopback(host):
        raise SettingsError(
            f"the host {host} lets the network in, and there are no API keys; {HOW_TO_OPEN}"
        )


def open_access(config: Config) -> Access:
    """Who may call, as the settings say; SettingsError if the keys cannot be read."""
    if not config.has_keys:
        return Access(
            loopback_only=config.is_loopback_only,
            max_sessions=config.max_sessions_per_tenant,
            cors_origins=config.cors_origins,
        )
    return Access(
        KeyRing(config.api_keys_file, config.api_keys or "", config.max_sessions_per_tenant),
        cors_origins=config.cors_origins,
    )


def _asked_host() -> str:
    """Where BentoML will listen; not known here where a script calls `bentoml.serve(host=...)`,
    which `Access` covers."""
    return str(_asked("host") or BentoMLContainer.http.host.get())


def _asked_port() -> int:
    return int(_asked("port") or BentoMLContainer.http.port.get())


def _asked(option: str) -> Any:
    """Of `bentoml serve`: --host, or BENTOML_HOST, and the like; None where it was not given."""
    command = click.get_current_context(silent=True)
    return command.params.get(option) if command else None


def open_snapshot_keys(config: Config) -> Keyring:
    """What signs snapshots; SettingsError if it cannot be read."""
    own = config.store_path if config.store == "disk" else None
    return open_keyring(config.snapshot_key, own, shared=config.store == "redis")


def find_models(config: Config, bento: bentoml.Bento | None) -> list[Path]:
    """The places of the artifacts to serve, absolute, as `Shelf` takes them.

    Raises:
        SettingsError: there is nothing to serve, or a BentoML tag is not in the store.
    """
    if config.models:
        return [_locate(what) for what in config.models]
    if bento is not None:
        found = _ours(bentoml.models.get(info.tag) for info in bento.info.all_models)
    else:
        found = [config.artifacts.resolve()] if find_artifacts(config.artifacts) else []
        found = found or _ours(_newest_stored(bentoml.models.list()))
    if not found:
        raise SettingsError(
            f"there is no model to serve: {config.artifacts.resolve()} holds no artifact "
            "NAME/VERSION/, nor does BentoML's model store; run `python -m export`, or set "
            "CAROUSEL_MODELS"
        )
    return found


def _locate(what: str) -> Path:
    """A directory that holds one or several artifacts, or a BentoML tag."""
    path = Path(what)
    if path.is_dir() or os.sep in what:
        return path.resolve()
    try:
        return Path(bentoml.models.get(what).path)
    except NotFound:
        raise SettingsError(
            f"{PREFIX}MODELS names {what}, which is neither an artifact directory nor a tag in "
            "BentoML's model store (`bentoml models list` shows it)"
        ) from None


def _newest_stored(models: Iterable[bentoml.Model]) -> list[bentoml.Model]:
    newest: dict[str, bentoml.Model] = {}
    for model in sorted(models, key=lambda model: model.creation_time):
        newest[model.tag.name] = model
    return list(newest.values())


def _ours(models: Iterable[bentoml.Model]) -> list[Path]:
    key, value = LABEL
    return sorted(Path(model.path) for model in models if model.info.labels.get(key) == value)


def _log_what_happens() -> None:
    """Each model, and sessions that expire, in the server's log; not under `--quiet`.

    The level of that log is WARNING.
    """
    if logging.getLogger().isEnabledFor(logging.WARNING):
        for name in ("carousel.model", "carousel.sessions"):
            logging.getLogger(name).setLevel(logging.INFO)


def _at_start(receive: Receive) -> None:
    set_limits(receive, CONFIG.max_body_bytes, CONFIG.ping_interval_s)


def _drain_on_signals(engine: Engine, closed: Callable[[], Awaitable[None]]) -> None:
    """Drain as soon as the server is told to stop, then let it do what it would have done.

    Uvicorn closes idle connections and waits for busy ones; without this, a stream that its
    client keeps open would keep the worker from ever stopping. WebSockets it hangs up on, whatever
    they still wait for: so it is told once they are `closed`. A second Ctrl+C does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may; a server elsewhere is told to stop by its owner
    loop = asyncio.get_running_loop()
    stopping: list[Future[None]] = []
    told: set[int] = set()  # Ctrl+C reaches a worker twice: as it is, and from BentoML as SIGTERM
    for number in (signal.SIGTERM, signal.SIGINT):
        previous = signal.getsignal(number)

        async def stop(number: int, previous: Any) -> None:
            engine.drain()
            await closed()
            if callable(previous):
                previous(number, None)

        def drain(number: int, frame: FrameType | None, previous: Any = previous) -> None:
            if not stopping:
                stopping.append(asyncio.run_coroutine_threadsafe(stop(number, previous), loop))
            elif number == signal.SIGINT and number in told and callable(previous):
                previous(number, frame)
            told.add(number)

        signal.signal(number, drain)
