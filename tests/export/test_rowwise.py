"""Row-isolated int8: what the weights become, and that no row feels another."""

import warnings
import zipfile

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from export.algebra.bounded import bounded_sources
from export.algebra.form import read_form
from export.algebra.recognise import lower
from export.algebra.trace import trace_step
from export.draft import ports_of
from export.errors import NothingQuantizedError
from export.finding import find_reference
from export.graphs.int8_product import H_SCALE, ZERO_POINT
from export.lowering import lower_reference
from export.precision import ALL_ROWWISE, Plan, Precision
from models.zoo import sine_cell
from service.artifact import Artifact
from service.runtime import Runtime
from tests.export import gru_spellings, lstm_spellings


@pytest.mark.parametrize("name", ["sine-cell", "series-lstm"])
def test_int8_products_are_exact_integers(name: str, demo_artifacts: dict[str, Artifact]) -> None:
    """The first product of the step graph is the integers' own: nothing saturates on this CPU."""
    artifact = demo_artifacts[name]
    variant = artifact.variant("onnx-int8-rowwise")
    assert variant.step is not None
    model = onnx.load(artifact.path / variant.step.file)
    node = next(n for n in model.graph.node if n.op_type == "MatMulIntegerToFloat")
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.input[0]))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": np.ones((3, 1), np.float32)}
    for port in artifact.manifest.ports.states:
        ones = artifact.layout.zeros()[port.name] + 1
        feed[port.input] = np.repeat(ones.reshape(1, -1), 3, axis=0)
    product, quantized = session.run([node.output[0], node.input[0]], feed)
    exact = (quantized.astype(np.int64) - ZERO_POINT) @ weights[node.input[1]].astype(np.int64)
    scale = weights[node.input[3]].astype(float).ravel()
    wanted = (exact * H_SCALE + weights[node.input[6]]) * scale
    np.testing.assert_allclose(product, wanted, rtol=1e-5, atol=1e-5)


def test_the_hand_written_cell_really_is_int8(demo_artifacts: dict[str, Artifact]) -> None:
    """Every int8 variant of the hand-written cell holds int8 weights and no float copy of them."""
    artifact = demo_artifacts["sine-cell"]
    recurrent = 4 * 32 * 32
    stock = onnx.load(artifact.path / artifact.variant("onnx-int8").file)
    assert "DynamicQuantizeLSTM" in {node.op_type for node in stock.graph.node}
    rowwise = onnx.load(artifact.path / artifact.variant("onnx-int8-rowwise").file)
    for model in (stock, rowwise):
        sizes = {i.data_type: 0 for i in model.graph.initializer}
        for tensor in model.graph.initializer:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
        int8 = sizes.get(onnx.TensorProto.INT8, 0) + sizes.get(onnx.TensorProto.UINT8, 0)
        assert int8 >= recurrent
        assert sizes[onnx.TensorProto.FLOAT] < recurrent
    with zipfile.ZipFile(artifact.path / artifact.variant("torchscript-int8").file) as archive:
        code = "".join(archive.read(n).decode() for n in archive.namelist() if n.endswith(".py"))
    assert "quantized_lstm" in code
    assert "torch.lstm" not in code


def test_stock_quantization_leaves_the_hand_written_cell_as_it_is() -> None:
    """The trap that lowering avoids: torch's quantize_dynamic does nothing to such a cell."""
    module = sine_cell().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation, and once a process of its tensors'
        quantized = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            module, {torch.nn.LSTM, torch.nn.Linear}, dtype=torch.qint8
        )
    assert [p.dtype for p in quantized.cell.parameters()] == [torch.float32] * 8


@pytest.mark.parametrize("hostile", [1e4, 1e30, 1e-40])
def test_a_hostile_neighbour_changes_not_one_bit(
    hostile: float, demo_artifacts: dict[str, Artifact]
) -> None:
    """A row beside 255 others that send anything equals the row alone, at any place."""
    artifact = demo_artifacts["series-lstm"]
    runtime = Runtime(artifact, "onnx-int8-rowwise")
    rng = np.random.default_rng(0)
    row = artifact.golden().x[:1]
    zeros = artifact.layout.zeros()
    alone, alone_state = runtime.run(row, zeros)
    for place in (0, 100, 255):
        x = (hostile * rng.standard_normal((256, *row.shape[1:]))).astype(np.float32)
        x[place] = row[0]
        state = {n: np.repeat(v, 256, axis=0) for n, v in zeros.items()}
        y, new = runtime.run(x, state)
        assert y[place].tobytes() == alone[0].tobytes()
        assert all(new[n][place].tobytes() == alone_state[n][0].tobytes() for n in new)


def test_the_stock_variant_does_feel_its_neighbours(demo_artifacts: dict[str, Artifact]) -> None:
    """Why it is marked `isolated: false`: forced into one batch, a neighbour moves a row."""
    artifact = demo_artifacts["series-lstm"]
    assert not artifact.variant("onnx-int8").isolated
    path = artifact.path / artifact.variant("onnx-int8").file
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    row = artifact.golden().x[:1]
    x = np.concatenate([row, np.full_like(row, 1e4)])
    zeros = artifact.layout.zeros()
    feed = {p.input: np.repeat(zeros[p.name], 2, axis=0) for p in artifact.manifest.ports.states}
    y = session.run(["y"], {"x": x, "lengths": np.full(2, row.shape[1]), **feed})[0][0]
    alone, _ = Runtime(artifact, "onnx-int8").run(row, artifact.layout.zeros())
    assert np.abs(y - alone[0]).max() > 0.01


class Unbounded(nn.Module):
    """Three cells whose h leaves [-1, 1], each where a hasty look would not find it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.z = nn.Linear(3 + 24, 3 * 24)
        self.kind = kind

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f, i, n = self.z(torch.cat([x, h], dim=1)).chunk(3, 1)
        f, i, n = torch.sigmoid(f), torch.sigmoid(i), torch.tanh(n)
        if self.kind == "two gates":  # gates of their own: up to 2 after one step
            return f * h + i * n
        if self.kind == "squared gate":  # 0 where f is 0 or 1, and 1 between
            return 4 * f * (1 - f) + i * n
        signs = 1 - 2 * (torch.arange(24) % 2).float()  # 0 where all n are equal, up to 24 else
        return i * (n @ signs.repeat(24, 1).t())


@pytest.mark.parametrize(
    ("module", "bounded"),
    [
        (gru_spellings.CatReset(), True),
        (gru_spellings.MinimalGated(), True),
        (lstm_spellings.Coupled(), True),
        (lstm_spellings.Activated(h="softsign"), True),
        (lstm_spellings.Activated(h="linear"), False),
        (lstm_spellings.Activated(h="scaled"), False),
        (gru_spellings.CatRNN(nn.Hardsigmoid()), True),
        (gru_spellings.ScaledRNN(), False),
        (nn.GRUCell(3, 24), True),
        (nn.RNNCell(3, 24), True),
        (nn.RNNCell(3, 24, nonlinearity="relu"), False),
        (Unbounded("two gates"), False),
        (Unbounded("squared gate"), False),
        (Unbounded("mixed units"), False),
    ],
    ids=[
        "cat gru",
        "minimal",
        "coupled",
        "softsign",
        "linear h",
        "scaled",
        "hard rnn",
        "scaled rnn",
        "gru",
        "rnn",
        "relu rnn",
        "two gates",
        "squared",
        "mixed",
    ],
)
def test_only_what_is_bounded_by_its_mathematics_counts_as_bounded(
    module: nn.Module, bounded: bool
) -> None:
    """A constant scale would clip any other state, silently."""
    x = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(0))
    reference = find_reference(module.eval(), x)
    trace = trace_step(reference, x)
    network = lower(read_form(trace), trace)
    assert ("h" in bounded_sources(network)) is bounded


@pytest.mark.parametrize(
    ("module", "bounded"),
    [(lstm_spellings.Coupled(), {"h", "c"}), (lstm_spellings.Peepholes(), {"h"})],
    ids=["coupled", "peepholes"],
)
def test_the_c_of_a_coupled_cell_is_a_mean(module: nn.Module, bounded: set[str]) -> None:
    """f * c + (1 - f) * tanh(g) stays in [-1, 1]; with gates of their own c grows without bound."""
    x = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(0))
    trace = trace_step(find_reference(module.eval(), x), x)
    assert bounded_sources(lower(read_form(trace), trace)) & {"h", "c"} == bounded


def test_a_layer_that_the_plan_keeps_in_float_has_no_int8_product() -> None:
    """Named layers stay in float, the others keep their int8 products; all in float: refused."""
    torch.manual_seed(0)
    module = nn.LSTM(3, 16, num_layers=2, batch_first=True)
    x = torch.randn(1, 40, 3)
    reference = find_reference(module, x, None)
    lowered = lower_reference(reference, x)
    ports = ports_of(reference, x.numpy())
    assert len(lowered.layers) == 3

    def products(plan: Plan) -> int:
        _, step = lowered.rowwise_graphs(ports, plan)
        return sum(node.op_type == "MatMulIntegerToFloat" for node in step.graph.node)

    every = products(ALL_ROWWISE)
    below = {"lstm_1.input": Precision.FLOAT}
    own = {"lstm_1.recurrent": Precision.FLOAT}
    assert every == 4  # a cell's sigmoid gates, and g; of both its matrices together
    assert products(Plan(below)) == products(Plan(own)) == 4
    assert products(Plan({**below, **own})) == 2
    with pytest.raises(NothingQuantizedError, match="stay in float"):
        lowered.rowwise_graphs(ports, Plan(otherwise=Precision.FLOAT))
