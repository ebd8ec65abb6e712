"""The error of each gate's pre-activation is the quantization's own."""

import numpy as np
import pytest
import torch
from torch import nn

from export.algebra.form import read_form
from export.algebra.network import Network
from export.algebra.recognise import lower
from export.algebra.trace import trace_step
from export.finding import find_reference
from export.gate_errors import ROWWISE, STOCK, measure_gates
from export.graphs.int8_product import H_SCALE
from export.graphs.int8_weights import quantize_pairs
from export.precision import Plan, Precision

Array = np.ndarray
HIDDEN = 24
ROWS = 40


def network_of(module: nn.Module) -> Network:
    x = torch.randn(1, 20, 3)
    reference = find_reference(module.eval().requires_grad_(False), x, None, None, None)
    trace = trace_step(reference, x)
    return lower(read_form(trace), trace)


def seen(network: Network) -> tuple[Array, dict[str, Array]]:
    rng = np.random.default_rng(5)
    state = {port: rng.uniform(-1, 1, (ROWS, size)) for port, size in network.states.items()}
    x = rng.standard_normal((ROWS, 1, 3)).astype(np.float32)
    return x, {name: value.astype(np.float32) for name, value in state.items()}


@pytest.fixture(scope="module")
def network(lstm: nn.LSTM) -> Network:
    return network_of(lstm)


@pytest.fixture(scope="module")
def lstm() -> nn.LSTM:
    """Each gate's weights are of a size of their own, so that no two have the same error."""
    torch.manual_seed(0)
    module = nn.LSTM(3, HIDDEN, batch_first=True)
    with torch.no_grad():
        for k, size in enumerate((1.0, 3.0, 0.3, 0.1)):  # i, f, g, o
            module.get_parameter("weight_hh_l0")[k * HIDDEN : (k + 1) * HIDDEN] *= size
    return module


def test_rowwise_errors_are_those_worked_by_hand(lstm: nn.LSTM, network: Network) -> None:
    """h and the weights of h rounded, x as it is: the same root mean square, gate by gate."""
    x, state = seen(network)
    found = {g.gate: g for g in measure_gates(network, x, state) if g.variant == ROWWISE}
    assert set(found) == set("ifgo")
    weights = {name: tensor.double().numpy() for name, tensor in lstm.state_dict().items()}
    weight = weights["weight_hh_l0"]
    levels, scale = quantize_pairs(weight)
    rounded = levels.astype(float).T * scale[:, None]
    h = state["h"].astype(np.float64)
    error = np.rint(h / H_SCALE) * H_SCALE @ rounded.T - h @ weight.T
    for gate, part in zip("ifgo", np.split(error, 4, axis=1), strict=True):
        assert found[gate].mean == pytest.approx(np.sqrt((part**2).mean()), rel=1e-3)
        assert found[gate].greatest == pytest.approx(np.abs(part).max(), rel=1e-3)
    z = x[:, 0] @ weights["weight_ih_l0"].T + h @ weight.T
    z += weights["bias_ih_l0"] + weights["bias_hh_l0"]
    assert found["o"].spread == pytest.approx(z[:, 3 * HIDDEN :].std(), rel=1e-3)


def test_stock_errors_are_greater_where_x_is_wide(network: Network) -> None:
    """It rounds x too, and its weights have 7 bits."""
    x, state = seen(network)
    gates = measure_gates(network, 10 * x, state)
    means = {(g.variant, g.gate): g.mean for g in gates}
    assert all(means[STOCK, gate] > 1.5 * means[ROWWISE, gate] for gate in "ifgo")


def test_a_layer_that_the_plan_leaves_in_float_has_no_error(network: Network) -> None:
    """What is measured is the variant as it is written."""
    plan = Plan(otherwise=Precision.FLOAT)
    gates = [g for g in measure_gates(network, *seen(network), plan) if g.variant == ROWWISE]
    assert gates
    assert max(gate.greatest for gate in gates) < 1e-5


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.GRU(3, HIDDEN, 2, batch_first=True), "zrn"),
        (nn.RNN(3, HIDDEN, batch_first=True), "h"),
    ],
    ids=["two gru", "rnn"],
)
def test_every_gate_of_every_cell_is_there(module: nn.Module, names: str) -> None:
    """In both variants, and each off by something, and by little next to what z varies by."""
    network = network_of(module)
    gates = measure_gates(network, *seen(network))
    wanted = {
        (cell.name, gate, v) for cell in network.cells for gate in names for v in (ROWWISE, STOCK)
    }
    assert {(g.cell, g.gate, g.variant) for g in gates} == wanted
    assert all(0 < g.mean < g.greatest for g in gates)
    assert all(g.mean < 0.1 * g.spread for g in gates)
