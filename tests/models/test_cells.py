"""The hand-written cell is the LSTM of the books, to the last digit."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.cells import GRUCell, LSTMCell


def torch_twin(cell: LSTMCell) -> nn.LSTMCell:
    """``nn.LSTMCell`` with the same weights: gates stacked i, f, g, o; h and x apart."""
    twin = nn.LSTMCell(cell.input_size, cell.hidden_size, dtype=cell.W_f.dtype)
    weights = torch.cat((cell.W_i, cell.W_f, cell.W_C, cell.W_o)).detach()
    with torch.no_grad():
        twin.weight_hh.copy_(weights[:, : cell.hidden_size])
        twin.weight_ih.copy_(weights[:, cell.hidden_size :])
        twin.bias_ih.copy_(torch.cat((cell.b_i, cell.b_f, cell.b_C, cell.b_o)))
        twin.bias_hh.zero_()
    return twin


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_cell_equals_torchs_cell_over_many_steps(dtype: torch.dtype, atol: float) -> None:
    """Same weights, same input: the same h and c, for 50 steps."""
    torch.manual_seed(0)
    cell = LSTMCell(3, 8).to(dtype)
    for bias in (cell.b_f, cell.b_i, cell.b_C, cell.b_o):
        nn.init.normal_(bias)  # biases that differ, so that a swapped pair shows
    twin = torch_twin(cell)
    state = twin_state = (torch.randn(4, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype))
    for x in torch.randn(50, 4, 3, dtype=dtype):
        state, twin_state = cell(x, state), twin(x, twin_state)
        for mine, theirs in zip(state, twin_state, strict=True):
            torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def tiny_cell() -> LSTMCell:
    """One input, one hidden unit; each gate with a weight on h, a weight on x and a bias."""
    cell = LSTMCell(1, 1)
    with torch.no_grad():
        cell.W_f.copy_(torch.tensor([[0.1, 0.2]]))
        cell.W_i.copy_(torch.tensor([[0.3, -0.4]]))
        cell.W_C.copy_(torch.tensor([[-0.5, 0.6]]))
        cell.W_o.copy_(torch.tensor([[0.7, 0.8]]))
        for bias, value in zip((cell.b_f, cell.b_i, cell.b_C, cell.b_o), (1, 2, 3, 4), strict=True):
            bias.fill_(value / 10)
    return cell


def test_gates_and_state_are_those_worked_out_by_hand() -> None:
    """At h = 0.5, c = -1, x = 2: each gate's sum by hand, then the two lines of the cell."""
    f = sigmoid(0.1 * 0.5 + 0.2 * 2 + 0.1)
    i = sigmoid(0.3 * 0.5 - 0.4 * 2 + 0.2)
    g = math.tanh(-0.5 * 0.5 + 0.6 * 2 + 0.3)
    o = sigmoid(0.7 * 0.5 + 0.8 * 2 + 0.4)
    c = f * -1 + i * g
    h = o * math.tanh(c)
    state = (torch.tensor([[0.5]]), torch.tensor([[-1.0]]))
    (new_h, new_c), gates = tiny_cell()(torch.tensor([[2.0]]), state, return_gates=True)
    assert {name: gate.item() for name, gate in gates.items()} == pytest.approx(
        {"f": f, "i": i, "o": o, "g": g}, abs=1e-6
    )
    assert (new_h.item(), new_c.item()) == pytest.approx((h, c), abs=1e-6)


def test_asking_for_the_gates_does_not_change_the_step() -> None:
    """The state with ``return_gates`` is the state without, and the old state is left alone."""
    cell = LSTMCell(2, 4)
    x, h, c = torch.randn(3, 2), torch.randn(3, 4), torch.randn(3, 4)
    before = (h.clone(), c.clone())
    plain = cell(x, (h, c))
    with_gates, _ = cell(x, (h, c), return_gates=True)
    assert all(map(torch.equal, plain, with_gates))
    assert all(map(torch.equal, before, (h, c)))


def test_a_cell_of_32_has_4224_weights_and_128_biases() -> None:
    """4 gates x 32 units x (32 h + 1 x), and 4 x 32."""
    counts: dict[int, int] = {1: 0, 2: 0}
    for parameter in LSTMCell(1, 32).parameters():
        counts[parameter.ndim] += parameter.numel()
    assert counts == {2: 4224, 1: 128}


def test_a_new_cell_remembers() -> None:
    """The forget bias is 1 and the other biases 0; the weights are within Xavier's bound."""
    torch.manual_seed(0)
    cell = LSTMCell(1, 32)
    assert torch.equal(cell.b_f, torch.ones(32))
    for bias in (cell.b_i, cell.b_C, cell.b_o):
        assert torch.equal(bias, torch.zeros(32))
    bound = math.sqrt(6 / (33 + 32))
    weights: list[Tensor] = [cell.W_f, cell.W_i, cell.W_C, cell.W_o]
    for weight in weights:
        assert 0.9 * bound < weight.abs().max().item() <= bound


def test_a_gru_step_is_the_one_worked_out_by_hand() -> None:
    """At h = 0.5, x = 2: r resets h before the product, and z is the share of the candidate."""
    cell = GRUCell(1, 1)
    with torch.no_grad():
        cell.W_r.copy_(torch.tensor([[0.1, 0.2]]))
        cell.W_z.copy_(torch.tensor([[0.3, -0.4]]))
        cell.W_h.copy_(torch.tensor([[-0.5, 0.6]]))
        for bias, value in zip((cell.b_r, cell.b_z, cell.b_h), (1, 2, 3), strict=True):
            bias.fill_(value / 10)
    r = sigmoid(0.1 * 0.5 + 0.2 * 2 + 0.1)
    z = sigmoid(0.3 * 0.5 - 0.4 * 2 + 0.2)
    candidate = math.tanh(-0.5 * (r * 0.5) + 0.6 * 2 + 0.3)
    h = cell(torch.tensor([[2.0]]), torch.tensor([[0.5]]))
    assert h.item() == pytest.approx((1 - z) * 0.5 + z * candidate, abs=1e-6)


def test_a_gru_that_never_resets_equals_torchs() -> None:
    """With r = 1 it does not matter where the reset stands; torch's z is one minus ours."""
    torch.manual_seed(0)
    cell = GRUCell(3, 8).double()
    twin = nn.GRUCell(3, 8, dtype=torch.float64)
    with torch.no_grad():
        cell.b_r.fill_(100)
        cell.b_z.normal_()
        cell.b_h.normal_()
        weights = torch.cat((cell.W_r, -cell.W_z, cell.W_h))
        twin.weight_hh.copy_(weights[:, :8])
        twin.weight_ih.copy_(weights[:, 8:])
        twin.bias_ih.copy_(torch.cat((cell.b_r, -cell.b_z, cell.b_h)))
        twin.bias_hh.zero_()
    h = twin_h = torch.randn(4, 8, dtype=torch.float64)
    for x in torch.randn(50, 4, 3, dtype=torch.float64):
        h, twin_h = cell(x, h), twin(x, twin_h)
        torch.testing.assert_close(h, twin_h, atol=1e-12, rtol=0)


def test_a_gru_cell_of_32_has_3168_weights_and_96_biases() -> None:
    """3 gates x 32 units x (32 h + 1 x), and 3 x 32."""
    parameters = list(GRUCell(1, 32).parameters())
    assert sum(p.numel() for p in parameters if p.ndim == 2) == 3168
    assert sum(p.numel() for p in parameters if p.ndim == 1) == 96
