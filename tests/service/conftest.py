"""Real artifacts, built once, and engines over them."""

from pathlib import Path

import pytest

from service.catalog import Catalog
from service.model import Model
from tests.service.build_artifact import Spec, build_artifact, scaling

SINE = Spec("sine-cell", seed=1)
SERIES = Spec("series-lstm", input_size=8, output_size=2, seed=2, scaling=scaling(8, 2))


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """name -> the directory of its artifact."""
    root = tmp_path_factory.mktemp("artifacts")
    return {spec.name: build_artifact(root, spec) for spec in (SINE, SERIES)}


@pytest.fixture(scope="session")
def sine(artifacts: dict[str, Path]) -> Model:
    """One feature in, one out, no scaling."""
    return Model.load(artifacts["sine-cell"])


@pytest.fixture(scope="session")
def series(artifacts: dict[str, Path]) -> Model:
    """Eight features in, two out, in raw units."""
    return Model.load(artifacts["series-lstm"])


@pytest.fixture(scope="session")
def catalog(sine: Model, series: Model) -> Catalog:
    return Catalog([series, sine])
