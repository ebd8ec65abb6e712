"""The three promises, over every variant of both demo models, on held-out real input.

What is compared is computed here from the trained module and the raw files, not by the gate.
"""

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import zoo
from models.forecasting import HORIZON
from models.forecasting import forecast as closed_loop
from service.artifact import Artifact
from service.layout import State
from service.model import Model
from service.pipeline import Pipeline
from service.runtime import Runtime
from tests.bits import same_bits
from tests.e2e.conftest import Server, serving

Array = np.ndarray
NAMES = ("sine-cell", "series-lstm")
VARIANTS = (
    "onnx-fp32",
    "onnx-int8",
    "onnx-int8-rowwise",
    "torchscript-fp32",
    "torchscript-int8",
)
STEPS = 2_000
SESSIONS = 50
WARM = 200  # steps of real input before a closed loop

every_model = pytest.mark.parametrize("name", NAMES)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="session")
def runtimes(demo_artifacts: dict[str, Artifact]) -> dict[tuple[str, str], Runtime]:
    return {(n, v): Runtime(demo_artifacts[n], v) for n in NAMES for v in VARIANTS}


@pytest.fixture(scope="session")
def held_out(demo_artifacts: dict[str, Artifact], demo_runs: dict[str, Path]) -> dict[str, Array]:
    """name -> (1, T, I) float32, standardised."""
    found = {}
    for name, artifact in demo_artifacts.items():
        raw = np.load(demo_runs[name] / "holdout.npy")
        found[name] = artifact.manifest.pipeline.encode(raw)[None].astype(np.float32)
    return found


def zeros(artifact: Artifact, batch: int) -> State:
    return {n: np.repeat(v, batch, axis=0) for n, v in artifact.initial.items()}


@every_model
@pytest.mark.parametrize(
    ("variant", "tolerance"),
    [
        ("onnx-fp32", 1e-5),
        ("torchscript-fp32", 1e-5),
        ("onnx-int8", None),
        ("onnx-int8-rowwise", None),
        ("torchscript-int8", None),
    ],
)
def test_an_artifact_equals_its_reference_for_2000_steps(
    name: str,
    variant: str,
    tolerance: float | None,
    demo_artifacts: dict[str, Artifact],
    demo_runs: dict[str, Path],
    held_out: dict[str, Array],
    runtimes: dict[tuple[str, str], Runtime],
) -> None:
    """fp32 to 1e-5; int8 to what its manifest states, and never bit-equal to float."""
    artifact = demo_artifacts[name]
    module = getattr(zoo, name.replace("-", "_"))().eval()
    module.load_state_dict(load_file(demo_runs[name] / "weights.safetensors"))
    x = held_out[name][:, :STEPS]
    with torch.no_grad():
        wanted, _ = module(torch.from_numpy(x))
    y, _ = runtimes[name, variant].run(x, zeros(artifact, 1))
    stated = artifact.variant(variant).parity[0].tolerance
    error = np.abs(y - wanted.numpy())
    assert error.shape[1] == STEPS
    assert error.max() <= (tolerance or stated.atol)
    assert ("int8" in variant) == (error.max() > 1e-4)


@every_model
@every_variant
def test_any_cut_into_chunks_gives_the_same_bits(
    name: str,
    variant: str,
    demo_artifacts: dict[str, Artifact],
    held_out: dict[str, Array],
    runtimes: dict[tuple[str, str], Runtime],
) -> None:
    """Whole, one by one, and at random: the same y and the same final state."""
    artifact, runtime = demo_artifacts[name], runtimes[name, variant]
    x = held_out[name][:, :300]
    whole, final = runtime.run(x, zeros(artifact, 1))
    rng = np.random.default_rng(0)
    cuts = [list(range(301))]
    cuts += [[0, *sorted(rng.choice(299, k, replace=False) + 1), 300] for k in (1, 5, 60)]
    for cut in cuts:
        state, ys = zeros(artifact, 1), []
        for start, stop in itertools.pairwise(cut):
            y, state = runtime.run(np.ascontiguousarray(x[:, start:stop]), state)
            ys.append(y)
        assert same_bits(np.concatenate(ys, axis=1), whole)
        assert all(same_bits(state[n], final[n]) for n in final)


@every_model
@every_variant
def test_a_row_in_a_batch_gives_what_it_gives_alone(
    name: str,
    variant: str,
    demo_artifacts: dict[str, Artifact],
    held_out: dict[str, Array],
    runtimes: dict[tuple[str, str], Runtime],
) -> None:
    """Rows of any length and any scale side by side, each bit for bit as alone; padding is 0."""
    artifact, runtime = demo_artifacts[name], runtimes[name, variant]
    rng = np.random.default_rng(1)
    for batch in (2, 7, 33):
        starts = rng.integers(0, held_out[name].shape[1] - 16, batch)
        x = np.stack([held_out[name][0, s : s + 16] for s in starts])
        x[rng.integers(batch)] *= 1e4
        lengths = rng.integers(1, 17, batch)
        state = {
            n: rng.uniform(-1, 1, v.shape).astype(np.float32)
            for n, v in zeros(artifact, batch).items()
        }
        y, new = runtime.run(x, state, lengths)
        for b, length in enumerate(lengths):
            row = {n: v[b : b + 1] for n, v in state.items()}
            alone, alone_state = runtime.run(x[b : b + 1, :length], row)
            assert same_bits(y[b : b + 1, :length], alone)
            assert not y[b, length:].any()
            assert all(same_bits(new[n][b : b + 1], alone_state[n]) for n in new)


@pytest.fixture(scope="module", params=VARIANTS)
def server(
    request: pytest.FixtureRequest,
    demo_artifacts: dict[str, Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Server]]:
    """A real `bentoml serve` of both demo models, once for each variant."""
    variant = str(request.param)

    root = demo_artifacts["sine-cell"].path.parents[1]
    with serving(
        tmp_path_factory.mktemp("laws"),
        CAROUSEL_ARTIFACTS=str(root),
        CAROUSEL_VARIANT=variant,
    ) as started:
        yield variant, started


async def stream(
    client: httpx.AsyncClient, name: str, session: str, rows: list[list[float]], rng: random.Random
) -> list[list[float]]:
    """Send one sequence in random chunks, each after the reply to the one before."""
    got: list[list[float]] = []
    while len(got) < len(rows):
        step = len(got)
        body = {"session_id": session, "model": name, "step": step}
        chunk = rows[step : step + rng.randint(1, 6)]
        reply = await client.post("/predict", json={**body, "x": chunk})
        assert reply.status_code == 200, reply.text
        assert reply.json()["step"] == step + len(chunk)
        got += reply.json()["y"]
        await asyncio.sleep(rng.random() / 500)  # so that the sessions interleave at random
    return got


async def stream_all(
    url: str, name: str, rows: list[list[list[float]]], seed: int
) -> list[list[list[float]]]:
    limits = httpx.Limits(max_connections=SESSIONS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        tasks = [
            stream(client, name, f"{name}-{seed}-{k}", sequence, random.Random(seed + k))
            for k, sequence in enumerate(rows)
        ]
        return list(await asyncio.gather(*tasks))


@pytest.mark.slow
@every_model
def test_50_interleaved_sessions_equal_50_separate_ones_over_http(
    name: str,
    server: tuple[str, Server],
    demo_artifacts: dict[str, Artifact],
    demo_runs: dict[str, Path],
) -> None:
    """50 clients at once get, digit for digit, what each sequence gives alone in this process."""
    variant, running = server
    model = Model.load(demo_artifacts[name].path, variant)
    raw = np.load(demo_runs[name] / "holdout.npy")
    rows = [raw[20 * k : 20 * k + 25].astype(float) for k in range(SESSIONS)]
    got = asyncio.run(stream_all(running.url, name, [r.tolist() for r in rows], 1))
    for k, sequence in enumerate(rows):
        (y,), _, _ = model.run([model.encode(sequence)], [model.initial_state])
        assert got[k] == [[float(str(v)) for v in row] for row in model.decode(y)]


@pytest.mark.slow
@every_model
def test_a_forecast_is_the_closed_loop_of_the_trained_module(
    name: str, server: tuple[str, Server], demo_runs: dict[str, Path]
) -> None:
    """Standardised: fp32 to what the gate allows a closed loop, int8 to its 0.3 of a spread."""
    variant, running = server
    module = getattr(zoo, name.replace("-", "_"))().eval()
    module.load_state_dict(load_file(demo_runs[name] / "weights.safetensors"))
    pipeline = Pipeline.model_validate_json((demo_runs[name] / "pipeline.json").read_bytes())
    raw = np.load(demo_runs[name] / "holdout.npy")[:WARM].astype(float)
    x = torch.from_numpy(pipeline.encode(raw).astype(np.float32))[None]
    with torch.no_grad():
        _, wanted = closed_loop(module, x, HORIZON)
    body = {"model": name, "x": raw.tolist(), "horizon": HORIZON}
    with httpx.Client(base_url=running.url, timeout=60) as client:
        _, *lines, _ = map(json.loads, client.post("/forecast", json=body).text.splitlines())
    assert [line["step"] for line in lines] == list(range(WARM, WARM + HORIZON))
    found = pipeline.encode(np.array([line["y"] for line in lines]))
    allowed = 0.3 if "int8" in variant else 1e-4
    assert np.abs(found - wanted[0].numpy()).max() <= allowed
