"""Every function of the affine form is the same in float64, in ONNX and in TorchScript."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.algebra import form
from export.algebra.form import read_form
from export.algebra.pointwise import FUNCTIONS
from export.algebra.recognise import lower
from export.algebra.trace import trace_step
from export.calling.call import parse_call
from export.calling.module import CalledModule
from export.calling.shapes import Outside
from export.errors import LoweringError
from export.finding import find_reference
from export.graphs import torchscript
from export.graphs.graph_builder import all_nodes
from export.lowering import LoweredNetwork
from export.reference import Reference, StateSpec
from export.source import Source
from service.pipeline import Pipeline
from tests.export.operator_cells import Elu, LayerNormLSTM
from tests.export.short import export
from tests.export.test_operators import CALLS, open_graph, ports_of

SIZE, HIDDEN = 12, 5
SPREAD = torch.tensor([0, 1e-3, 0.5, 1, 2.5, 3, 7, 19, 21, 30, 88, 1e4])
ROWS = torch.cat(
    [
        torch.stack(
            [SPREAD, 0 - SPREAD, SPREAD.flip(0), SPREAD.roll(5) * torch.sign(0.5 - SPREAD) + 0]
        ),
        torch.randn(4, SIZE, generator=torch.Generator().manual_seed(1)),
    ]
)
Function = Callable[[Tensor], Tensor]

LEAST_SPREAD = 2.0  # layer norm of next to nothing, in silence, is mostly int8's rounding


def halves(fn: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda x: fn(*x.chunk(2, 1))


def scaled_norm(z: Tensor) -> Tensor:
    """Its first weight is 0: a constant beside values that are none."""
    return F.layer_norm(z, (4, 3), torch.arange(12.0).view(4, 3) / 8, torch.ones(4, 3)).flatten(1)


TABLE: dict[str, tuple[Function, set[str]]] = {  # what is computed of x, and by which functions
    "sigmoid": (torch.sigmoid, {"sigmoid"}),
    "tanh": (torch.tanh, {"tanh"}),
    "relu": (torch.relu, {"relu"}),
    "mul": (halves(torch.mul), {"mul"}),
    "div": (halves(torch.div), {"div"}),
    "reciprocal": (torch.reciprocal, {"reciprocal"}),
    "exp": (torch.exp, {"exp"}),
    "abs": (torch.abs, {"abs"}),
    "clamp": (lambda x: x.clamp(-0.3, 2), {"clip"}),
    "clamp from below": (lambda x: x.clamp(min=0.1), {"clip"}),
    "clamp between": (lambda x: torch.clamp(x, -x.new_ones(SIZE), x.new_ones(SIZE)), {
        "maximum",
        "minimum",
    }),
    "hardtanh": (F.hardtanh, {"clip"}),
    "relu6": (F.relu6, {"clip"}),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), {"leaky_relu"}),
    "elu": (lambda x: F.elu(x, 0.7), {"elu"}),
    "celu": (lambda x: F.celu(x, 0.7), {"relu", "exp"}),
    "selu": (F.selu, {"elu"}),
    "threshold": (lambda x: F.threshold(x, 0.2, 0.0), {"thresholded_relu"}),
    "softplus": (F.softplus, {"softplus"}),
    "softplus with beta": (lambda x: F.softplus(x, beta=2.0), {"softplus"}),
    "softsign": (F.softsign, {"abs", "div"}),
    "softshrink": (F.softshrink, {"clip"}),
    "tanhshrink": (F.tanhshrink, {"tanh"}),
    "log_sigmoid": (F.logsigmoid, {"softplus"}),
    "log": (lambda x: torch.log(x.abs()), {"abs", "log"}),
    "log1p": (lambda x: torch.log1p(x.abs()), {"abs", "log"}),
    "log2": (lambda x: torch.log2(x.abs() + 1), {"abs", "log"}),
    "expm1": (torch.expm1, {"exp"}),
    "exp2": (lambda x: torch.exp2(x), {"exp"}),
    "sqrt": (lambda x: torch.sqrt(x.abs()), {"abs", "sqrt"}),
    "rsqrt": (lambda x: torch.rsqrt(x.abs() + 0.1), {"abs", "sqrt", "reciprocal"}),
    "square": (torch.square, {"mul"}),
    "cube": (lambda x: x**3, {"pow"}),
    "root": (lambda x: x.abs() ** 0.3, {"abs", "pow"}),
    "power": (halves(lambda a, b: torch.pow(a.abs() + 0.1, b.clamp(-2, 2))), {
        "abs",
        "clip",
        "power",
    }),
    "base": (lambda x: 1.5**x, {"exp"}),
    "maximum": (halves(torch.maximum), {"maximum"}),
    "minimum": (halves(torch.minimum), {"minimum"}),
    "gelu": (F.gelu, {"gelu"}),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), {"gelu_tanh"}),
    "silu": (F.silu, {"sigmoid", "mul"}),
    "mish": (F.mish, {"softplus", "tanh", "mul"}),
    "glu": (F.glu, {"sigmoid", "mul"}),
    "hardswish": (F.hardswish, {"hardswish"}),
    "hardsigmoid": (F.hardsigmoid, {"clip"}),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.25])), {"relu"}),
    "erf": (torch.erf, {"erf"}),
    "sin": (torch.sin, {"sin"}),
    "cos": (torch.cos, {"cos"}),
    "tan": (lambda x: torch.tan(torch.tanh(x)), {"tanh", "tan"}),
    "atan": (torch.atan, {"atan"}),
    "sign": (torch.sign, {"sign"}),
    "floor": (torch.floor, {"floor"}),
    "ceil": (torch.ceil, {"ceil"}),
    "round": (torch.round, {"round"}),
    "remainder": (lambda x: x % 2.0, {"floor"}),
    "gt": (lambda x: (x > 0.5).float(), {"gt"}),
    "ge": (lambda x: (x >= 0.5).float(), {"ge"}),
    "lt": (halves(lambda a, b: (a < b).float()), {"lt"}),
    "le": (lambda x: (x <= 0.5).float(), {"le"}),
    "eq": (lambda x: (x == 0.5).float(), {"eq"}),
    "ne": (lambda x: (x != 0.5).float(), {"ne"}),
    "and not": (lambda x: ((x > 0) & ~(x > 2)).float(), {"gt", "eq", "mul"}),
    "or": (lambda x: ((x > 2) | (x < 0)).float(), {"gt", "lt", "maximum"}),
    "where": (halves(lambda a, b: torch.where(a > b, a.exp(), b)), {"gt", "exp", "where"}),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 7.0), {"lt", "where"}),
    "softmax": (lambda x: torch.softmax(x, 1), {"softmax"}),
    "log_softmax": (lambda x: torch.log_softmax(x, 1), {"log_softmax"}),
    "softmax of heads": (lambda x: torch.softmax(x.view(-1, 2, 3, 2), 2).flatten(1), {"softmax"}),
    "logsumexp": (lambda x: torch.logsumexp(x.view(-1, 4, 3), 1), {"amax", "exp", "log"}),
    "max": (lambda x: x.view(-1, 4, 3).max(2)[0], {"amax"}),
    "min": (lambda x: x.view(-1, 4, 3).amin((1, 2)).unsqueeze(1), {"amax"}),
    "std": (lambda x: x.std(1, keepdim=True), {"mul", "sqrt"}),
    "var": (lambda x: x.view(-1, 4, 3).var(1, unbiased=False), {"mul"}),
    "layer_norm": (lambda x: scaled_norm(x.view(-1, 4, 3)), {"standardize"}),
    "layer_norm of heads": (lambda x: F.layer_norm(x.view(-1, 4, 3), (3,)).flatten(1), {
        "standardize"
    }),
    "group_norm": (lambda x: F.group_norm(x.view(-1, 6, 2), 3, torch.ones(6) * 2).flatten(1), {
        "standardize"
    }),
    "rms_norm": (lambda x: F.rms_norm(x, (SIZE,), torch.ones(SIZE) * 2, 1e-6), {
        "mul",
        "sqrt",
        "reciprocal",
    }),
    "lerp": (halves(lambda a, b: torch.lerp(a, b, torch.sigmoid(a))), {"sigmoid", "mul"}),
    "addcdiv": (halves(lambda a, b: torch.addcdiv(a, a, b.abs() + 1)), {"abs", "div"}),
    "affine": (lambda x: F.conv1d(x.view(-1, 2, 6), torch.ones(3, 2, 2)).cumsum(2).roll(1, 2)
        .flatten(1)[:, [3, 0, 5]], set()),
}  # fmt: skip


class Pointed(nn.Module):
    """A function of x beside a plain recurrence."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.z = nn.Linear(SIZE + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(x), torch.tanh(self.z(torch.cat([x, h], dim=1)))


def lowered(module: nn.Module, x: Tensor, call: str) -> tuple[Reference, LoweredNetwork]:
    reference = find_reference(module.eval(), x, call)
    trace = trace_step(reference, x)
    return reference, LoweredNetwork(lower(read_form(trace), trace), x.numpy())


@pytest.mark.parametrize("name", TABLE)
def test_a_function_is_the_same_everywhere(name: str) -> None:
    """On ordinary and extreme values: float64, the ONNX step and chunk graphs, TorchScript."""
    torch.manual_seed(0)
    function, used = TABLE[name]
    module = Pointed(function)
    x = torch.randn(1, 40, SIZE)
    reference, found = lowered(module, x, "x, h -> y, h")
    assert {n.fn for n in found.network.nodes if not hasattr(n, "slices")} == used
    h = torch.rand(len(ROWS), HIDDEN)
    with torch.no_grad():
        wanted, _ = module(ROWS, h)
        torch.set_default_dtype(torch.float64)
        try:
            exact, _ = module.double()(ROWS.double(), h.double())
        finally:
            torch.set_default_dtype(torch.float32)
            module.float()
    y, _ = found.network.step(ROWS.double().numpy(), {"h": h.double().numpy()})
    _assert_equal(y, exact, 1e-10)

    ports = ports_of(reference, x)
    chunk, step = found.float_graphs(ports)
    feed = {"x": ROWS.numpy(), "h_0": h.numpy()}
    _assert_equal(open_graph(step).run(["y"], feed)[0], wanted, 3e-6)
    feed["x"] = np.repeat(feed["x"][:, None], 2, axis=1)
    feed["lengths"] = np.full(len(ROWS), 2)
    _assert_equal(open_graph(chunk).run(["y"], feed)[0][:, 1], wanted, 3e-6)
    scripted = torchscript.script(found.torch_module(ports), ports)
    with torch.no_grad():
        _assert_equal(scripted(ROWS[:, None].repeat(1, 2, 1), h)[0][:, 1], wanted, 3e-6)


def _assert_equal(found: np.ndarray | Tensor, wanted: Tensor, tolerance: float) -> None:
    """inf equals inf and NaN equals NaN; there are numbers enough in it to tell."""
    assert wanted.isfinite().float().mean() > 0.5
    np.testing.assert_allclose(found, wanted.numpy(), rtol=tolerance, atol=tolerance)


def test_the_table_is_tested_whole() -> None:
    """Each function is used by a row above; one has no spelling but in recurrent operators."""
    used = set().union(*(names for _, names in TABLE.values()))
    assert set(FUNCTIONS) - used == {"softsign"}


@pytest.mark.parametrize("cell", [LayerNormLSTM, Elu], ids=lambda c: c.__name__)
def test_a_gated_cell_of_other_operations_is_int8_row_by_row(
    cell: type[nn.Module], tmp_path: Path
) -> None:
    """It is written from the affine form; h's product is int8, by its bound or its row's peak."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((300, 1)).astype(np.float32)
    source = Source("x:y", cell().eval(), "0" * 64, x, Pipeline())
    artifact = export(
        source,
        "small",
        tmp_path,
        notation=CALLS[cell.__name__],
        variants=("onnx-fp32", "onnx-int8-rowwise", "torchscript-fp32"),
    ).artifact
    assert all("equal to the traced step" in road.why for road in artifact.manifest.lowering)
    assert artifact.variant("onnx-int8-rowwise").isolated
    graph = onnx.load(artifact.path / "onnx-int8-rowwise.step.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulIntegerToFloat") >= 1
    assert operators.count("ReduceMax") == (cell is Elu)  # the peak of each row


class Recurrent(nn.Module):
    """h is a function of an affine map of x and h."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.z = nn.Linear(SIZE + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.function(self.z(torch.cat([x, h], dim=1)))


@pytest.mark.parametrize(
    ("function", "bounded"),
    [
        (torch.sin, True),
        (lambda z: torch.tanh(z).abs(), True),
        (lambda z: torch.maximum(torch.tanh(z), torch.erf(z)), True),
        (lambda z: torch.where(z > 0, torch.tanh(z), torch.cos(z)), True),
        (lambda z: torch.softmax(z, 1), True),
        (lambda z: z.clamp(-1, 0.5), True),
        (lambda z: z.clamp(-1, 1.5), False),
        (lambda z: torch.where(z > 0, torch.tanh(z), z), False),
        (lambda z: torch.maximum(torch.tanh(z), z), False),
        (lambda z: F.layer_norm(z, (HIDDEN,)), False),
        (F.gelu, False),
    ],
)
def test_what_is_bounded_by_its_function(function: Function, bounded: bool) -> None:
    """Values in [-1, 1] whatever x is, and no others, are taken for such."""
    torch.manual_seed(0)
    _, found = lowered(Recurrent(function), torch.randn(1, 40, SIZE), "x, h -> h")
    assert ("h" in found.bounded_states) == bounded


class Head(nn.Module):
    """Two LSTMs with norms between, and a head of GELU and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(3, 16, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.second = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 4))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.first(x)
        z, _ = self.second(F.silu(self.norm(y)))
        out: Tensor = self.head(y + z)
        return out


def test_operations_between_and_after_leave_lstm_nodes(tmp_path: Path) -> None:
    """One LSTM node a layer, no Scan; rowwise int8 of their products too."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    source = Source("x:y", Head().eval(), "0" * 64, x, Pipeline())
    artifact = export(source, "small", tmp_path).artifact
    assert {road.road for road in artifact.manifest.lowering} == {"lstm"}
    graph = onnx.load(artifact.path / artifact.variant("onnx-fp32").file).graph
    operators = [node.op_type for node in all_nodes(graph)]
    assert operators.count("LSTM") == 2
    assert operators.count("LayerNormalization") == 2
    assert "Scan" not in operators
    assert artifact.variant("onnx-int8-rowwise").isolated


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.view(-1, 2, 3, 2).amax((1, 3)), "not over neighbouring axes of each row"),
        (lambda x: torch.log(x), "NaN or infinity at step 0 on ordinary input"),
        (lambda x: torch.cumprod(x, 1), "cumprod` on values of shape"),
        (lambda x: x.view(-1, 3, 4).bool().float(), "not row by row affine|is not affine"),
    ],
    ids=["scattered axes", "NaN", "unknown", "truth of a number"],
)
def test_what_has_no_affine_form_is_refused(function: Function, message: str) -> None:
    """And the message says why."""
    with pytest.raises(LoweringError, match=message):
        lowered(Pointed(function), torch.randn(1, 40, SIZE), "x, h -> y, h")


def test_a_function_over_the_batch_has_no_affine_form() -> None:
    """Said also where the way of calling was not found out but given."""
    module = Pointed(lambda x: torch.softmax(x, 0)).eval()
    specs = (Outside(StateSpec("h", (HIDDEN,)), 0),)
    reference = CalledModule(module, parse_call("x, h -> y, h"), 1, specs)
    trace = trace_step(reference, torch.randn(1, 40, SIZE))
    with pytest.raises(LoweringError, match="not over neighbouring axes of each row"):
        read_form(trace)


def test_too_large_a_form_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted as the matrices would be, of every root by all that it reaches."""
    z_of_x_and_h, y_of_x, h_of_tanh = HIDDEN * (SIZE + HIDDEN), SIZE * SIZE, HIDDEN * HIDDEN
    size = z_of_x_and_h + y_of_x + h_of_tanh + y_of_x  # the last: y of the function
    x = torch.randn(1, 40, SIZE)
    monkeypatch.setattr(form, "MAX_ELEMENTS", size)
    lowered(Pointed(torch.exp), x, "x, h -> y, h")
    monkeypatch.setattr(form, "MAX_ELEMENTS", size - 1)
    with pytest.raises(LoweringError, match="too large to be written as matrices"):
        lowered(Pointed(torch.exp), x, "x, h -> y, h")


def test_ids_that_are_computed_with_are_refused() -> None:
    """A comparison with an id is no number that matrices are read off for."""

    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, HIDDEN)
            self.cell = nn.GRUCell(HIDDEN, HIDDEN)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            h = self.cell(self.table(x) * (x > 2).float()[:, None], h)
            return h

    with pytest.raises(LoweringError, match="is computed from the ids in `x`"):
        lowered(Marked(), torch.randint(0, 7, (1, 40)), "x, h -> h")
