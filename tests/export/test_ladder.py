"""What is quantized is chosen: by drift, and by time where it is asked for."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from export.__main__ import main
from export.draft import ports_of
from export.errors import NothingQuantizedError, ParityError
from export.exporter import Exported, export
from export.finding import find_reference
from export.graphs import int8_product
from export.graphs.graph_builder import all_nodes
from export.graphs.session import start_session
from export.ladder import MAX_RUNGS, climb, in_words
from export.lowering import lower_reference
from export.measured import Measured
from export.precision import Plan, Precision
from export.source import Source
from models.zoo import sine_cell
from service.manifest import VariantName
from service.pipeline import Pipeline
from tests.bits import same_bits
from tests.export import short
from tests.export.near_edge import CALL, NearEdge, SteepHead
from tests.export.one_step import run_one_step
from tests.export.operator_cells import Elu, LayerNormLSTM

ROWWISE, WEIGHTS, FLOAT = Precision
STEPS = 1_500  # of the gate's cases
BOTH: tuple[VariantName, ...] = ("onnx-fp32", "onnx-int8-rowwise")


@dataclass
class Additive:
    """Layers whose drifts add up, each a part of what is allowed: (rowwise, weights)."""

    drifts: Mapping[str, tuple[float, float]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)  # of a step, by a layer's int8
    proven: list[str] = field(default_factory=list)

    @property
    def layers(self) -> Mapping[str, int]:
        return {layer: self.sizes.get(layer, 1) for layer in self.drifts}

    def prove(self, plan: Plan) -> tuple[Sequence[Measured], int]:
        self.proven.append(in_words({layer: plan.of(layer) for layer in self.layers}))
        return self.probe(plan), 1000

    def probe(self, plan: Plan) -> Sequence[Measured]:
        share = sum((*self.drifts[k], 0.0)[[*Precision].index(plan.of(k))] for k in self.drifts)
        measured = SimpleNamespace(
            variant="a variant",
            case=SimpleNamespace(name="a case"),
            diverges=False,
            excess=np.array([share]),
            judged=1,
            max_error=share,
            passed=share <= 1,
            worst=0,
            faults=[] if share <= 1 else [f"drifts by {share:.1f}"],
        )
        return [cast(Measured, measured)]

    def gain(self, plan: Plan, over: Plan | None = None) -> float:
        def time(plan: Plan | None) -> float:
            int8 = [k for k in self.layers if plan and plan.of(k) is ROWWISE]
            return float(1 / np.prod([self.gains.get(k, 1.0) for k in int8]))

        return time(over) / time(plan)


def test_where_all_pass_there_is_one_rung() -> None:
    """Nothing is tried that need not be."""
    trials = Additive({"a": (0.5, 0.1), "b": (0.5, 0.1)})
    ladder = climb(trials)
    assert trials.proven == ["rowwise: a, b"]
    assert ladder.taken is ladder.rungs[0]
    assert (ladder.reasons, ladder.why_not) == ({}, "")


def test_a_layer_over_the_limit_alone_goes_to_where_it_is_not() -> None:
    """At once, each to its own precision, with what it does wrong."""
    trials = Additive({"a": (5.0, 3.0), "b": (0.1, 0.1), "c": (2.0, 0.2)})
    ladder = climb(trials)
    assert trials.proven == ["rowwise: a, b, c", "rowwise: b; weights: c; float: a"]
    assert ladder.taken is ladder.rungs[1]
    assert ladder.reasons == {"a": "quantized, drifts by 5.0", "c": "quantized, drifts by 2.0"}


def test_of_layers_over_the_limit_together_the_most_drift_for_its_weights_moves() -> None:
    """One at a time; what would hardly help is not moved, however small it is."""
    drifts = {"large": (0.8, 0.0), "small": (0.7, 0.0), "tiny": (0.05, 0.0)}
    trials = Additive(drifts, sizes={"large": 100, "small": 10, "tiny": 1})
    ladder = climb(trials)
    assert trials.proven[1:] == ["rowwise: large, tiny; weights: small"]
    assert ladder.reasons["small"].endswith("alone it takes 70% of what is allowed")


def test_many_layers_take_few_rungs() -> None:
    """Several moves at once where there are more of them than rungs."""
    trials = Additive({f"layer {k}": (0.9, 0.8) for k in range(30)})
    ladder = climb(trials)
    assert ladder.taken
    assert len(ladder.rungs) <= MAX_RUNGS
    assert set(ladder.rungs[-1].layers.values()) > {FLOAT}  # and one or so is quantized still


def test_where_nothing_passes_the_first_rungs_faults_are_told() -> None:
    """A variant in float alone is none."""
    ladder = climb(Additive({"a": (5.0, 3.0)}))
    assert ladder.taken is None
    assert ladder.why_not == "drifts by 5.0; no layer can be quantized at this limit"


def test_a_layer_that_gains_nothing_is_not_int8_where_a_gain_is_asked_for() -> None:
    """Before anything is proven; without the flag no time is looked at."""
    trials = Additive({"a": (0.1, 0.1), "b": (0.1, 0.1)}, gains={"a": 2.0, "b": 0.9})
    assert climb(trials).rungs[0].speedup is None
    ladder = climb(trials, min_speedup=1.5)
    assert trials.proven == ["rowwise: a, b", "rowwise: a; weights: b"]
    assert ladder.taken and ladder.taken.speedup == pytest.approx(2.0)
    assert "no faster" in ladder.reasons["b"]


def test_a_plan_that_passes_and_gains_too_little_is_not_taken() -> None:
    """Asked and found are told."""
    ladder = climb(Additive({"a": (0.1, 0.1)}, gains={"a": 1.2}), min_speedup=1.5)
    assert ladder.taken is None
    assert "1/1.20 of onnx-fp32's time, asked was 1/1.5" in ladder.why_not


def wave() -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(300) * 0.1
    return np.asarray((np.sin(np.arange(300) * 0.1) + noise)[:, None], np.float32)


def source(module: nn.Module) -> Source:
    return Source("x:y", module.eval().requires_grad_(False), "0" * 64, wave(), Pipeline())


@pytest.fixture(scope="module")
def near_edge(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("near_edge")
    return export(source(NearEdge()), "near", out, notation=CALL, variants=BOTH, steps=STEPS)


def test_a_recurrent_matrix_that_makes_the_loop_diverge_stays_in_float(near_edge: Exported) -> None:
    """By name, with its reason in the manifest; the other cell is int8, and all of it isolated."""
    manifest = near_edge.artifact.manifest
    variant = manifest.variants["onnx-int8-rowwise"]
    assert variant.precision == {"rnn_0.recurrent": "float", "lstm_0.recurrent": "rowwise"}
    assert variant.isolated
    assert all(p.passed for p in variant.parity)
    (entry,) = [e for e in manifest.lowering if e.road == "float"]
    assert entry.layer == "rnn_0.recurrent"
    assert entry.why.startswith("quantized, onnx-int8-rowwise d")
    assert manifest.variants["onnx-fp32"].precision is None


def test_the_rungs_are_in_parity_json(near_edge: Exported) -> None:
    """Plan, drift by case, size and verdict of each; no time, since none was asked for."""
    rungs = json.loads((near_edge.artifact.path / "parity.json").read_text())["ladder"]
    assert [rung["layers"]["rnn_0.recurrent"] for rung in rungs] == ["rowwise", "float"]
    first, last = rungs
    assert any(not case["passed"] for case in first["cases"])
    assert last["verdict"] == "taken"
    assert all(case["passed"] for case in last["cases"])
    assert first["size"] < last["size"]
    assert first["speedup"] is None


def test_the_same_input_climbs_the_same_rungs(near_edge: Exported, tmp_path: Path) -> None:
    """Byte by byte, the report too."""
    given = {"notation": CALL, "variants": BOTH, "steps": STEPS}
    again = export(source(NearEdge()), "near", tmp_path, **given)  # type: ignore[arg-type]
    for file in near_edge.artifact.path.iterdir():
        assert (again.artifact.path / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_head_that_int8_activations_spoil_keeps_int8_weights(tmp_path: Path) -> None:
    """`weights`: int8 in the file, float in the product, and isolated all the same."""
    artifact = short.export(source(SteepHead()), "head", tmp_path, variants=BOTH).artifact
    variant = artifact.manifest.variants["onnx-int8-rowwise"]
    assert variant.precision == {"lstm_0.recurrent": "rowwise", "y": "weights"}
    assert variant.isolated
    kinds = {
        tuple(tensor.dims): tensor.data_type
        for tensor in onnx.load(artifact.path / variant.file).graph.initializer
    }
    assert kinds[24, 16] == onnx.TensorProto.INT8


def test_a_looser_max_drift_keeps_in_int8_what_would_go_to_float(tmp_path: Path) -> None:
    """It replaces the gate's own limit, for int8 alone."""
    loose = short.export(
        source(NearEdge()), "n", tmp_path, notation=CALL, variants=BOTH, max_drift=0.5
    )
    variants = loose.artifact.manifest.variants
    assert set((variants["onnx-int8-rowwise"].precision or {}).values()) == {"rowwise"}
    assert {p.tolerance.atol for p in variants["onnx-int8-rowwise"].parity} == {0.5}
    assert max(p.tolerance.atol for p in variants["onnx-fp32"].parity) < 1e-3


def test_a_gain_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    """And what was measured is said."""
    with pytest.raises(ParityError, match=r"takes 1/\d+\.\d\d of .*asked was 1/1000 \(--min-sp"):
        short.export(source(sine_cell()), "slow", tmp_path, variants=BOTH, min_speedup=1000.0)
    assert not list(tmp_path.rglob("*"))


def test_a_wrong_scale_of_activations_leaves_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only rounds weights is not touched by what is wrong with h."""
    monkeypatch.setattr(int8_product, "H_SCALE", 1 / 4)
    artifact = short.export(source(sine_cell()), "small", tmp_path, variants=BOTH).artifact
    variant = artifact.variant("onnx-int8-rowwise")
    assert variant.precision == {"lstm_0.recurrent": "weights"}
    assert variant.isolated
    nodes = {n.op_type for n in all_nodes(onnx.load(artifact.path / variant.file).graph)}
    assert "LSTM" in nodes  # no cell is int8: the operator of the whole cell is back
    assert "Scan" not in nodes


@pytest.mark.parametrize("flag", ["--max-drift", "--min-speedup"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_a_flag_takes_a_number_greater_than_0(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anything else is a wrong command line."""
    with pytest.raises(SystemExit) as wrong:
        main(["x:y", "--example", "x.npy", "--name", "n", f"{flag}={value}"])
    assert wrong.value.code == 2
    assert f"`{value}`, expected a number greater than 0" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3)])
def test_each_matrix_of_each_cell_is_a_layer(kind: str, gates: int) -> None:
    """What a cell takes of the one below, what of itself; the first takes x in float."""
    torch.manual_seed(0)
    x = torch.randn(1, 40, 3)
    module = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](3, 16, 2, batch_first=True)
    reference = find_reference(module, x)
    lowered = lower_reference(reference, x)
    names = {f"{kind}_0.recurrent", f"{kind}_1.input", f"{kind}_1.recurrent"}
    assert lowered.layers == dict.fromkeys(names, gates * 16 * 16)
    ports = ports_of(reference, x.numpy())
    whole = lowered.float_graphs(ports)[0].ByteSize()
    for layer in names:
        plan = Plan({layer: WEIGHTS}, otherwise=FLOAT)
        saved = whole - lowered.rowwise_graphs(ports, plan)[0].ByteSize()
        assert saved > 2 * gates * 16 * 16  # of 4 bytes a weight, 1 is left, and the scales


class Read(nn.Module):
    """Two heads over h, one on top of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 24, 2, batch_first=True)
        self.first = nn.Linear(24, 16)
        self.second = nn.Linear(16 + 24, 16)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, state = self.lstm(x, state)
        read = torch.sigmoid(self.first(out))
        return self.second(torch.cat([read, out], dim=-1)), state


def random_plans(layers: Sequence[str], count: int) -> list[Plan]:
    rng = np.random.default_rng(0)
    every = [*Precision]
    return [Plan({k: every[rng.integers(3)] for k in layers}) for _ in range(count)]


@pytest.mark.parametrize(
    "module",
    [
        lambda: nn.LSTM(3, 24, 2, batch_first=True),
        lambda: nn.GRU(3, 24, 2, batch_first=True),
        Read,
        LayerNormLSTM,
        Elu,
    ],
    ids=["lstm", "gru", "lstm and head", "layer norm", "by row"],
)
def test_a_row_is_its_own_whatever_the_plan(module: Callable[[], nn.Module]) -> None:
    """Alone and step by step, or in a chunk beside hostile rows: the same bits."""
    torch.manual_seed(0)
    trained = module().eval().requires_grad_(False)
    features = 3 if isinstance(trained, nn.RNNBase | Read) else 1
    x = torch.randn(1, 40, features)
    reference = find_reference(trained, x)
    lowered = lower_reference(reference, x)
    ports = ports_of(reference, x.numpy())
    rng = np.random.default_rng(1)
    for plan in [*random_plans([*lowered.layers], 8), Plan(otherwise=WEIGHTS)]:
        try:
            chunk, step = (start_session(g) for g in lowered.rowwise_graphs(ports, plan))
        except NothingQuantizedError:
            continue
        outputs = ["y", *(s.output for s in ports.states)]
        crowd = (1e4 * rng.standard_normal((7, 5, features))).astype(np.float32)
        crowd[3] = x[0, :5]
        first = {s.input: rng.uniform(-1, 1, (7, *map(int, s.shape[1:]))) for s in ports.states}
        first = {name: value.astype(np.float32) for name, value in first.items()}
        lengths = np.full(7, 5, np.int64)
        beside = chunk.run(outputs, {"x": crowd, "lengths": lengths, **first})
        alone = [value[3:4] for value in first.values()]
        for t in range(5):
            feed = dict(zip(first, alone, strict=True))
            y, *alone = run_one_step(step, outputs, {"x": x[:, t : t + 1].numpy(), **feed})
            assert same_bits(y[0, 0] + 0, beside[0][3, t] + 0), (plan, t)
        for ours, theirs in zip(alone, beside[1:], strict=True):
            assert same_bits(ours[0] + 0, theirs[3] + 0), plan
