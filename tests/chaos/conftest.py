"""What every chaos test starts from: one small model, here and in the services."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.model import Model
from tests.chaos.servers import Redis, Service
from tests.e2e.conftest import SINE
from tests.service.build_artifact import build_artifact

StartService = Callable[..., Service]


def disk(directory: Path, workers: int = 2) -> dict[str, str]:
    """The settings of a durable service of this machine."""
    return {
        "CAROUSEL_STORE": "disk",
        "CAROUSEL_STORE_PATH": str(directory / "sessions"),
        "CAROUSEL_WORKERS": str(workers),
    }


@pytest.fixture(params=["memory", "disk"])
def local_store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of each store that lives on this machine."""
    return disk(tmp_path) if request.param == "disk" else {"CAROUSEL_STORE": "memory"}


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chaos-artifacts")
    build_artifact(root, SINE)
    return root


@pytest.fixture(scope="session")
def model(artifacts: Path) -> Model:
    """The same model in this process, for the oracle."""
    (manifest,) = artifacts.glob("*/*/manifest.json")
    return Model.load(manifest.parent)


@pytest.fixture
def service(artifacts: Path, tmp_path: Path) -> Iterator[StartService]:
    """A service with these settings, not started yet; stopped after the test."""
    made: list[Service] = []

    def make(**settings: str) -> Service:
        one = Service(tmp_path, {"CAROUSEL_ARTIFACTS": str(artifacts), **settings})
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    directory = tmp_path / "redis"
    directory.mkdir()
    server = Redis(directory)
    server.start()
    yield server
    server.stop()
