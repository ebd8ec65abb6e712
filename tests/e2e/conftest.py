"""A real `bentoml serve`, in a process of its own, on a free port, in a clean BENTOML_HOME."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from service.artifact import Artifact
from service.model import Model
from tests.service.build_artifact import Spec, build_artifact, scaling

ROOT = Path(__file__).parents[2]
BENTOML = Path(sys.executable).with_name("bentoml")
START_TIMEOUT_S = 60  # a cold start takes two seconds; a busy machine, longer
STOP_TIMEOUT_S = 30

SINE = Spec("sine-cell", seed=1)
SERIES = Spec("series-lstm", input_size=8, output_size=2, seed=2, scaling=scaling(8, 2))
FRAGILE = Spec("fragile", seed=3, overflow_above=6.0)


def environment(home: Path, **settings: str) -> dict[str, str]:
    """This process's environment without its own settings, and with `settings`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CAROUSEL_", "BENTOML_"))}
    return kept | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"} | settings


@dataclass
class Server:
    """A running service."""

    process: psutil.Popen
    port: int
    log: Path
    grpc_port: int = 0  # none

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def text(self) -> str:
        """All that it has logged."""
        return self.log.read_text()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def wait_until_it_listens(self) -> None:
        """Return once /readyz is answered, with whatever status."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                httpx.get(self.url + "/readyz", timeout=5)
                return
            except httpx.TransportError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start:\n{self.text()}") from None
                time.sleep(0.1)

    def terminate(self) -> None:
        """Ask it to stop, as an operator would."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all its children by SIGKILL, at once."""
        self.process.suspend()  # or it would start a worker anew in the meantime
        family = [self.process, *self.process.children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family)

    def stop(self) -> None:
        """End the process and all its children."""
        if self.process.poll() is not None:
            return
        family = [self.process, *self.process.children(recursive=True)]
        self.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
        for process in alive:
            process.kill()


Start = Callable[..., Server]


# Below the ports that the kernel gives to whoever asks for any, and each test process begins
# elsewhere: nobody takes a port between its choice here and the server's start.
_ports = itertools.count(20_000 + os.getpid() * 97 % 12_000)


def free_port() -> int:
    while True:
        port = next(_ports)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def start_server(
    directory: Path,
    *what: str,
    cwd: Path = ROOT,
    home: Path | None = None,
    port: int | None = None,
    grpc_port: int | None = None,
    **settings: str,
) -> Server:
    """`bentoml serve WHAT`, with its log, sessions and BENTOML_HOME under `directory`.

    Started again on the `port` that it had, it goes on in its log.
    """
    port = port or free_port()
    grpc_port = grpc_port or free_port()
    log = directory / f"serve-{port}.log"
    settings.setdefault("BENTOML_HOST", "127.0.0.1")
    settings.setdefault("CAROUSEL_GRPC_PORT", str(grpc_port))
    settings.setdefault("CAROUSEL_STORE_PATH", str(directory / f"sessions-{port}"))
    with log.open("ab") as out:
        process = psutil.Popen(
            [str(BENTOML), "serve", *what],
            cwd=cwd,
            env=environment(home or directory / "bentoml", BENTOML_PORT=str(port), **settings),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Server(process, port, log, int(settings["CAROUSEL_GRPC_PORT"]))


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of three artifacts: one feature wide, eight wide, and one that can overflow."""
    root = tmp_path_factory.mktemp("artifacts")
    for spec in (SINE, SERIES, FRAGILE):
        build_artifact(root, spec)
    return root


@pytest.fixture(scope="session")
def models(artifacts: Path) -> dict[str, Model]:
    """name -> the same model in this process, to compare with."""
    return {
        manifest.parent.parent.name: Model.load(manifest.parent)
        for manifest in artifacts.glob("*/*/manifest.json")
    }


@pytest.fixture(scope="session")
def server(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service for all tests that leave it as it was."""
    server = start_server(tmp_path_factory.mktemp("server"), CAROUSEL_ARTIFACTS=str(artifacts))
    try:
        server.wait_until_it_listens()
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def start(artifacts: Path, tmp_path: Path) -> Iterator[Start]:
    """Start services of a test's own, and stop them after it."""
    started: list[Server] = []

    def begin(*what: str, **options: object) -> Server:
        options.setdefault("CAROUSEL_ARTIFACTS", str(artifacts))
        server = start_server(tmp_path, *what, **options)  # type: ignore[arg-type]
        started.append(server)
        return server

    yield begin
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def demo_server(
    demo_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """What `make serve` runs, on a free port."""
    root = demo_artifacts["sine-cell"].path.parents[1]
    server = start_server(
        tmp_path_factory.mktemp("demos"),
        CAROUSEL_ARTIFACTS=str(root),
        CAROUSEL_DEFAULT_MODEL="sine-cell",
    )
    try:
        server.wait_until_it_listens()
        yield server
    finally:
        server.stop()
