"""Modules as different people call them go through the whole road, and are served."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.exporter import ALL_VARIANTS
from export.source import Source
from service.artifact import Artifact
from service.layout import State
from service.manifest import VariantName
from service.model import Model
from service.pipeline import Pipeline
from service.runtime import Runtime
from tests.export import styles as S
from tests.export.short import export
from tests.export.test_calling import build

STEPS = 300
FLOAT: tuple[VariantName, ...] = ("onnx-fp32", "torchscript-fp32")


def example(flags: bool) -> np.ndarray:
    """(1, STEPS, 3); the last column is of zeros and ones where it is a flag."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, STEPS, 3)).astype(np.float32)
    if flags:
        x[..., 2] = rng.random((1, STEPS)) < 0.3
    return x


def exported(
    style: type[nn.Module], out: Path, call: str | None = None, *, width: int | None = None
) -> tuple[nn.Module, Artifact]:
    module = build(style) if width is None else build(style, width)
    source = Source("x:y", module, "0" * 64, example(width is not None), Pipeline())
    return module, export(source, "small", out, notation=call, variants=FLOAT).artifact


@pytest.mark.parametrize(
    ("style", "call", "width"),
    [
        (S.Concatenated, "x, s -> y, s", None),
        (S.StackedLast, "x, s -> y, s", None),
        (S.Masked, "x, mask:1, (h, c) -> h, c", 2),
        (S.ResetMask, "x, (h, c), done:1 -> y, (h, c)", 2),
        (S.Timed, "x, (h, c), t -> h, c", None),
        (S.Extra, "x, (h, c) -> y, y, (h, c), _", None),
        (S.LayerList, None, None),
        (S.KeptLazily, "x -> y", None),
        (S.KeptLayer, "X -> Y", None),
        (S.BatchOfOne, "X -> Y", None),
        (S.Vectors, "x, h -> h", None),
        (S.Columns, "x, h -> h", None),
        (S.Squeezing, "x, (h, c) -> y, (h, c)", None),
        (S.MixedAxes, "X, (h, c)=None -> Y, (h, c)", None),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_artifact_is_proven(
    style: type[nn.Module], call: str | None, width: int | None, tmp_path: Path
) -> None:
    """Both float variants pass the gate, over 2,000 carried steps against the module by itself."""
    _, artifact = exported(style, tmp_path, call, width=width)
    assert tuple(artifact.manifest.variants) == FLOAT
    for variant in artifact.manifest.variants.values():
        assert all(parity.passed for parity in variant.parity)
    assert artifact.manifest.ports.x.shape == ["B", "T", 3]


@pytest.mark.parametrize("style", [S.LearnedStart, S.KeptInBuffers, S.InitialMethod])
def test_a_learned_start_is_where_sessions_begin(style: type[nn.Module], tmp_path: Path) -> None:
    """The artifact stores it; runtime and model give what the module gives from its own start."""
    module, artifact = exported(style, tmp_path)
    assert artifact.manifest.initial is not None
    x = torch.from_numpy(example(False)[:, :20])
    wanted = _by_itself(module, x)
    for variant in FLOAT:
        y, _ = Runtime(artifact, variant).run(x.numpy(), artifact.initial)
        np.testing.assert_allclose(y, wanted, atol=1e-5)
        zeros: State = {name: np.zeros_like(v) for name, v in artifact.initial.items()}
        assert np.abs(Runtime(artifact, variant).run(x.numpy(), zeros)[0] - wanted).max() > 0.01
    model = Model.load(artifact.path)
    (y,), _, _ = model.run([model.encode(x[0].numpy())], [model.initial_state])
    np.testing.assert_allclose(y, wanted[0], atol=1e-5)


def _by_itself(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    """(1, T, ...): as its author runs it."""
    with torch.no_grad():
        if isinstance(module, S.LearnedStart):
            return module(x)[0].numpy()  # type: ignore[no-any-return]
        if isinstance(module, S.KeptInBuffers):
            module.reset(1)
            return torch.stack([module(step) for step in x.unbind(1)], dim=1).numpy()
        assert isinstance(module, S.InitialMethod)
        state, ys = module.init_hidden(1), []
        for step in x.unbind(1):
            y, state = module(step, state)
            ys.append(y)
        return torch.stack(ys, dim=1).numpy()


def test_a_start_outside_the_unit_interval_is_not_quantized_as_if_it_were_inside(
    tmp_path: Path,
) -> None:
    """h begins beyond 1, where rowwise int8 would clip it: it is left out, and it is said why."""

    class Far(S.LearnedStart):
        def __init__(self) -> None:
            super().__init__()
            self.h0 = nn.Parameter(torch.full((1, S.HIDDEN), 3.0))

    source = Source("x:y", build(Far), "0" * 64, example(False), Pipeline())
    variants: tuple[VariantName, ...] = ("onnx-fp32", "onnx-int8-rowwise")
    manifest = export(source, "small", tmp_path, variants=variants).artifact.manifest
    assert tuple(manifest.variants) == ("onnx-fp32",)
    assert manifest.ports.states[0].bound is None
    assert "bounded by" in next(e.why for e in manifest.lowering if e.road == "not written")
    source = Source("x:y", build(S.KeptLazily), "0" * 64, example(False), Pipeline())
    manifest = export(source, "small", tmp_path, variants=ALL_VARIANTS).artifact.manifest
    assert "onnx-int8-rowwise" in manifest.variants
