"""The general road: any step, its ports, its proof, and its products in int8."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from export.errors import LoweringError
from export.finding import find_reference
from export.graphs import torchscript
from export.graphs.graph_builder import all_nodes
from export.graphs.operators import LoweredOperators, from_step_model, lower_operators
from export.precision import ALL_ROWWISE
from export.reference import Reference, State, StateSpec
from export.source import Source
from service.manifest import Port, Ports, StatePort
from service.pipeline import Pipeline
from tests.export.operator_cells import (
    HIDDEN,
    SRU,
    ConvLSTM,
    Elu,
    ExponentialGates,
    FastWeights,
    LayerNormLSTM,
    Mogrifier,
    MultiplicativeLSTM,
    Picking,
)
from tests.export.short import export

CALLS = {
    "LayerNormLSTM": "x, (h, c) -> h, c",
    "ExponentialGates": "x, (h, c, n, m) -> y, (h, c, n, m)",
    "Mogrifier": "x, (h, c) -> h, c",
    "MultiplicativeLSTM": "x, (h, c) -> h, c",
    "ConvLSTM": "X, (h, c)=None -> Y, (h, c)",
    "SRU": "X, c=None -> Y, c",
    "Elu": "x, h -> h",
    "FastWeights": "x, h -> h",
    "Picking": "x, h -> h",
}

LEAST_SPREAD = 0.5  # untrained: after a shock their y is far from all that it was


def example(module: nn.Module, steps: int = 300) -> np.ndarray:
    shape = (1, steps, 1, 4, 4) if isinstance(module, ConvLSTM) else (steps, 1)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def reference_of(module: nn.Module) -> tuple[Reference, Tensor]:
    x = torch.from_numpy(example(module, 64))
    x = x if x.ndim > 2 else x[None]
    return find_reference(module.eval(), x, CALLS[type(module).__name__]), x


def ports_of(reference: Reference, x: Tensor) -> Ports:
    with torch.no_grad():
        y, _ = reference.run(x[:1, :1], reference.initial(1))
    kinds = {n: "int64" if v.dtype == torch.int64 else "float32" for n, v in _initial(reference)}
    return Ports(
        x=Port(
            dtype="float32" if x.is_floating_point() else "int64", shape=["B", "T", *x.shape[2:]]
        ),
        y=Port(dtype="float32", shape=["B", "T", *y.shape[2:]]),
        states=[
            StatePort.model_validate(
                {
                    "name": s.name,
                    "input": f"{s.name}_0",
                    "output": f"{s.name}_n",
                    "dtype": kinds[s.name],
                    "shape": ["B", *s.shape],
                }
            )
            for s in reference.states
        ],
    )


def _initial(reference: Reference) -> list[tuple[str, Tensor]]:
    return list(reference.initial(1).items())


def open_graph(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run_chunk(
    model: onnx.ModelProto, x: Tensor, state: State, lengths: list[int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    session = open_graph(model)
    feed = {"x": x.numpy(), "lengths": np.array(lengths, np.int64)}
    feed |= {f"{n}_0": s.numpy() for n, s in state.items()}
    y, *new = session.run(["y", *(f"{n}_n" for n in state)], feed)
    return y, dict(zip(state, new, strict=True))


def check_chunks(lowered: LoweredOperators, reference: Reference, x: Tensor) -> None:
    """Both ONNX graphs and TorchScript give what the reference gives; rows stop at their length."""
    ports = ports_of(reference, x)
    chunk, step = lowered.float_graphs(ports)
    rows = torch.cat([x[:1, :6], x[:1, 6:12], x[:1, 12:18]])
    state = reference.initial(3)
    lengths = [6, 2, 0]
    y, new = run_chunk(chunk, rows, state, lengths)
    scripted = torchscript.script(lowered.torch_module(ports), ports)
    for row, length in enumerate(lengths):
        own = {n: s[row : row + 1] for n, s in state.items()}
        assert not y[row, length:].any()
        if not length:
            wanted_state = own
        else:
            with torch.no_grad():
                wanted, wanted_state = reference.run(rows[row : row + 1, :length], own)
            np.testing.assert_allclose(y[row : row + 1, :length], wanted, atol=1e-5)
            with torch.no_grad():
                ours, *final = scripted(rows[row : row + 1, :length], *own.values())
            np.testing.assert_allclose(ours, wanted, atol=1e-5)
            for value, name in zip(final, own, strict=True):
                np.testing.assert_allclose(value, wanted_state[name], atol=1e-5)
        for name, value in wanted_state.items():
            np.testing.assert_allclose(new[name][row : row + 1], value, atol=1e-5)
    feed = {"x": rows[:, 0].numpy(), **{f"{n}_0": s.numpy() for n, s in state.items()}}
    one = open_graph(step).run(["y"], feed)[0]
    np.testing.assert_allclose(one[0], y[0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "cell",
    [
        LayerNormLSTM,
        ExponentialGates,
        Mogrifier,
        MultiplicativeLSTM,
        ConvLSTM,
        SRU,
        Elu,
        Picking,
        FastWeights,
    ],
    ids=lambda cell: cell.__name__,
)
def test_a_step_of_any_operators_is_written_as_graphs(cell: type[nn.Module]) -> None:
    """Chunks with lengths, the step graph and TorchScript equal the eager module."""
    torch.manual_seed(0)
    reference, x = reference_of(cell())
    check_chunks(lower_operators(reference, x, "a test"), reference, x)


@pytest.mark.parametrize(
    ("cell", "variants"),
    [
        (FastWeights, 5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_whole_road(cell: type[nn.Module], variants: int, tmp_path: Path) -> None:
    """All variants that it can have are proven; the report names the operation that decided."""
    torch.manual_seed(0)
    module = cell().eval()
    source = Source("x:y", module, "0" * 64, example(module), Pipeline())
    artifact = export(source, "small", tmp_path, notation=CALLS[cell.__name__]).artifact
    manifest = artifact.manifest
    assert len(manifest.variants) == variants
    assert all(p.passed for v in manifest.variants.values() for p in v.parity)
    (road, *left_out) = manifest.lowering
    assert road.road == "general"
    assert "is not one that lowering knows" in road.why
    assert len(left_out) == 5 - variants
    if variants == 5:
        assert artifact.variant("onnx-int8-rowwise").isolated
        graph = onnx.load(artifact.path / "onnx-int8-rowwise.step.onnx").graph
        assert "MatMulIntegerToFloat" in {node.op_type for node in graph.node}


class Counting(Reference):
    """A state of integers that counts the steps, and ids as input: y = table[x] / (1 + count)."""

    name = "Counting"
    mode = "causal"
    states: Sequence[StateSpec] = (StateSpec("count", ()), StateSpec("mean", (3,)))

    def __init__(self) -> None:
        self.table = torch.arange(15.0).reshape(5, 3)

    @property
    def axis_sizes(self) -> set[int]:
        return {1, 3, 5, HIDDEN}

    def describe(self) -> str:
        return ""

    def what_looks_ahead(self) -> str:
        return ""

    def initial(self, batch: int) -> State:
        return {"count": torch.zeros(batch, dtype=torch.int64), "mean": torch.ones(batch, 3)}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        count, mean = state["count"], state["mean"]
        ys = []
        for t in range(x.shape[1]):
            count = count + 1
            found = nn.functional.embedding(x[:, t], self.table)
            mean = mean + (found - mean) / count[:, None]
            ys.append(mean)
        return torch.stack(ys, dim=1), {"count": count, "mean": mean}

    def whole_steps(self, steps: int) -> None:
        return None

    def whole(self, x: Tensor, steps: object) -> Tensor:
        return self.run(x, self.initial(len(x)))[0]


def test_integer_states_and_ids_pass() -> None:
    """A counter stays int64, the table says how many ids there are, an initial state counts."""
    reference = Counting()
    x = torch.randint(0, 5, (1, 64), generator=torch.Generator().manual_seed(0))
    lowered = lower_operators(reference, x, "a test")
    assert lowered.ids == 5
    check_chunks(lowered, reference, x)


def test_rows_taken_by_computed_ids_are_refused() -> None:
    """What ids the model knows could not be told to a client."""

    class Shifted(Counting):
        def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
            return super().run((x + 1) % 5, state)

    x = torch.randint(0, 5, (1, 64), generator=torch.Generator().manual_seed(0))
    with pytest.raises(LoweringError, match="something else than x"):
        lower_operators(Shifted(), x, "a test")


class Crowd(nn.Module):
    """Normalised over the batch."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.exp(x - x.mean(0, keepdim=True)) + 0 * h


def test_rows_that_meet_are_refused() -> None:
    """A mean over the batch would let sessions feel each other."""
    x = torch.from_numpy(example(Crowd(), 64))[None]
    with pytest.raises(LoweringError, match="`y` of a row moves with the rows beside it"):
        lower_operators(_Direct(Crowd(), 1), x, "a test")


class _Direct(Counting):
    """`h = module(x, h)`, one step at a time."""

    def __init__(self, module: nn.Module, size: int) -> None:
        self.module = module
        self.states = (StateSpec("h", (size,)),)
        self._size = size

    def initial(self, batch: int) -> State:
        return {"h": torch.zeros(batch, self._size)}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = state["h"]
        ys = []
        for t in range(x.shape[1]):
            h = self.module(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, dim=1), {"h": h}


def test_a_module_that_asks_for_its_batch_is_traced_instead() -> None:
    """torch.export refuses a branch on the batch; the traced step has it free again."""

    class Asking(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            if x.size(0) == 10**6:
                raise ValueError
            pairs = torch.stack([x, h], dim=1).reshape(2 * x.size(0), 1)
            return torch.exp(-pairs.reshape(x.size(0), 2).abs()).sum(1, keepdim=True)

    reference = _Direct(Asking(), 1)
    x = torch.from_numpy(example(Asking(), 64))[None]
    check_chunks(lower_operators(reference, x, "a test"), reference, x)


def test_a_layer_and_a_norm_beside_what_has_no_form_are_products_and_a_norm() -> None:
    """Over one step `nn.LSTM` is traced apart, so that int8 finds its products."""

    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 16, batch_first=True)
            self.norm = nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(self.norm(self.lstm(x)[0]), dim=-1).values

    torch.manual_seed(0)
    x = torch.randn(1, 40, 3)
    reference = find_reference(Sorting().eval(), x)
    lowered = lower_operators(reference, x, "a test")
    check_chunks(lowered, reference, x)
    _, step = lowered.rowwise_graphs(ports_of(reference, x), ALL_ROWWISE)
    operators = [node.op_type for node in step.graph.node]
    assert operators.count("LayerNormalization") == 1
    assert "MatMulIntegerToFloat" in operators
    assert "LSTM" not in operators


def test_code_that_looks_at_values_is_refused() -> None:
    """A Python branch on what x holds has one way in a graph; another input shows it."""

    class Branching(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.exp(-x) if float(x.abs().max()) < 6e3 else h

    x = torch.from_numpy(example(Branching(), 64))[None]
    with pytest.raises(LoweringError, match="decides by the values"):
        lower_operators(_Direct(Branching(), 1), x, "a test")


def test_a_decision_by_values_is_refused_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    """The line of the module, what to do, and nothing that torch prints of its own."""

    class Asserting(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            assert not torch.isnan(x).any()
            return torch.sort(x + h).values

    x = torch.from_numpy(example(Asserting(), 64))[None]
    said = r"decides by the values .*test_operators\.py:\d+: assert not torch.*take the decision"
    with pytest.raises(LoweringError, match=said):
        lower_operators(_Direct(Asserting(), 1), x, "a test")
    assert capfd.readouterr() == ("", "")


def test_sub_graphs_of_a_step_keep_what_they_read() -> None:
    """An If inside, whose branches read constants, x and a state of the step."""
    info = helper.make_tensor_value_info
    kind = TensorProto.FLOAT
    then = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["r"])], "then", [], [info("r", kind, ["B", 1])]
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["h_0", "one"], ["r"])], "else", [], [info("r", kind, ["B", 1])]
    )
    nodes = [
        helper.make_node("Size", ["x"], ["size"]),  # free, as the batch is: nothing decides it
        helper.make_node("Greater", ["size", "none"], ["yes"]),
        helper.make_node("If", ["yes"], ["h_n"], then_branch=then, else_branch=other),
        helper.make_node("Identity", ["h_n"], ["y"]),
    ]
    ports = [info(n, kind, ["B", 1]) for n in ("x", "h_0", "y", "h_n")]
    one = helper.make_tensor("one", kind, [], [1.0])
    none = helper.make_tensor("none", TensorProto.INT64, [], [0])
    graph = helper.make_graph(nodes, "g", ports[:2], ports[2:], [one, none])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])

    class PlusOne(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return x + 1

    x = torch.from_numpy(example(PlusOne(), 64))[None]
    reference = _Direct(PlusOne(), 1)
    lowered = from_step_model(model, reference, x, "a test")
    chunk, _ = lowered.float_graphs(ports_of(reference, x))
    assert "If" in {node.op_type for node in all_nodes(chunk.graph)}
    y, _ = run_chunk(chunk, x[:, :5], reference.initial(1), [5])
    np.testing.assert_allclose(y, x[:, :5] + 1)
    with pytest.raises(LoweringError, match="came as an ONNX graph"):
        lowered.torch_module(ports_of(reference, x))


class Means(Counting):
    """Several states, each a mean of itself and a candidate, weighted by a gate of x."""

    def __init__(self, updates: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> None:
        self._updates = updates
        self.states = tuple(StateSpec(name, (1,)) for name in updates)

    def initial(self, batch: int) -> State:
        return {spec.name: torch.zeros(batch, 1) for spec in self.states}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        ys = []
        for t in range(x.shape[1]):
            state = {n: update(x[:, t], state[n]) for n, update in self._updates.items()}
            ys.append(torch.cat(list(state.values()), dim=1))
        return torch.stack(ys, dim=1), state


def mean(z: Tensor, h: Tensor, candidate: Tensor) -> Tensor:
    return (1 - z) * h + z * candidate


def test_what_is_bounded_is_found() -> None:
    """A mean weighted by a gate stays in [-1, 1]; with another weight or candidate it does not."""
    bounded: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "gated": lambda x, h: mean(x.sigmoid(), h, x.tanh()),
        "clamped": lambda x, h: mean(x.sigmoid(), h, x.clamp(-1, 1)),
        "half": lambda x, h: 0.5 * h - 0.5 * x.sin() * x.sigmoid(),
        "picked": lambda x, h: torch.where(x > 0, h, x.tanh()),
    }
    free: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "elu": lambda x, h: mean(x.sigmoid(), h, nn.functional.elu(x)),
        "weights": lambda x, h: mean(x.tanh(), h, x.tanh()),
        "greater": lambda x, h: mean(x.sigmoid(), h, 1.1 * x.sin()),
        "added": lambda x, h: 0.9 * h + 0.2 * x.tanh(),
        "switched": lambda x, h: torch.where(x > 0, h, x),
    }
    x = torch.from_numpy(example(nn.Identity(), 64))[None]
    lowered = lower_operators(Means({**bounded, **free}), x, "a test")
    assert lowered.bounded_states == set(bounded)


def test_unbounded_products_take_a_scale_of_each_row() -> None:
    """Where nothing is bounded: int8 by the row's own peak, whatever the rows beside it hold."""
    torch.manual_seed(0)
    reference, x = reference_of(Elu())
    lowered = lower_operators(reference, x, "a test")
    assert not lowered.bounded_states
    chunk, step = lowered.rowwise_graphs(ports_of(reference, x), ALL_ROWWISE)
    operators = [node.op_type for node in step.graph.node]
    assert operators.count("MatMulIntegerToFloat") == 2
    row = {"h": torch.randn(1, HIDDEN)}
    alone, _ = run_chunk(chunk, x[:, :5], row, [5])
    crowd = {"h": torch.cat([1e6 * torch.randn(3, HIDDEN), row["h"]])}
    beside, _ = run_chunk(chunk, x[:, :5].repeat(4, 1, 1), crowd, [5, 5, 5, 5])
    assert beside[3].tobytes() == alone[0].tobytes()
    with torch.no_grad():
        wanted, _ = reference.run(x[:, :5], row)
    np.testing.assert_allclose(alone, wanted, atol=0.03)
    assert np.abs(alone - wanted.numpy()).max() > 1e-6


def test_the_same_step_gives_the_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    """Graphs and TorchScript, byte by byte, with no path of this machine in them."""
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "import torch\n"
        "from export.graphs.torch_export import write_torch_export\n"
        "from export.graphs.torch_int8 import quantize\n"
        "from export.graphs.torchscript import write_torchscript\n"
        "from export.graphs.operators import lower_operators\n"
        "from export.precision import ALL_ROWWISE\n"
        "from tests.export.operator_cells import LayerNormLSTM\n"
        "from tests.export.test_operators import Path, ports_of, reference_of\n"
        "torch.manual_seed(0)\n"
        "reference, x = reference_of(LayerNormLSTM())\n"
        "lowered, ports = lower_operators(reference, x, ''), ports_of(reference, x)\n"
        "graphs = [*lowered.float_graphs(ports), *lowered.rowwise_graphs(ports, ALL_ROWWISE)]\n"
        "for k, graph in enumerate(graphs):\n"
        "    Path(f'{k}.onnx').write_bytes(graph.SerializeToString())\n"
        "module = lowered.torch_module(ports)\n"
        "for k, m in enumerate([module, quantize(module)]):\n"
        "    write_torchscript(m, ports, Path(f'{k}.pt'))\n"
        "write_torch_export(lowered.torch_step(ports), ports, Path('2.pt2'))\n"
    )
    folders = [tmp_path / "a", tmp_path / "b" / "deeper"]
    running = []
    for folder in folders:
        folder.mkdir(parents=True)
        command = [sys.executable, "-c", code, str(root)]
        running.append(
            subprocess.Popen(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    for process in running:
        out, error = process.communicate()
        assert (process.returncode, out, error) == (0, "", "")  # torch's exporters are silent
    found = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert len(found[0]) == 7
    assert found[0] == found[1]
    for name, content in found[0].items():
        assert str(root).encode() not in content, name
        assert b"site-packages" not in content, name
