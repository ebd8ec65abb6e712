"""Parity, chunking, batch and service, for every model of the zoo and every variant it has.

What is compared is computed here from the trained module and the raw files, not by the gate.
"""

import itertools
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.calling.call import parse_call
from models.zoo import ZOO, Entry
from service.artifact import Artifact, find_artifacts
from service.layout import State
from service.manifest import Tolerance
from service.model import Model
from service.runtime import Runtime
from tests.bits import same_bits
from tests.conftest import ROOT
from tests.e2e.conftest import Server, serving

Array = np.ndarray
STEPS = 400
LATE = 8  # steps whose answer is asked of a module that gives only its last
FLOAT = Tolerance(atol=2e-5, rtol=2e-5)  # of this machine's module and the artifact's graphs

pytestmark = pytest.mark.slow
every_model = pytest.mark.parametrize("name", ZOO)


@dataclass(frozen=True)
class Exported:
    """A model of the zoo with its artifact and held-out input."""

    entry: Entry
    artifact: Artifact
    run: Path
    raw: Array  # (T, ...) in the client's units
    x: Array  # (1, T, ...) as the module takes it

    @property
    def variants(self) -> list[str]:
        return list(self.artifact.manifest.variants)

    def initial(self, batch: int) -> State:
        return {n: np.repeat(v, batch, axis=0) for n, v in self.artifact.initial.items()}

    def truth(self, steps: list[int]) -> Array:
        """The trained module's own answer after each of `steps`, (1, len(steps), ...)."""
        module = self.entry.factory().eval()
        module.load_state_dict(load_file(self.run / "weights.safetensors"))
        x = torch.from_numpy(self.x)
        with torch.no_grad():
            if self.artifact.manifest.mode == "windowed":
                return self._windows(module, x, steps)
            if parse_call(self.entry.call).output == "Y":
                begin = getattr(module, "init_hidden", None)
                returned = module(x, begin(1)) if begin else module(x)
                y = returned[0] if isinstance(returned, tuple) else returned
                return np.asarray(y[:, steps])
            return np.stack([module(x[:, : t + 1]).numpy() for t in steps], axis=1)

    def _windows(self, module: torch.nn.Module, x: torch.Tensor, steps: list[int]) -> Array:
        size = int(self.artifact.manifest.ports.states[0].shape[1])
        padded = torch.cat([x.new_zeros(1, size - 1, *x.shape[2:]), x], dim=1)
        answers = []
        for t in steps:
            window = padded[:, t : t + size]
            y = module(window)
            if self.artifact.manifest.pipeline.alarm is not None:
                y = ((y - window) ** 2).mean(dim=(1, 2)).reshape(1, 1)
            answers.append(y.numpy())
        return np.stack(answers, axis=1)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """All models, trained and exported in a process of their own."""
    root = tmp_path_factory.mktemp("zoo")
    command = [sys.executable, "-m", "tests.laws.zoo_runs", str(root / "runs")]
    done = subprocess.run(
        [*command, str(root / "artifacts")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = {}
    for path in find_artifacts(root / "artifacts"):
        artifact = Artifact.load(path)
        name = artifact.manifest.name
        raw = np.load(root / "runs" / name / "holdout.npy")[:STEPS]
        encoded = raw if raw.dtype.kind == "i" else artifact.manifest.pipeline.encode(raw)
        x = encoded[None].astype(artifact.manifest.ports.x.dtype)
        found[name] = Exported(ZOO[name], artifact, root / "runs" / name, raw, x)
    return found


@every_model
def test_every_variant_equals_the_trained_module(name: str, zoo: dict[str, Exported]) -> None:
    """Float to rounding, int8 to what its manifest states, from the first step to the last."""
    model = zoo[name]
    assert {"onnx-fp32", "torchscript-fp32"} <= {*model.variants}
    steps = sorted({0, 1, *np.linspace(2, STEPS - 1, LATE).astype(int).tolist()})
    wanted = model.truth(steps)
    for variant in model.variants:
        y, _ = Runtime(model.artifact, variant).run(model.x, model.initial(1))
        stated = model.artifact.variant(variant).parity[0].tolerance
        allowed = stated if "int8" in variant or stated.atol > FLOAT.atol else FLOAT
        excess = np.abs(y[:, steps] - wanted) - allowed.atol - allowed.rtol * np.abs(wanted)
        assert excess.max() <= 0, (variant, float(excess.max()))


@every_model
def test_any_cut_into_chunks_gives_the_same_bits(name: str, zoo: dict[str, Exported]) -> None:
    """One by one and at random: y and state as in one piece, for every variant."""
    model = zoo[name]
    x = model.x[:, :60]
    rng = np.random.default_rng(0)
    cuts = [list(range(61)), [0, *sorted(rng.choice(59, 7, replace=False) + 1), 60]]
    for variant in model.variants:
        runtime = Runtime(model.artifact, variant)
        whole, final = runtime.run(x, model.initial(1))
        for cut in cuts:
            state, ys = model.initial(1), []
            for start, stop in itertools.pairwise(cut):
                y, state = runtime.run(np.ascontiguousarray(x[:, start:stop]), state)
                ys.append(y)
            assert same_bits(np.concatenate(ys, axis=1), whole), variant
            assert all(same_bits(state[n], final[n]) for n in final), variant


@every_model
def test_a_row_in_a_batch_gives_what_it_gives_alone(name: str, zoo: dict[str, Exported]) -> None:
    """Rows of any length side by side, one of them of hostile scale; padding is 0."""
    model = zoo[name]
    rng = np.random.default_rng(1)
    starts = rng.integers(0, STEPS - 12, 5)
    x = np.stack([model.x[0, s : s + 12] for s in starts])
    if x.dtype.kind == "f":
        x[2] *= 1e4
    lengths = rng.integers(1, 13, 5)
    for variant in model.variants:
        runtime = Runtime(model.artifact, variant)
        _, state = runtime.run(x[:, :3], model.initial(5))  # each row's own past
        y, new = runtime.run(x, state, lengths)
        for b, length in enumerate(lengths):
            row = {n: v[b : b + 1] for n, v in state.items()}
            alone, after = runtime.run(x[b : b + 1, :length], row)
            assert same_bits(y[b : b + 1, :length], alone), variant
            assert not y[b, length:].any(), variant
            assert all(same_bits(new[n][b : b + 1], after[n]) for n in new), variant


@pytest.fixture(scope="module")
def server(zoo: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real `bentoml serve` of all of them."""
    root = zoo["sine-cell"].artifact.path.parents[1]
    with serving(tmp_path_factory.mktemp("zoo-serve"), CAROUSEL_ARTIFACTS=str(root)) as started:
        yield started


@every_model
def test_a_served_model_streams_raw_units(
    name: str, zoo: dict[str, Exported], server: Server
) -> None:
    """Two chunks over HTTP give, digit for digit, what the model gives in one piece here."""
    model = Model.load(zoo[name].artifact.path)
    rows = zoo[name].raw[:9]
    x = rows.astype(np.int64 if rows.dtype.kind == "i" else np.float64)
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    wanted = model.decode(y)
    got = []
    for step, chunk in ((0, x[:4]), (4, x[4:])):
        body = {"session_id": f"zoo-{name}", "model": name, "step": step, "x": chunk.tolist()}
        request = urllib.request.Request(f"{server.url}/predict", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as reply:
            got += json.loads(reply.read())["y"]
    assert got == json.loads(json.dumps(_digits(wanted)))


FORECASTERS = {
    *("sine-cell", "sine-lstm", "sine-gru", "series-cell", "series-lstm", "series-stack"),
    *("char-rnn", "attention-lstm", "norm-lstm", "transformer"),
}


@every_model
def test_a_served_model_forecasts_what_it_is_told_back(
    name: str, zoo: dict[str, Exported], server: Server
) -> None:
    """Its own y, or of text its likeliest token, as the next x, step by step over HTTP, gives the
    same lines; a model whose y is something else than x says so."""
    x = zoo[name].raw[:60].tolist()
    start = {"session_id": f"loop-{name}", "model": name, "x": x}
    reply = _post(server, "predict", start)[0]
    lines = _post(server, "forecast", {"session_id": f"loop-{name}", "horizon": 20})
    if name not in FORECASTERS:
        assert lines[0]["error"]["code"] == "cannot_forecast"
        return
    assert len(lines) == 22 and lines[-1] == {"done": True, "step": len(x) + 20}
    for line in lines[1:-1]:
        assert (line["step"], line["y"]) == (reply["step"], reply["y"][-1])
        told = reply["text"][-1] if "text" in reply else reply["y"][-1:]
        assert line.get("text") == (told if "text" in reply else None)
        reply = _post(server, "predict", {**start, "x": told})[0]


def _post(server: Server, route: str, body: object) -> list[dict[str, Any]]:
    """The lines of the reply, whatever its status."""
    request = urllib.request.Request(f"{server.url}/{route}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return [json.loads(line) for line in reply.read().splitlines()]
    except urllib.error.HTTPError as refused:
        return [json.loads(refused.read())]


def _digits(values: Array) -> object:
    """As JSON has them: the shortest digits that give the value back in its own dtype."""
    if values.ndim == 0:
        return float(str(values[()]))
    return [_digits(np.asarray(value)) for value in values]
