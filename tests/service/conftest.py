"""Real artifacts, built once, and engines over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.blocks import Block
from service.catalog import Catalog
from service.model import Model
from service.protocols.exchange import Exchange
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


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each block had that was submitted."""
    found: list[int] = []
    submit = Exchange.submit_blocks

    async def note(self: Any, blocks: Sequence[Block], *rest: Any) -> None:
        found.extend(len(block) for block in blocks)
        await submit(self, blocks, *rest)

    monkeypatch.setattr(Exchange, "submit_blocks", note)
    return found
