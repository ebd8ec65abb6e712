"""Who takes part: how each is started, and the ways in which it can be asked.

Words in braces are filled in: {bin} the folder of its environment's commands, {app} the folder of
its service under apps/, {port}, {next_port} and {last_port} free ports of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

APPS = Path(__file__).parent / "apps"
UNARY, NDJSON, V2, V2_BINARY = "unary", "ndjson", "v2", "v2 binary"
WEBSOCKET, WEBSOCKET_TEXT = "ws binary", "ws text"
WAYS = (UNARY, NDJSON, WEBSOCKET_TEXT, WEBSOCKET, V2, V2_BINARY)


@dataclass(frozen=True)
class Way:
    """One way of asking for a step."""

    link: str  # a name in links.LINKS
    path: str


@dataclass(frozen=True)
class Contestant:
    """A server of the comparison."""

    name: str
    app: str | None  # its folder under apps/, with requirements.txt; None: Carousel, from here
    command: tuple[str, ...]
    ways: Mapping[str, Way]
    settings: Mapping[str, str] = field(default_factory=dict)
    says_step: bool = False  # a request may carry its step's index, so that a retry is known as one

    @property
    def unary(self) -> Way:
        """The way of the checks."""
        return self.ways.get(UNARY) or self.ways[V2]


V2_WAYS = {
    V2: Way("v2", "/v2/models/lstm/infer"),
    V2_BINARY: Way("v2 binary", "/v2/models/lstm/infer"),
}
PREDICT = Way("http", "/predict")
UVICORN = ("{bin}/uvicorn", "app:app", "--port", "{port}")
BENTOML = ("{bin}/bentoml", "serve", "app:Lstm", "--host", "127.0.0.1", "--port", "{port}")
MLSERVER = {
    "MLSERVER_HOST": "127.0.0.1",
    "MLSERVER_HTTP_PORT": "{port}",
    "MLSERVER_GRPC_PORT": "{next_port}",
    "MLSERVER_METRICS_PORT": "{last_port}",
    "MLSERVER_PARALLEL_WORKERS": "0",  # runs the model itself: with a worker, 1.7 times the CPU
}
CAROUSEL = ("{bin}/bentoml", "serve", "--host", "127.0.0.1", "--port", "{port}")
GRPC = {"CAROUSEL_GRPC_PORT": "{next_port}"}  # on, as by default
CAROUSEL_WAYS = {
    UNARY: PREDICT,
    NDJSON: Way("ndjson", "/stream"),
    WEBSOCKET_TEXT: Way("text frames", "/ws"),
    WEBSOCKET: Way("binary frames", "/ws"),
    **V2_WAYS,
}
BASELINE = "fastapi"  # with uvicorn's access log, as it is started by default

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(
            "fastapi",
            "fastapi",
            UVICORN,
            {UNARY: PREDICT, WEBSOCKET_TEXT: Way("own text frames", "/ws/{session}")},
        ),
        Contestant("fastapi, no log", "fastapi", (*UVICORN, "--no-access-log"), {UNARY: PREDICT}),
        Contestant("fastapi, def", "fastapi", UVICORN, {UNARY: Way("http", "/predict-def")}),
        Contestant("bentoml", "bentoml", BENTOML, {UNARY: PREDICT}),
        Contestant("bentoml, torch", "bentoml_torch", BENTOML, {UNARY: PREDICT}),
        Contestant("litserve", "litserve", ("{bin}/python", "app.py", "{port}"), {UNARY: PREDICT}),
        Contestant(
            "litserve, batch",
            "litserve",
            ("{bin}/python", "app.py", "{port}", "64"),
            {UNARY: PREDICT},
        ),
        Contestant(
            "mlserver",
            "mlserver",
            ("{bin}/mlserver", "start", "{app}"),
            {V2: V2_WAYS[V2]},
            MLSERVER,
        ),
        Contestant("ray serve", "ray", ("{bin}/python", "app.py", "{port}"), {UNARY: PREDICT}),
        Contestant("carousel", None, CAROUSEL, CAROUSEL_WAYS, GRPC, says_step=True),
        Contestant(
            "carousel, memory",
            None,
            CAROUSEL,
            CAROUSEL_WAYS,
            {**GRPC, "CAROUSEL_STORE": "memory"},
            says_step=True,
        ),
    )
}
