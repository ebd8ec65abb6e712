"""Carousel as a server to be asked: `bentoml serve` of this checkout, in a folder of its own."""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.wire import servers
from benchmarks.wire.client import wait_until_it_answers
from benchmarks.wire.servers import ON_LOOPBACK, Server

UNARY, NDJSON, V2, V2_BINARY = "unary", "ndjson", "v2", "v2 binary"
WS_TEXT, WS_BINARY, WS_FRAME = "ws text", "ws binary", "ws binary, one frame"
TRITON_HTTP, TRITON_GRPC, TRITON_STREAM = "triton http", "triton grpc", "triton grpc stream"
A_FRAME = 256  # sessions in one binary frame: as many records as are read of a connection at a time


@dataclass(frozen=True)
class Way:
    """One way of asking for a step."""

    link: str  # a name in links.LINKS
    path: str  # of tritonclient's links: the model's name
    is_grpc: bool = False
    together: int = 1  # sessions that ask at one time, at most
    connections: int = 1  # of links that many sessions share

    def port_of(self, server: Server) -> int:
        return server.grpc_port if self.is_grpc else server.port


def ways(model: str) -> dict[str, Way]:
    """All that Carousel has, of the model of that name."""
    infer = f"/v2/models/{model}/infer"
    return {
        UNARY: Way("http", "/predict"),
        NDJSON: Way("ndjson", "/stream"),
        WS_TEXT: Way("text frames", "/ws"),
        WS_BINARY: Way("binary frames", "/ws"),
        WS_FRAME: Way("binary frames", "/ws", together=A_FRAME),
        V2: Way("v2", infer),
        V2_BINARY: Way("v2 binary", infer),
        TRITON_HTTP: Way("triton http", model),
        TRITON_GRPC: Way("triton grpc", model, is_grpc=True),
        TRITON_STREAM: Way("triton stream", model, is_grpc=True),
    }


def start(
    folder: Path,
    models: Path,
    width: int,
    settings: Mapping[str, str],
    port: int | None = None,
) -> Server:
    """Start it and wait until it answers.

    Args:
        folder: for its log and what it keeps; of another time: it goes on with that.
        models: an artifact, or a directory of artifacts.
        width: numbers in a row of x of its default model.
        settings: CAROUSEL_STORE and others.
    Raises:
        ServerError: it does not start; the message has the end of its log.
    """
    port = port or servers.free_port()
    grpc_port = servers.free_port()
    bentoml = str(Path(sys.executable).parent / "bentoml")
    server = servers.start(
        [bentoml, "serve", "--host", ON_LOOPBACK, "--port", str(port)],
        ROOT,
        {
            "CAROUSEL_MODELS": str(models.resolve()),
            "CAROUSEL_STORE_PATH": str(folder / "sessions"),
            "CAROUSEL_GRPC_PORT": str(grpc_port),  # on, as by default
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            **settings,
        },
        folder / "log",
        port,
        grpc_port,
    )
    try:
        asyncio.run(wait_until_it_answers(server, "http", "/predict", width))
    except BaseException:
        server.kill()
        raise
    return server
