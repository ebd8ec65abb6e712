"""Who takes part: how each is started, and the ways in which it can be asked.

Words in braces are filled in: {bin} the folder of its environment's commands, {app} the folder of
its service under apps/, {port}, {next_port} and {last_port} free ports of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.wire import carousel
from benchmarks.wire.carousel import NDJSON, UNARY, V2, WS_BINARY, WS_TEXT, Way
from benchmarks.wire.network import NAME

APPS = Path(__file__).parent / "apps"
CAROUSEL_WAYS = {
    name: way for name, way in carousel.ways(NAME).items() if not way.link.startswith("triton")
}  # those whose client is ours, as it is for all peers
STREAMS = 8  # connections that share the sessions, where workers are compared: each gets some
WORKER_WAYS = {
    UNARY: CAROUSEL_WAYS[UNARY],
    **{
        f"{name} x {STREAMS}": replace(CAROUSEL_WAYS[name], connections=STREAMS)
        for name in (NDJSON, WS_TEXT, WS_BINARY)
    },
}
WAYS = tuple({**CAROUSEL_WAYS, **WORKER_WAYS})
ONE_WORKER, TWO_WORKERS = "carousel, 1 worker", "carousel, 2 workers"


@dataclass(frozen=True)
class Contestant:
    """A server of the comparison."""

    name: str
    app: str | None  # its folder under apps/, with requirements.txt; None: Carousel, from here
    command: tuple[str, ...]  # Carousel's: none, see wire/carousel
    ways: Mapping[str, Way]
    settings: Mapping[str, str] = field(default_factory=dict)
    says_step: bool = False  # a request may carry its step's index, so that a retry is known as one

    @property
    def unary(self) -> Way:
        """The way of the checks."""
        return self.ways.get(UNARY) or self.ways[V2]


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
CAROUSEL = "carousel"
NAIVE = "bentoml"
BASELINE = "fastapi"  # with uvicorn's access log, as it is started by default

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(
            BASELINE,
            "fastapi",
            UVICORN,
            {UNARY: PREDICT, WS_TEXT: Way("own text frames", "/ws/{session}")},
        ),
        Contestant("fastapi, no log", "fastapi", (*UVICORN, "--no-access-log"), {UNARY: PREDICT}),
        Contestant("fastapi, def", "fastapi", UVICORN, {UNARY: Way("http", "/predict-def")}),
        Contestant(NAIVE, "bentoml", BENTOML, {UNARY: PREDICT}),
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
            {V2: CAROUSEL_WAYS[V2]},
            MLSERVER,
        ),
        Contestant("ray serve", "ray", ("{bin}/python", "app.py", "{port}"), {UNARY: PREDICT}),
        Contestant(CAROUSEL, None, (), CAROUSEL_WAYS, says_step=True),
        Contestant(ONE_WORKER, None, (), WORKER_WAYS, says_step=True),
        Contestant(TWO_WORKERS, None, (), WORKER_WAYS, {"CAROUSEL_WORKERS": "2"}, says_step=True),
        Contestant(
            "carousel, memory",
            None,
            (),
            CAROUSEL_WAYS,
            {"CAROUSEL_STORE": "memory"},
            says_step=True,
        ),
    )
}
