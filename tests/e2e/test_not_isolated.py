"""Stock int8 served for real: one session in a call, or refused where batches are asked for."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.artifact import Artifact
from service.manifest import MANIFEST
from service.model import Model
from tests.e2e.conftest import Server, serving
from tests.e2e.test_stream import line, stream

STOCK = {"sine-cell": "onnx-int8", "series-lstm": "torchscript-int8"}
STEPS = 24
CHUNKS = ((0, 1), (1, 8), (8, 9), (9, STEPS))


@pytest.fixture(scope="module")
def stock_artifacts(
    demo_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Each demo model with one of the stock int8 variants for its default."""
    root = tmp_path_factory.mktemp("stock")
    for name, variant in STOCK.items():
        path = demo_artifacts[name].path
        copy = root / name / path.name
        shutil.copytree(path, copy)
        manifest = json.loads((copy / MANIFEST).read_text())
        (copy / MANIFEST).write_text(json.dumps(manifest | {"default_variant": variant}))
    return root


@pytest.fixture(scope="module")
def stock_server(
    stock_artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """It serves both."""
    with serving(
        tmp_path_factory.mktemp("server"), CAROUSEL_ARTIFACTS=str(stock_artifacts)
    ) as server:
        yield server


@pytest.mark.parametrize("name", STOCK)
def test_stock_int8_is_never_marked_isolated_and_is_right_in_company(
    stock_server: Server, demo_artifacts: dict[str, Artifact], name: str
) -> None:
    """Sixteen sessions at once, half of them hostile: each gets the bits that it gets alone."""
    model = Model.load(demo_artifacts[name].path, STOCK[name])
    assert not model.artifact.variant(STOCK[name]).isolated
    rng = np.random.default_rng(0)
    scale = np.where(np.arange(16) % 2, 1e4, 1.0)
    xs = scale[:, None, None] * rng.normal(size=(16, STEPS, 1))
    with stock_server.client() as client:
        served = {
            entry["name"]: entry["variant"] for entry in client.get("/models").json()["models"]
        }
        assert (client.get("/readyz").status_code, served) == (200, STOCK)
        replies = stream(
            client,
            *(
                line(f"{name}-{n}", x[start:stop].tolist(), model=name)
                for start, stop in CHUNKS
                for n, x in enumerate(xs)
            ),
        )
    for n, x in enumerate(xs):
        mine = [reply["y"] for reply in replies if reply["session_id"] == f"{name}-{n}"]
        (alone,), _, _ = model.run([model.encode(x)], [model.initial_state])
        assert np.array_equal(np.concatenate(mine), model.decode(alone)), n
    model.runtime.isolated = True  # what the loop would have given, had it run them together
    together, _, _ = model.run([model.encode(x) for x in xs], [model.initial_state] * len(xs))
    (first,), _, _ = model.run([model.encode(xs[0])], [model.initial_state])
    assert np.abs(together[0] - first).max() > 1e-3
    assert f"{STOCK[name]}: golden sequences within " in stock_server.text()


def test_stock_int8_is_refused_where_batches_are_asked_for(
    stock_artifacts: Path, demo_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    """/readyz, the requests and the log say why and what to do; a model without it is served."""
    with serving(
        tmp_path,
        CAROUSEL_MODELS=f"{stock_artifacts / 'series-lstm'},{demo_artifacts['sine-cell'].path}",
        CAROUSEL_MAX_BATCH="64",
    ) as server:
        with server.client() as client:
            ready = client.get("/readyz")
            error = ready.json()["error"]
            assert (ready.status_code, error["code"]) == (503, "not_isolated")
            assert error["variant"] == "torchscript-int8"
            assert "CAROUSEL_MAX_BATCH=64 asks for batches; unset it" in error["message"]
            assert "CAROUSEL_VARIANT to one of ['onnx-fp32'" in error["message"]
            refused = client.post("/predict", json=line("s", [[0.5]], model="series-lstm"))
            assert (refused.status_code, refused.json()["error"]) == (503, error)
            assert client.post("/predict", json=line("s", [[0.5]])).status_code == 200
        version = demo_artifacts["series-lstm"].manifest.version
        assert f"series-lstm:{version} is not served: torchscript-int8 of " in server.text()
